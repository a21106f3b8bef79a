"""Softmax inside a block of tokens, linear attention across blocks, one denominator over both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Layout, block_states, in_blocks, others, others_of_pieces
from .feature_maps import FEATURE_MAPS
from .linear import linear_state, summed
from .spec import USUAL, AttentionSpec, Ends, Lent, in_fp32, longer, masked, real_first, reorder

LEAST_MASS = 1e-30
"""Far mass below it counts as none: its logarithm's gradient would overflow."""


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor | None,
    k_features: Tensor | None,
    log_weight: Tensor,
    mask: Tensor | None = None,
    block: int = 128,
    neighbours: int = 0,
    lent: Lent | None = None,
    layout: Layout | None = None,
    ends: Ends | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact softmax over the own block (and ``neighbours`` on each side), linear over all others.

    ``out_i = (Σ_near exp(q_i·k_j/√d) v_j + w_i Σ_far φ(q_i)·φ(k_j) v_j) / (the same without v)``
    with ``w_i = exp(log_weight_i)``. Blocks are counted from the first real token. The sum over far
    blocks is an exclusive prefix plus an exclusive suffix sum: subtracting the near blocks from the
    total would cancel most digits.

    Args:
        q, k, v: (batch, heads, length, head_dim).
        q_features, k_features: (batch, heads, length, features), non-negative; None if every text
            lies in its near blocks, where they have no use.
        log_weight: (batch, heads, length, 1).
        mask: (batch, length), True where a token is real.
        lent: what others lend is far to all of a text's blocks.
        layout: keeps sentences apart: near is the own sentence, and the far branch reads the whole
            text, the own sentence too; in a text of one sentence it reads nothing.
        ends: with a layout, what is near to all tokens.
    Returns: the output (batch, heads, length, head_dim), and the log-odds (batch, heads, length) of
        the far tokens' share of the denominator; ``-inf`` never, very negative where none is far.
    """
    borrowed = None
    if lent is not None and k_features is not None:
        borrowed = lent.gathered(linear_state(masked(k_features, lent.tokens), v))
    if layout is not None:
        state = None
        if k_features is not None:
            state = linear_state(masked(k_features, mask), v)
            state = state * layout.several[:, None, None, None].to(state.dtype)
            state = state if borrowed is None else state + borrowed
        return read_sentences(q, k, v, q_features, log_weight, state, layout, ends)
    order = None if mask is None else real_first(mask)
    if order is not None and mask is not None:
        q, k, v, log_weight = (reorder(x, order[0]) for x in (q, k, v, log_weight))
        if q_features is not None and k_features is not None:
            q_features, k_features = reorder(q_features, order[0]), reorder(k_features, order[0])
        mask = torch.gather(mask, 1, order[0])
    far = None
    if k_features is not None and has_far(v.shape[2], block, neighbours):
        far = others(block_states(k_features, v, mask, block), neighbours)
        far = far if borrowed is None else far + borrowed[:, :, None]
    elif borrowed is not None:
        far = borrowed[:, :, None].expand(-1, -1, -(-v.shape[2] // block), -1, -1)
    out, log_odds = read_blocks(q, k, v, q_features, log_weight, mask, far, block, neighbours)
    if order is not None:
        out, log_odds = reorder(out, order[1]), reorder(log_odds, order[1])
    return out, log_odds.squeeze(-1)


def read_sentences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor | None,
    log_weight: Tensor,
    state: Tensor | None,
    layout: Layout,
    ends: Ends | None = None,
) -> tuple[Tensor, Tensor]:
    """Own sentences by softmax joined with ``state``, that of the whole text.

    Arguments and what is returned as ``hybrid_attention``.
    """
    k_ends, v_ends = (None, None) if ends is None else (ends.k, ends.v)
    blocks = layout.blocks(q), layout.blocks(k, k_ends), layout.blocks(v, v_ends)
    near = near_softmax(*blocks, layout.near(ends))
    # Back first: the state is the same for all, and features are the widest there is to move.
    out, log_near = (layout.back(x.flatten(2, 3)) for x in near)
    out, log_odds = joined(out, log_near, q_features, log_weight, state)
    return out, log_odds.squeeze(-1)


def has_far(length: int, block: int, neighbours: int) -> bool:
    """Whether a text of ``length`` has tokens outside the near blocks of some token."""
    return -(-length // block) > neighbours + 1


def read_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor | None,
    log_weight: Tensor,
    mask: Tensor | None,
    far: Tensor | None,
    block: int,
    neighbours: int,
) -> tuple[Tensor, Tensor]:
    """Near tokens by softmax joined with ``far``, the sum of the states of each block's far ones.

    Arguments as ``hybrid_attention``, real tokens first. Returns: the output, and the log-odds
    (batch, heads, length, 1).
    """
    batch, heads, length, width = v.shape
    block = block if far is not None else min(block, length)  # a short text is its own block
    pad = -length % block
    if pad and mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=v.device)

    def window(x: Tensor) -> Tensor:
        """Each block with its neighbours: (..., blocks, (2 * neighbours + 1) * block, last)."""
        if neighbours == 0:
            return x
        blocks = x.shape[2]
        x = F.pad(x, (0, 0, 0, 0, neighbours, neighbours))
        shifted = [x[..., n : n + blocks, :, :] for n in range(2 * neighbours + 1)]
        return torch.cat(shifted, dim=-2)

    near = None
    if mask is not None or neighbours:
        real = q.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
        seen = window(in_blocks(real[:, None, :, None].to(v.dtype), block))
        near = seen.transpose(-1, -2) > 0  # (batch, 1, blocks, 1, near)
    kb, vb = window(in_blocks(k, block)), window(in_blocks(v, block))
    out, log_near = near_softmax(in_blocks(q, block), kb, vb, near)

    queries = None if q_features is None else in_blocks(q_features, block)
    out, log_odds = joined(out, log_near, queries, in_blocks(log_weight, block), far)
    out = out.reshape(batch, heads, -1, width)[:, :, :length]
    return out, log_odds.reshape(batch, heads, -1, 1)[:, :, :length]


def joined(
    out: Tensor, log_near: Tensor, q_features: Tensor | None, log_weight: Tensor, far: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``near_softmax``'s results joined with ``far``: the output, and the log-odds.

    All (batch, heads, blocks, block, width), and far (batch, heads, blocks, features, width + 1),
    or all without blocks.
    """
    wide = log_near.dtype
    never = torch.finfo(wide).min
    weight = log_weight.to(wide)
    if far is None or q_features is None:
        # Through ``log_weight``, so that a batch of short texts alone has a (zero) gradient too.
        return out, 0 * weight + never
    sums = (q_features @ far.to(out.dtype)).to(wide)
    some = sums[..., -1:] > LEAST_MASS  # False where the row has no far token
    mass = sums[..., -1:].where(some, 1.0)
    log_odds = (torch.log(mass) + weight - log_near).where(some, never)
    share = torch.sigmoid(log_odds)
    mixed = (1 - share) * out.to(wide) + share * (sums[..., :-1] / mass)
    return mixed.to(out.dtype), log_odds


