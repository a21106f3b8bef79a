"""Stacked target-to-history cross attention: one query reads a long history, linear in its length.

STCA (arXiv 2511.06077, sec. 3.1). With the history ``X`` (length, width) and the target ``t``,
layer i = 1..m makes

    q_i = LN(SwiGLU([o_1; ...; o_{i-1}; t])),    o_i = W_o concat_h(Σ_j a_hj W_v,h x_j),
    a_h = softmax_j(s_h log(n) · (W_k,h^T q_ih / √d + √width g_h ⊙ m)·x_j)

so a layer's query has seen what earlier layers read. SwiGLU is ``W_2 (silu(W_1 x) ⊙ W_3 x)``
(arXiv 2002.05202). Some things differ from the paper:

- Keys and values are never made: ``W_k`` goes to the one query's side and ``W_v`` behind the sum,
  so that a layer reads the history twice and writes nothing of its length but the weights.
- Weights are sharpened by ``log n``, n being the real tokens, with a learned ``s`` a head
  (Scalable-Softmax, arXiv 2501.19399): else whatever one token says drowns in n others.
- What a state weighs depends on how it differs from the whole: ``m`` is the history's mean, ``g`` a
  learned vector a head. Without it a sentence is told from the prose of training alone: among
  turns of meetings, after training on novels, a single query weighed it most in 0.43 of the texts
  without ``g`` and in 0.88 with it (``benchmarks/finding.py``).
- Where sentences are known (``Sentences``), a state is weighed by its sentence too: to the logits
  comes ``(W_s,h^T q_ih / √d + √width g_h ⊙ m)·s_j``, with s_j the mean over the sentence of j, and
  ``g`` stands there alone. One token says little about whether its sentence matters.
- The history is read as it is; the paper transforms it in each layer. Here it comes out of an
  encoder, whose last step is a feed-forward already.

At the start ``W_k``, ``W_s`` and ``g`` are zero, ``W_v`` and ``W_o`` are the identity: the output
is the mean.

Where target and history come from one space, as a query's vector and a candidate's states do, a
*matching* STCA starts as a search instead: the query is ``LN(t + SwiGLU(...))`` with ``W_2`` zero
and ``W_k`` the identity, so that the target reads what is most like it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 4096
"""Tokens of the history that are read at a time."""
USUAL = 64
"""Length at which ``s_h log(n)`` starts at one."""
MATCHING = 16.0
"""What it starts at where a target reads what is like it. Means of token states are about one long,
and a document's cosines to a question lie a few tenths apart: with 4 it reads nearly their mean.
Chosen among 4, 8, 16, 24 and 32 on 83 validation questions about 25 stories (SQuALITY)."""
NEAR = 3
"""Sentences before one, and as many behind it, that it is held against: chosen among 1, 3 and 8 on
validation prose, novels and meetings."""


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens' states; zeros for a row that has none. (batch, hidden)."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if hidden.ndim == 2:
        return (mask.to(wide) @ hidden.to(wide)) / mask.sum(dim=1, keepdim=True).to(wide).clamp_min(
            1.0
        )
    # Piece by piece, so that a long text's weighted states never stand beside the states.
    pieces = zip(hidden.split(PIECE, dim=1), mask.split(PIECE, dim=1), strict=True)
    sums = [(x.to(wide) * real.to(wide).unsqueeze(-1)).sum(dim=1) for x, real in pieces]
    total = torch.stack(sums).sum(dim=0) if len(sums) > 1 else sums[0]
    return total / mask.sum(dim=1, keepdim=True).to(wide).clamp_min(1.0)


@dataclass(frozen=True)
class Sentences:
    """The sentences of a history."""

    means: Tensor
    """Of each one's states, by their shares: (batch, sentences, width), or (sentences, width) if
    all read the same history; fp32 or wider."""
    near: Tensor
    """Of the sentences beside each one, by their sizes, likewise; zeros where it is the only
    one."""
    number: Tensor
    """Which sentence each state is of: (batch, n) or (n,)."""
    whole: Tensor
    """Of the sentences that each text reads, by their sizes: (batch, width)."""
    emphasis: Tensor | None = None
    """Logarithm of each state's share in its sentence, against an equal one: (batch, n) or (n,);
    None: all are equal."""

    @classmethod
    def of(
        cls, states: Tensor, starts: Tensor, real: Tensor, marks: Tensor | None = None
    ) -> Sentences:
        """Of texts (batch, n, width) whose sentences begin where ``starts`` (batch, n) is True.

        ``real`` (batch, n) is True where a token has a part in them.
        ``marks`` (batch, n) are logits of each state's share in its sentence; None: equal shares.
        """
        wide = torch.promote_types(states.dtype, torch.float32)
        number = (starts.long().cumsum(dim=1) - 1).clamp_min(0)
        many = int(number.max()) + 1
        rows = (number + many * torch.arange(len(states), device=states.device)[:, None]).flatten()
        each = states.new_zeros(len(states) * many, dtype=wide)  # of every sentence of every text
        sizes = each.index_add(0, rows, real.flatten().to(wide))
        shares, emphasis = real.to(wide) / sizes.clamp_min(1.0)[rows].view_as(number), None
        if marks is not None:
            logits = marks.to(wide).masked_fill(~real, torch.finfo(wide).min).flatten()
            most = each.fill_(torch.finfo(wide).min).scatter_reduce(
                0, rows, logits.detach(), "amax"
            )
            above = (logits - most[rows]) * real.flatten()
            summed = torch.zeros_like(each).index_add(0, rows, above.exp() * real.flatten())
            inside = torch.log(summed.clamp_min(1.0))[rows]
            shares = ((above - inside).exp() * real.flatten()).view_as(number)
            emphasis = (above - inside + torch.log(sizes.clamp_min(1.0))[rows]).view_as(number)
        sums = states.new_zeros(len(each), states.shape[2], dtype=wide)
        pieces = (x.split(PIECE, 1) for x in (states, rows.view_as(number), shares))
        for x, at, share in zip(*pieces, strict=True):
            sums = sums.index_add(0, at.flatten(), (x.to(wide) * share[..., None]).flatten(0, 1))
        means, sizes = sums.unflatten(0, (-1, many)), sizes.unflatten(0, (-1, many))
        return cls(means, nearby(means, sizes), number, mean(means, sizes), emphasis)

    @classmethod
    def kept(cls, means: Tensor, sizes: Tensor) -> Sentences:
        """Of texts whose history is one state a sentence, the mean (batch, sentences, width) of
        ``sizes`` (batch, sentences) tokens."""
        number = torch.arange(sizes.shape[1], device=sizes.device).expand_as(sizes)
        return cls(means, nearby(means, sizes), number, mean(means, sizes))

    def joined(self, states: Tensor, read: Tensor) -> Sentences:
        """Those of all texts (batch, n, width) as of one history, one text after another, of which
        each text reads what ``read`` (batch, batch * n) says."""
        batch, many = self.means.shape[:2]
        rows = many * torch.arange(batch, device=self.number.device)[:, None]
        means, near = (x.flatten(0, 1) for x in (self.means, self.near))
        emphasis, shares = None, read
        if self.emphasis is not None:
            emphasis = self.emphasis.flatten()
            shares = read * emphasis.exp()
        whole = mean(states.flatten(0, 1), shares).to(means.dtype)
        return Sentences(means, near, (self.number + rows).flatten(), whole, emphasis)

    def spread(self, logits: Tensor) -> Tensor:
        """(batch, heads, sentences), each sentence's to its states: (batch, heads, n)."""
        number = self.number.expand(len(logits), -1)[:, None].expand(-1, logits.shape[1], -1)
        made = torch.gather(logits, 2, number)
        if self.emphasis is None:
            return made
        return made + self.emphasis.to(made.dtype).expand(len(made), -1)[:, None]


