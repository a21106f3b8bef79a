"""Softmax inside a block of tokens, linear attention across blocks, one denominator over both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .feature_maps import FEATURE_MAPS
from .spec import AttentionSpec, masked, real_first, reorder

LEAST_MASS = 1e-30
"""Far mass below it counts as none: its logarithm's gradient would overflow."""


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor,
    k_features: Tensor,
    log_weight: Tensor,
    mask: Tensor | None = None,
    block: int = 128,
    neighbours: int = 0,
) -> tuple[Tensor, Tensor]:
    """Exact softmax over the own block (and ``neighbours`` on each side), linear over all others.

    ``out_i = (Σ_near exp(q_i·k_j/√d) v_j + w_i Σ_far φ(q_i)·φ(k_j) v_j) / (the same without v)``
    with ``w_i = exp(log_weight_i)``. Blocks are counted from the first real token. The sum over far
    blocks is an exclusive prefix plus an exclusive suffix sum: subtracting the near blocks from the
    total would cancel most digits.

    Args:
        q, k, v: (batch, heads, length, head_dim).
        q_features, k_features: (batch, heads, length, features), non-negative.
        log_weight: (batch, heads, length, 1).
        mask: (batch, length), True where a token is real.
    Returns: the output (batch, heads, length, head_dim), and the log-odds (batch, heads, length) of
        the far tokens' share of the denominator; ``-inf`` never, very negative where none is far.
    """
    order = None if mask is None else real_first(mask)
    if order is not None and mask is not None:
        inputs = (q, k, v, q_features, k_features, log_weight)
        q, k, v, q_features, k_features, log_weight = (reorder(x, order[0]) for x in inputs)
        mask = torch.gather(mask, 1, order[0])
    batch, heads, length, width = v.shape
    wide = torch.promote_types(v.dtype, torch.float32)
    block = min(block, length)
    blocks = -(-length // block)
    pad = blocks * block - length
    if pad and mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=v.device)

    def blocked(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, pad)) if pad else x
        return x.reshape(batch, heads, blocks, block, x.shape[-1])

    def window(x: Tensor) -> Tensor:
        """Each block with its neighbours: (..., blocks, (2 * neighbours + 1) * block, last)."""
        if neighbours == 0:
            return x
        x = F.pad(x, (0, 0, 0, 0, neighbours, neighbours))
        shifted = [x[..., n : n + blocks, :, :] for n in range(2 * neighbours + 1)]
        return torch.cat(shifted, dim=-2)

    qb, kb, vb = blocked(q), blocked(k), blocked(v)
    scores = (qb * width**-0.5) @ window(kb).transpose(-1, -2)
    scores = scores.to(wide)  # (batch, heads, blocks, block, near)
    near = None
    if mask is not None or neighbours:
        real = q.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
        real = F.pad(real, (0, pad)).reshape(batch, 1, blocks, block, 1)
        near = window(real.to(v.dtype)).transpose(-1, -2) > 0  # (batch, 1, blocks, 1, near)
        # The lowest finite number: a query with no near key gets a mean, not NaN, and is zeroed.
        scores = scores.masked_fill(~near, torch.finfo(wide).min)
    log_near = torch.logsumexp(scores, dim=-1, keepdim=True)
    out = torch.exp(scores - log_near).to(v.dtype) @ window(vb)
    if near is not None:
        out = out * near.any(dim=-1, keepdim=True).to(v.dtype)

    never = torch.finfo(wide).min
    if blocks <= neighbours + 1:
        # Through ``log_weight``, so that a batch of short texts alone has a (zero) gradient too.
        log_odds = 0 * blocked(log_weight).to(wide) + never
    else:
        qf, kf = blocked(q_features), blocked(masked(k_features, mask))
        state = (kf.transpose(-1, -2) @ vb).to(wide)  # (batch, heads, blocks, features, head_dim)
        total = kf.sum(dim=-2, dtype=wide).unsqueeze(-1)  # (batch, heads, blocks, features, 1)
        far = others(torch.cat([state, total], dim=-1), neighbours).to(v.dtype)
        sums = (qf @ far).to(wide)  # (batch, heads, blocks, block, head_dim + 1)
        some = sums[..., -1:] > LEAST_MASS  # False where the row has no far token
        mass = sums[..., -1:].where(some, 1.0)
        log_odds = torch.log(mass) + blocked(log_weight).to(wide) - log_near
        log_odds = log_odds.where(some, never)
        share = torch.sigmoid(log_odds)
        out = ((1 - share) * out.to(wide) + share * (sums[..., :-1] / mass)).to(v.dtype)

    out = out.reshape(batch, heads, blocks * block, width)[:, :, :length]
    log_odds = log_odds.reshape(batch, heads, blocks * block, 1)[:, :, :length]
    if order is not None:
        out, log_odds = reorder(out, order[1]), reorder(log_odds, order[1])
    return out, log_odds.squeeze(-1)


def others(states: Tensor, neighbours: int) -> Tensor:
    """For each block the sum of ``states`` (batch, heads, blocks, ...) over blocks not near it."""
    blocks, gap = states.shape[2], neighbours + 1
    before, after = torch.cumsum(states, dim=2), torch.cumsum(states.flip(2), dim=2).flip(2)
    shift = (0, 0, 0, 0)
    return F.pad(before[:, :, : blocks - gap], (*shift, gap, 0)) + F.pad(
        after[:, :, gap:], (*shift, 0, gap)
    )


class HybridAttention(nn.Module):
    """``far=False`` switches the linear branch off: what is left is softmax inside blocks."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.far = True
        self.q_map = FEATURE_MAPS[spec.feature_map](spec, "query")
        self.k_map = FEATURE_MAPS[spec.feature_map](spec, "key")
        # log w = a_h + b_h·q: what the branches weigh against each other is not free, as a map's
        # scale is in purely linear attention.
        self.log_weight = nn.Parameter(torch.empty(spec.heads, 1, 1))
        self.query_weight = nn.Parameter(torch.empty(spec.heads, spec.head_dim, 1))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put this module's own parameters at their start."""
        self.log_weight.zero_()
        self.query_weight.zero_()

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, block: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The output and the far tokens' log-odds: see ``hybrid_attention``.

        ``block`` overrides the block size: transfer mixes several.
        """
        log_weight = q @ self.query_weight.to(q.dtype) + self.log_weight.to(q.dtype)
        if not self.far:
            log_weight = torch.full_like(log_weight, -1e4)
        return hybrid_attention(
            q, k, v, self.q_map(q), self.k_map(k), log_weight, mask,
            block or self.spec.block_size, self.spec.neighbours,
        )  # fmt: skip

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(q, k, v, mask)[0]
