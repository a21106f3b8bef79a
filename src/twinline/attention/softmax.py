"""Exact softmax attention: the teacher's own, and the yardstick of the others."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .spec import AttentionSpec


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(q kᵀ / sqrt(head_dim)) v`` over real tokens; N² in length.

    Args:
        q, k, v: (batch, heads, length, head_dim).
        mask: (batch, length), True where a token is real.
    Returns: (batch, heads, length, head_dim).
    """
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    # A row with no real token may attend anywhere, and is zeroed after: its softmax would be NaN.
    some = mask.any(dim=1)[:, None, None, None]  # (batch, 1, 1, 1)
    allowed = mask[:, None, None, :] | ~some  # (batch, 1, 1, length)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed) * some.to(v.dtype)


class SoftmaxAttention(nn.Module):
    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return softmax_attention(q, k, v, mask)