def near_softmax(q: Tensor, k: Tensor, v: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exact softmax attention block by block, and its log-sum-exp.

    Args:
        q: (batch, heads, blocks, block, head_dim); k, v with ``near`` tokens in a block.
        near: (batch, 1, blocks, 1 or block, near), False where a key is not near; None: all are.
    Returns: the output like q, zero where no key is near; the log-sum-exp (..., block, 1), wide.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    # The lowest finite number: a query with no near key gets a mean, not NaN, and is zeroed.
    least = torch.finfo(wide).min
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not learns and q.device.type == "cpu" and wide == torch.float32:
        # PyTorch's flash kernel for processors returns the log-sum-exp, without a gradient.
        batch, blocks = q.shape[0], q.shape[2]
        added = None
        if near is not None:  # the same for all heads
            added = torch.zeros_like(near, dtype=q.dtype).masked_fill(~near, least)
            added = added.transpose(1, 2).flatten(0, 1)
        flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        out, log_near = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *flat, attn_mask=added
        )
        out = out.unflatten(0, (batch, blocks)).transpose(1, 2)
        log_near = log_near.to(wide).unflatten(0, (batch, blocks)).transpose(1, 2).unsqueeze(-1)
    else:
        scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).to(wide)
        if near is not None:
            scores = scores.masked_fill(~near, least)
        # One exponential of every score: it is what most of a training step's time goes to.
        top = scores.detach().amax(dim=-1, keepdim=True)
        weights = torch.exp(scores - top)
        total = weights.sum(dim=-1, keepdim=True)
        log_near = top + torch.log(total)
        out = (weights.to(v.dtype) @ v) / total.to(v.dtype)
    if near is not None:
        out = out * near.any(dim=-1, keepdim=True).to(v.dtype)
    return out, log_near