def nearby(means: Tensor, sizes: Tensor) -> Tensor:
    """Of the tokens of the sentences beside each one, their mean: (batch, sentences, width)."""
    weighed = torch.cat([means * sizes[..., None], sizes[..., None].to(means.dtype)], dim=-1)
    beside = torch.zeros_like(weighed)
    for away in range(1, min(NEAR, sizes.shape[1] - 1) + 1):  # no difference of long sums
        beside[:, away:] += weighed[:, :-away]
        beside[:, :-away] += weighed[:, away:]
    return beside[..., :-1] / beside[..., -1:].clamp_min(1.0)


class Asking(nn.Module):
    """A layer's query, from what is known."""

    def __init__(self, width: int, heads: int, known: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.gate = nn.Parameter(torch.empty(width, known * width))  # W_1
        self.up = nn.Parameter(torch.empty(width, known * width))  # W_3
        self.down = nn.Parameter(torch.empty(width, width))  # W_2
        self.norm = nn.LayerNorm(width)
        self.sharpness = nn.Parameter(torch.empty(heads, 1))  # s_h

    @torch.no_grad()
    def reset(self) -> None:
        """Put every parameter at its start."""
        generator = torch.Generator().manual_seed(0)
        for weight in (self.gate, self.up, self.down):
            spread = weight.shape[1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        self.norm.reset_parameters()
        self.sharpness.fill_(1.0 / math.log(USUAL))

    def query(self, known: Tensor) -> Tensor:
        """(batch, width) from (batch, known * width)."""
        asked = self.fed(known)
        scale, shift = self.norm.weight.to(known.dtype), self.norm.bias.to(known.dtype)
        return F.layer_norm(asked, (self.width,), scale, shift)

    def fed(self, known: Tensor) -> Tensor:
        """What the query is the norm of."""
        wide = known.dtype
        gated = F.silu(known @ self.gate.T.to(wide)) * (known @ self.up.T.to(wide))
        made: Tensor = gated @ self.down.T.to(wide)
        return made

    def sharp(self, mask: Tensor, wide: torch.dtype) -> Tensor:
        """``s_h log(n)``, (batch, heads, 1), n being what the mask (batch, n) sums up to."""
        count = mask.sum(dim=1, dtype=wide).clamp_min(2.0)[:, None, None]
        return self.sharpness.to(wide) * torch.log(count)


class CrossAttention(Asking):
    """One layer: the query from what is known, and what it reads."""

    def __init__(
        self, width: int, heads: int, known: int, matching: bool = False, sentences: bool = False
    ) -> None:
        super().__init__(width, heads, known)
        self.matching = matching
        each = width // heads
        self.key = nn.Parameter(torch.empty(heads, each, width))
        self.of_sentence = nn.Parameter(torch.empty(heads, each, width)) if sentences else None
        self.contrast = nn.Parameter(torch.empty(heads, width))  # g_h
        self.value = nn.Parameter(torch.empty(heads, each, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put every parameter at its start."""
        super().reset()
        for start in (self.key, self.contrast):
            start.zero_()
        if self.of_sentence is not None:
            self.of_sentence.zero_()
        identity = torch.eye(self.width)
        if self.matching:
            self.down.zero_()
            self.key.copy_(identity.view_as(self.key))
        self.value.copy_(identity.view_as(self.value))
        self.out.copy_(identity)
        if self.matching:
            self.sharpness.fill_(MATCHING / math.log(USUAL))

    def fed(self, known: Tensor) -> Tensor:
        made = super().fed(known)
        return made + known[:, -self.width :] if self.matching else made

    def forward(
        self, known: Tensor, history: Tensor, mask: Tensor, whole: Tensor,
        sentences: Sentences | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is read, (batch, width), and by which weights, (batch, heads, n).

        ``known`` is (batch, known * width), the history (batch, n, width), or (n, width) if all
        read the same one, and ``whole`` (batch, width) its mean.
        """
        wide = known.dtype
        each = self.width // self.heads
        q = self.query(known).unflatten(-1, (self.heads, each))  # (b, h, d)
        sharp = self.sharp(mask, wide)  # (b, h, 1)
        contrast = self.width**0.5 * self.contrast.to(wide) * whole[:, None]  # (b, h, width)

        def asked(key: Tensor) -> Tensor:
            made: Tensor = torch.einsum("bhd,hdx->bhx", q, key.to(wide)) * each**-0.5
            return made

        tokens = asked(self.key)
        if self.of_sentence is None:
            tokens = tokens + contrast
        parts = history.split(PIECE, dim=-2)
        logits = torch.cat(
            [(tokens * sharp) @ part.to(wide).transpose(-1, -2) for part in parts], dim=-1
        )
        if self.of_sentence is not None and sentences is not None:
            by_sentence = (asked(self.of_sentence) + contrast) * sharp
            means = sentences.means.to(wide).transpose(-1, -2)
            logits = logits + sentences.spread(by_sentence @ means)
        least = torch.finfo(wide).min
        weights = logits.masked_fill(~mask[:, None], least).softmax(dim=-1)  # (b, h, n)
        weights = weights * mask[:, None]  # a text without a token reads nothing
        shares = zip(weights.split(PIECE, dim=-1), parts, strict=True)
        read = total(share @ part.to(wide) for share, part in shares)  # (b, h, width)
        joined = torch.einsum("bhx,hdx->bhd", read, self.value.to(wide)).flatten(1)
        return joined @ self.out.T.to(wide), weights


def total(sums: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    first, *others = sums
    return torch.stack([first, *others]).sum(dim=0) if others else first


class STCA(nn.Module):
    """``layers`` of ``CrossAttention``, each knowing the target and what the earlier ones read.

    Called with a target (batch, width), a history (batch, n, width), or (n, width) that all read,
    and the mask (batch, n) of what each may read; returns (batch, width) in fp32 or wider, zeros
    where that is nothing, and the weights of the layers, each (batch, heads, n).

    With ``sentences`` it is told those of the history, too.
    """

    def __init__(
        self, width: int, heads: int, layers: int = 2, matching: bool = False,
        sentences: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(
            CrossAttention(width, heads, i + 1, matching, sentences) for i in range(layers)
        )

    def forward(
        self, target: Tensor, history: Tensor, mask: Tensor, sentences: Sentences | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        known = [target.to(torch.promote_types(history.dtype, torch.float32))]
        weights = []
        # In fp32 also under autocast: what one token weighs among thousands is a small number.
        with torch.autocast(target.device.type, enabled=False):
            whole = mean(history, mask).to(known[0].dtype)
            for layer in self.layers:
                read, by = layer(torch.cat(known, dim=-1), history, mask, whole, sentences)
                known.insert(len(known) - 1, read)
                weights.append(by)
        return known[-2], tuple(weights)
