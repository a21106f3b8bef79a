"""Global bidirectional linear attention: one state for the whole text, N in length.

With ``sentences`` a token's own sentence is told from the rest of the text, which weighs what is
learned: a sum over thousands of tokens would otherwise outweigh it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Layout, ends_of
from .blocks import linear_state as linear_state
from .feature_maps import FEATURE_MAPS
from .spec import FAINT, USUAL, AttentionSpec, Ends, Lent, in_fp32, longer, masked

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


def linear_read(q_features: Tensor, state: Tensor) -> Tensor:
    """``φ(q_i)·S / φ(q_i)·z``: (batch, heads, length, head_dim) in the dtype of the features."""
    sums = (q_features @ state.to(q_features.dtype)).to(state.dtype).transpose(1, 2)
    # Divided in the order (batch, length, heads, ...), so that heads are joined without a copy.
    out = (sums[..., :-1] / sums[..., -1:].clamp_min(TINY)).to(q_features.dtype)
    return out.transpose(1, 2)


def summed(states: list[Tensor]) -> list[Tensor]:
    """What each piece of a text reads: the sum of all pieces' states."""
    return [torch.stack(states).sum(dim=0)] * len(states)


def sentence_attention(
    q_features: Tensor,
    k_features: Tensor,
    v: Tensor,
    state: Tensor,
    log_weight: Tensor,
    layout: Layout,
    ends: Ends | None = None,
) -> Tensor:
    """``Σ_own φ(q_i)·φ(k_j) v_j + w Σ_rest φ(q_i)·φ(k_j) v_j`` over the same without v.

    Own are the tokens of i's sentence, the rest all others; made as ``w Σ_all + (1 - w) Σ_own``:
    a sum of what is not negative where w is at most 1, and without a difference of states.

    Args:
        q_features, k_features, v: as ``linear_attention``, in the order of the text.
        state: ``linear_state`` of all that is read, (batch, heads, features, head_dim + 1).
        log_weight: log w, (batch or 1, heads, 1, 1).
        ends: features and values of the text's first and last token, which count as own ones.
    """
    k_ends, v_ends = (None, None) if ends is None else (ends.k, ends.v)
    q, k, v = layout.blocks(q_features), layout.blocks(k_features, k_ends), layout.blocks(v, v_ends)
    wide = state.dtype
    own = (q @ k.transpose(-1, -2)).masked_fill(~layout.near(ends), 0.0)
    near = (own @ F.pad(v, (0, 1), value=1.0)).to(wide)  # (batch, heads, blocks, block, d + 1)
    weight = torch.exp(log_weight.to(wide)).unsqueeze(2)
    sums = weight * (q @ state.to(q.dtype).unsqueeze(2)).to(wide) + (1 - weight) * near
    out = (sums[..., :-1] / sums[..., -1:].clamp_min(TINY)).to(q_features.dtype)
    return layout.back(out.flatten(2, 3))


class LinearAttention(nn.Module):
    piece = 1
    reads_lent = True

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.block, self.reads_keys = spec.block_size, spec.sentences
        self.q_map = FEATURE_MAPS[spec.feature_map](spec, "query")
        self.k_map = FEATURE_MAPS[spec.feature_map](spec, "key")
        self.at_start = -FAINT if spec.anchors else 0.0
        self.log_weight: nn.Parameter | None = None
        self.dilution: nn.Parameter | None = None
        if spec.sentences:
            self.log_weight = nn.Parameter(torch.empty(spec.heads, 1, 1))
            self.dilution = nn.Parameter(torch.empty(spec.heads, 1, 1))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put this module's own parameters at their start."""
        if self.log_weight is not None and self.dilution is not None:
            self.log_weight.fill_(self.at_start)
            self.dilution.fill_(1.0)

    def weight(self, count: Tensor | None) -> Tensor:
        """Log of what other sentences weigh, ``a_h - c_h log(n / 512)``: (batch or 1, heads, 1, 1).

        With ``c_h = 1``, where it starts, they count beyond ``USUAL`` tokens as their mean does.
        """
        assert self.log_weight is not None
        assert self.dilution is not None
        made = self.log_weight[None]
        if count is None:
            return made
        return made - self.dilution * longer(count, USUAL, made.dtype)

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
        keys = self.k_map(k, count)
        state = linear_state(masked(keys, mask), v)
        if lent is not None:
            state = state + lent.gathered(linear_state(masked(keys, lent.tokens), v))
        if ends is not None:  # a map is asked once for a text: what it reports is every key's gain
            ends = replace(ends, k=ends_of(keys, mask))
        return self.made(q, keys, v, mask, state, count, starts, ends)

    def made(
        self, q: Tensor, keys: Tensor, v: Tensor, mask: Tensor | None, state: Tensor,
        count: Tensor | None, starts: Tensor | None, ends: Ends | None,
    ) -> Tensor:  # fmt: skip
        """The output where ``state`` is known, of features ``keys``, and ``ends`` in them."""
        if self.log_weight is None or starts is None:
            return linear_read(self.q_map(q), state)
        layout = Layout.of(starts, mask, self.block)
        return sentence_attention(self.q_map(q), keys, v, state, self.weight(count), layout, ends)

    @partial(in_fp32, back=False)
    def collect(
        self, k: Tensor, v: Tensor, mask: Tensor | None, count: Tensor | None = None
    ) -> Tensor:
        return linear_state(masked(self.k_map(k, count), mask), v)

    def join(self, states: list[Tensor]) -> list[Tensor]:
        return summed(states)

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
        if kv is None:
            return linear_read(self.q_map(q), state)
        k, v = kv
        if ends is not None:
            ends = replace(ends, k=self.k_map(ends.k, count))
        return self.made(q, self.k_map(k, count), v, mask, state, count, starts, ends)