class HybridAttention(nn.Module):
    """``far=False`` switches the linear branch off: what is left is softmax inside blocks.

    ``report``, if set, is called with every output's log-odds (batch, heads, length) and mask.
    """

    reads_keys = True
    reads_lent = True

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.far = spec.far
        self.report: Callable[[Tensor, Tensor | None], None] | None = None
        # With neighbours a block's window reaches into the next piece.
        self.piece = None if spec.neighbours else 1 if spec.sentences else spec.block_size
        self.q_map = FEATURE_MAPS[spec.feature_map](spec, "query")
        self.k_map = FEATURE_MAPS[spec.feature_map](spec, "key")
        # log w = a_h + b_h·q: what the branches weigh against each other is not free, as a map's
        # scale is in purely linear attention.
        self.log_weight = nn.Parameter(torch.empty(spec.heads, 1, 1))
        self.query_weight = nn.Parameter(torch.empty(spec.heads, spec.head_dim, 1))
        self.dilution: nn.Parameter | None = None
        if spec.sharpen:
            self.dilution = nn.Parameter(torch.empty(spec.heads, 1, 1))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put this module's own parameters at their start."""
        self.log_weight.zero_()
        self.query_weight.zero_()
        if self.dilution is not None:
            self.dilution.fill_(1.0)

    def keys(self, k: Tensor, count: Tensor | None) -> Tensor:
        """Features of far keys, thinned out where a text of ``count`` (batch,) tokens is long.

        The far sum grows with the text and the near one does not: without bound, thousands of
        tokens would outweigh a token's own neighbourhood. With ``c_h = 1``, where it starts, the
        sum counts beyond ``USUAL`` tokens as their mean does: each key by ``(n / 512)^-c_h``.
        """
        features: Tensor = self.k_map(k, count)
        if self.dilution is None or count is None:
            return features
        return features * torch.exp(-self.dilution.to(k.dtype) * longer(count, USUAL, k.dtype))

    def weight(self, q: Tensor) -> Tensor:
        """The log-weight of the linear branch, by query: (batch, heads, length, 1)."""
        return q @ self.query_weight.to(q.dtype) + self.log_weight.to(q.dtype)

    @in_fp32
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None,
        block: int | None = None, lent: Lent | None = None, count: Tensor | None = None,
        starts: Tensor | None = None, ends: Ends | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The output and the far tokens' log-odds: see ``hybrid_attention``.

        ``block`` overrides the block size: transfer mixes several.
        """
        block, neighbours = block or self.spec.block_size, self.spec.neighbours
        layout = None if starts is None else Layout.of(starts, mask, block)
        some = has_far(q.shape[2], block, neighbours)
        some = some if layout is None else bool(layout.several.any())
        features: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.far and (lent is not None or some):
            features = self.q_map(q), self.keys(k, count)
        return hybrid_attention(
            q, k, v, *features, self.weight(q), mask=mask, block=block, neighbours=neighbours,
            lent=lent, layout=layout, ends=ends,
        )  # fmt: skip

    @in_fp32
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        lent: Lent | None = None,
        count: Tensor | None = None,
        starts: Tensor | None = None,
        ends: Ends | None = None,
    ) -> Tensor:
        told: dict[str, Any] = {"lent": lent, "count": count, "starts": starts, "ends": ends}
        out, log_odds = self.attend(q, k, v, mask, **told)
        if self.report:
            self.report(log_odds, mask)
        return out

    @partial(in_fp32, back=False)
    def collect(
        self, k: Tensor, v: Tensor, mask: Tensor | None, count: Tensor | None = None
    ) -> Tensor:
        if not self.far:
            return k.new_zeros(())  # nobody reads it
        keys = self.keys(k, count)
        if self.spec.sentences:
            return linear_state(masked(keys, mask), v)
        return block_states(keys, v, mask, self.spec.block_size)

    def join(self, states: list[Tensor]) -> list[Tensor]:
        if not self.far:
            return states
        return summed(states) if self.spec.sentences else others_of_pieces(states)

    @in_fp32
    def read(
        self,
        q: Tensor,
        kv: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        state: Tensor,
        count: Tensor | None = None,
        starts: Tensor | None = None,
        ends: Ends | None = None,
    ) -> Tensor:
        assert kv is not None, "a hybrid reads its own block's keys and values"
        block, features = self.spec.block_size, self.q_map(q) if self.far else None
        given = (q, *kv, features, self.weight(q))
        if starts is not None:
            out, log_odds = read_sentences(*given, state, Layout.of(starts, mask, block), ends)
        else:
            out, log_odds = read_blocks(*given, mask, state, block, 0)
            log_odds = log_odds.squeeze(-1)
        if self.report:
            self.report(log_odds, mask)
        return out
