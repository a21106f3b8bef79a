"""Global bidirectional linear attention: one state for the whole text, N in length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .feature_maps import FEATURE_MAPS
from .spec import AttentionSpec, masked

TINY = 1e-12
"""Least denominator: a row without a real token divides zero by it and stays zero."""


def linear_attention(
    q_features: Tensor, k_features: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``φ(q_i)·S / φ(q_i)·z`` with ``S = Σ_j φ(k_j) v_jᵀ`` and ``z = Σ_j φ(k_j)`` over real tokens.

    Katharopoulos et al., arXiv 2006.16236, eq. 5, without the causal mask. The products
    accumulate in fp32 inside the matrix kernels also when their operands are bfloat16; the sum over
    tokens and the quotient are taken in fp32 (or wider) here.

    Args:
        q_features, k_features: (batch, heads, length, features), non-negative.
        v: (batch, heads, length, head_dim).
        mask: (batch, length), True where a token is real.
    Returns: (batch, heads, length, head_dim) in v's dtype.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    k_features = masked(k_features, mask)
    state = k_features.transpose(-1, -2) @ v  # (batch, heads, features, head_dim)
    total = k_features.sum(dim=-2, dtype=wide)  # (batch, heads, features)
    numerator = q_features @ state  # (batch, heads, length, head_dim)
    denominator = q_features @ total.unsqueeze(-1).to(q_features.dtype)
    return (numerator.to(wide) / denominator.to(wide).clamp_min(TINY)).to(v.dtype)


class LinearAttention(nn.Module):
    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.q_map = FEATURE_MAPS[spec.feature_map](spec, "query")
        self.k_map = FEATURE_MAPS[spec.feature_map](spec, "key")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return linear_attention(self.q_map(q), self.k_map(k), v, mask)
