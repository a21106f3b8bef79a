"""Global bidirectional linear attention: one state for the whole text, N in length."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .feature_maps import FEATURE_MAPS
from .spec import AttentionSpec, Lent, in_fp32, masked

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
    return linear_read(q_features, linear_state(masked(k_features, mask), v))


def linear_state(k_features: Tensor, v: Tensor) -> Tensor:
    """``S`` and, as its last column, ``z``: (batch, heads, features, head_dim + 1), fp32 or wider.

    ``k_features`` are zero where a token is not real. States of pieces of a text add up.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    state = (k_features.transpose(-1, -2) @ v).to(wide)  # (batch, heads, features, head_dim)
    total = k_features.sum(dim=-2, dtype=wide).unsqueeze(-1)  # (batch, heads, features, 1)
    return torch.cat([state, total], dim=-1)


def linear_read(q_features: Tensor, state: Tensor) -> Tensor:
    """``φ(q_i)·S / φ(q_i)·z``: (batch, heads, length, head_dim) in the dtype of the features."""
    sums = (q_features @ state.to(q_features.dtype)).to(state.dtype).transpose(1, 2)
    # Divided in the order (batch, length, heads, ...), so that heads are joined without a copy.
    out = (sums[..., :-1] / sums[..., -1:].clamp_min(TINY)).to(q_features.dtype)
    return out.transpose(1, 2)


def summed(states: list[Tensor]) -> list[Tensor]:
    """What each piece of a text reads: the sum of all pieces' states."""
    return [torch.stack(states).sum(dim=0)] * len(states)


class LinearAttention(nn.Module):
    piece = 1
    reads_keys = False
    reads_lent = True

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.q_map = FEATURE_MAPS[spec.feature_map](spec, "query")
        self.k_map = FEATURE_MAPS[spec.feature_map](spec, "key")

    @in_fp32
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        lent: Lent | None = None,
        count: Tensor | None = None,
    ) -> Tensor:
        keys = self.k_map(k, count)
        if lent is None:
            return linear_attention(self.q_map(q), keys, v, mask)
        others = lent.gathered(linear_state(masked(keys, lent.tokens), v))
        return linear_read(self.q_map(q), linear_state(masked(keys, mask), v) + others)

    @partial(in_fp32, back=False)
    def collect(
        self, k: Tensor, v: Tensor, mask: Tensor | None, count: Tensor | None = None
    ) -> Tensor:
        return linear_state(masked(self.k_map(k, count), mask), v)

    def join(self, states: list[Tensor]) -> list[Tensor]:
        return summed(states)

    @in_fp32
    def read(
        self, q: Tensor, kv: tuple[Tensor, Tensor] | None, mask: Tensor | None, state: Tensor
    ) -> Tensor:
        return linear_read(self.q_map(q), state)
