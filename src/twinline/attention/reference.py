"""Every kind written out in O(N²), any dtype: the definition that the tests trust.

Nothing here is fast. Shapes: ``q, k, v`` (batch, heads, length, head_dim); features (batch, heads,
length, features); ``mask`` (batch, length), True where a token is real. Rows without a real token
come out as zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted(weights: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``v`` under non-negative ``weights`` (batch, heads, length, length), real keys."""
    weights = weights * mask[:, None, None, :]
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights @ v / total.where(total > 0, torch.ones_like(total)), 0)


def softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``Σ_j exp(q_i·k_j/√d) v_j / Σ_j exp(q_i·k_j/√d)``."""
    return weighted(torch.exp(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5), v, mask)


def linear(q_features: Tensor, k_features: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j)``."""
    return weighted(q_features @ k_features.transpose(-1, -2), v, mask)


def places(mask: Tensor) -> Tensor:
    """Each token's number among its row's real tokens, from 0: (batch, length)."""
    return mask.long().cumsum(-1) - 1


def near_by(number: Tensor, mask: Tensor, anchors: bool) -> Tensor:
    """Which keys are of a token's own sentence ``number`` or, with ``anchors``, the first or last
    of the text: (batch, 1, length, length)."""
    place = places(mask)
    end = mask & ((place == 0) | (place == place.amax(dim=1, keepdim=True)))
    return ((number[:, :, None] == number[:, None, :]) | (anchors & end[:, None, :]))[:, None]


def apart(
    q: Tensor, k: Tensor, v: Tensor, q_features: Tensor, k_features: Tensor, log_weight: Tensor,
    mask: Tensor, number: Tensor, anchors: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Softmax over a token's own sentence ``number``, and linear over the whole text, unless that
    is one sentence."""
    real = mask[:, None, None, :]
    own = near_by(number, mask, anchors) & real
    several = (number.where(mask, 0).amax(dim=1) > 0)[:, None, None, None]
    exact = torch.exp(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5) * own
    mapped = torch.exp(log_weight) * (q_features @ k_features.transpose(-1, -2)) * real * several
    share = mapped.sum(-1) / (exact + mapped).sum(-1).clamp_min(torch.finfo(v.dtype).tiny)
    return weighted(exact + mapped, v, mask), share


def blocks(mask: Tensor, block: int, starts: Tensor | None = None) -> Tensor:
    """Each token's block: of ``block`` real tokens, or fewer where a sentence begins."""
    if starts is None:
        return places(mask) // block
    number = torch.zeros_like(mask, dtype=torch.long)
    for row in range(len(mask)):
        now, held = -1, block
        for place in mask[row].nonzero().flatten().tolist():
            if held == block or starts[row, place]:
                now, held = now + 1, 0
            number[row, place] = now
            held += 1
    return number


def sentences(
    q_features: Tensor, k_features: Tensor, v: Tensor, log_weight: Tensor, mask: Tensor,
    block: int, starts: Tensor, anchors: bool = False,
) -> Tensor:  # fmt: skip
    """``linear`` where keys of other sentences weigh ``exp(log_weight)``."""
    own = near_by(blocks(mask, block, starts), mask, anchors)
    weights = q_features @ k_features.transpose(-1, -2)
    return weighted(torch.where(own, weights, torch.exp(log_weight) * weights), v, mask)


def lightning(
    q_features: Tensor,
    k_features: Tensor,
    v: Tensor,
    slope: Tensor,
    mask: Tensor,
    gain: Tensor | None = None,
) -> Tensor:
    """``Σ_j exp(-s_h|i-j|) φ(q_i)·φ(k_j) v_j`` over its own denominator or, with gain, its RMS."""
    place = places(mask).to(v.dtype)
    distance = (place[:, :, None] - place[:, None, :]).abs()[:, None]  # (batch, 1, length, length)
    weights = (
        q_features @ k_features.transpose(-1, -2) * torch.exp(-slope[:, None, None] * distance)
    )
    if gain is None:
        return weighted(weights, v, mask)
    sums = (weights * mask[:, None, None, :]) @ v
    return sums * torch.rsqrt(sums.square().mean(-1, keepdim=True) + 1e-6) * gain[:, None]


def hybrid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor,
    k_features: Tensor,
    log_weight: Tensor,
    mask: Tensor,
    block: int,
    neighbours: int = 0,
    starts: Tensor | None = None,
    anchors: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output, and the share (batch, heads, length) of the denominator that far tokens hold."""
    number = blocks(mask, block, starts)
    if starts is not None:
        return apart(q, k, v, q_features, k_features, log_weight, mask, number, anchors)
    near = ((number[:, :, None] - number[:, None, :]).abs() <= neighbours)[:, None]
    exact = torch.exp(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
    mapped = torch.exp(log_weight) * (q_features @ k_features.transpose(-1, -2))
    weights = torch.where(near, exact, mapped)
    real = weights * mask[:, None, None, :]
    share = (real * ~near).sum(-1) / real.sum(-1).clamp_min(torch.finfo(v.dtype).tiny)
    return weighted(weights, v, mask), share
