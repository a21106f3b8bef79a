"""Pooling by the sentence: stacked queries look for the sentence that matters and read it alone.

As STCA (``stca``), with a learned target and its queries ``q_i``, but what a layer weighs are
sentences:

    o_i = concat_h(Σ_j a_hj x_jh),    a_hj = S_h(s(j)) T(j),
    S_h = softmax_s(log n_s + s_h log(n) · ((W_s,h^T q_ih / √d + √width (g_h ⊙ m + l_h ⊙ b_s))·s
          + √width (a_h cos(P s, P b_s) + b_h cos(P s, P m)))

with s the mean of a sentence of ``n_s`` tokens, ``b_s`` that over the sentences beside it
(``NEAR``) and m that over all of them; g and l are learned vectors a head, P a learned projection.
T is what a state weighs within its sentence (``Within``). Prose goes on with what it speaks of from
sentence to sentence: what does not belong stands out (``benchmarks/finding.py``).

- Means are of a middle layer's states, which say more of this than the last one's, and no gradient
  goes back from there: the encoder is not to be bent until its sentences are found.
- There is no ``W_v`` and no ``W_o``: a text whose sentence is found has that sentence's vector,
  whatever has been learned of finding it.
- As it weighs mean states alone, it can be taught with sentences that were read a single time
  (``training.finding``).

At the start ``W_s``, g, l, a, b and ``Within`` are zero: the output is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .stca import PIECE, Asking, Sentences, total

SUBSPACE = 64
"""Dimensions in which a sentence's likeness to its neighbours is told."""
INSIDE = 64
"""Hidden units by which a state's share in its sentence is told."""


class Within(nn.Module):
    """What a state weighs within its sentence: the logits ``w · gelu(U x_j + V s_j + u)``, with s_j
    the sentence's mean; equal ones at the start.

    A sentence without a full stop, as a headline has none, runs on into the one behind it. A
    learned look tells the two apart.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_state = nn.Parameter(torch.empty(INSIDE, width))  # U
        self.of_sentence = nn.Parameter(torch.empty(INSIDE, width))  # V
        self.shift = nn.Parameter(torch.empty(INSIDE))  # u
        self.out = nn.Parameter(torch.empty(INSIDE))  # w
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put every parameter at its start."""
        generator = torch.Generator().manual_seed(0)
        for weight in (self.of_state, self.of_sentence):
            made = torch.randn(weight.shape, generator=generator)
            weight.copy_(made * weight.shape[1] ** -0.5)
        self.shift.zero_()
        self.out.zero_()

    def forward(self, states: Tensor, starts: Tensor, real: Tensor) -> Tensor:
        """(batch, n) of the states (batch, n, width) of texts whose sentences begin at ``starts``
        (batch, n)."""
        plain = Sentences.of(states, starts, real)
        wide = plain.means.dtype
        known = plain.means @ self.of_sentence.T.to(wide) + self.shift.to(wide)  # (b, sentences, k)
        made: list[Tensor] = []
        for x, number in zip(states.split(PIECE, 1), plain.number.split(PIECE, 1), strict=True):
            whose = number[..., None].expand(-1, -1, INSIDE)
            seen = x.to(wide) @ self.of_state.T.to(wide) + torch.gather(known, 1, whose)
            made.append(F.gelu(seen) @ self.out.to(wide))
        marks: Tensor = torch.cat(made, dim=1)
        return marks


class OfSentences(nn.Module):
    """What a layer's weights owe to the sentences of its history."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(heads, width // heads, width))  # W_s
        self.contrast = nn.Parameter(torch.empty(heads, width))  # g
        self.nearby = nn.Parameter(torch.empty(heads, width))  # l
        self.subspace = nn.Parameter(torch.empty(min(SUBSPACE, width), width))  # P
        self.likeness = nn.Parameter(torch.empty(2, heads))  # a, b
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put every parameter at its start."""
        for start in (self.key, self.contrast, self.nearby, self.likeness):
            start.zero_()
        made = torch.randn(self.subspace.shape, generator=torch.Generator().manual_seed(0))
        self.subspace.copy_(made * self.subspace.shape[1] ** -0.5)

    def forward(self, q: Tensor, sentences: Sentences) -> Tensor:
        """Logits (batch, heads, sentences) of the queries ``q`` (batch, heads, width / heads)."""
        wide, (_, each, width) = q.dtype, self.key.shape
        means, near = sentences.means.to(wide), sentences.near.to(wide)
        whole = sentences.whole.to(wide)
        contrast = self.contrast.to(wide) * whole[:, None]  # (b, h, width)
        asked = torch.einsum("bhd,hdx->bhx", q, self.key.to(wide)) * each**-0.5
        logits = (asked + width**0.5 * contrast) @ means.transpose(-1, -2)  # (b, h, sentences)
        beside = self.nearby.to(wide) @ (means * near).transpose(-1, -2)
        s, n, m = (F.normalize(x @ self.subspace.T.to(wide), dim=-1) for x in (means, near, whole))
        to_near = (s * n).sum(dim=-1)  # (b, sentences), or (sentences,) if all read the same
        to_whole = (s @ m.unsqueeze(-1)).squeeze(-1) if s.ndim == 3 else m @ s.T
        a, b = self.likeness.to(wide)[..., None]  # (h, 1) each
        unlike = beside + a * to_near.unsqueeze(-2) + b * to_whole[:, None]
        made: Tensor = logits + width**0.5 * unlike
        return made


class SentenceAttention(Asking):
    """One layer: the query from what is known, and the sentences that it reads."""

    def __init__(self, width: int, heads: int, known: int) -> None:
        super().__init__(width, heads, known)
        self.of_sentences = OfSentences(width, heads)
        self.reset()

    def forward(
        self, known: Tensor, history: Tensor, mask: Tensor, sentences: Sentences
    ) -> tuple[Tensor, Tensor]:
        """What is read, (batch, width), and by which weights, (batch, heads, n); arguments as those
        of ``SentencePooling.read``."""
        wide = known.dtype
        q = self.query(known).unflatten(-1, (self.heads, -1))  # (b, h, d)
        logits = sentences.spread(self.of_sentences(q, sentences) * self.sharp(mask, wide))
        if mask.dtype != torch.bool:
            logits = logits + torch.log(mask.to(wide).clamp_min(1.0))[:, None]
        real = (mask > 0)[:, None]
        weights = logits.masked_fill(~real, torch.finfo(wide).min).softmax(dim=-1)  # (b, h, n)
        weights = weights * real  # a text without a token reads nothing
        parts = zip(weights.split(PIECE, dim=-1), history.split(PIECE, dim=-2), strict=True)
        return total(self.own(share, part.to(wide)) for share, part in parts), weights

    def own(self, share: Tensor, part: Tensor) -> Tensor:
        """Sum of the states (..., n, width) by the weights (b, h, n), each head's part by its own:
        (b, width)."""
        split = part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # (..., h, n, d)
        made: Tensor = (share.unsqueeze(-2) @ split).flatten(1)
        return made


class SentencePooling(nn.Module):
    """Pooling by the sentence, in two layers, with a learned target.

    ``read`` is given the history (batch, n, width), or (n, width) that all read; a mask (batch, n)
    of what each may read, or of how many tokens each state is the mean (0: not to be read); and its
    sentences. It returns (batch, width) in fp32 or wider, zeros where there is nothing to read, and
    the weights of the layers, each (batch, heads, n).
    """

    def __init__(self, width: int, heads: int, layers: int = 2) -> None:
        super().__init__()
        self.target = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(SentenceAttention(width, heads, i + 1) for i in range(layers))
        self.within = Within(width)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put the target at its start."""
        self.target.copy_(
            torch.randn(self.target.shape, generator=torch.Generator().manual_seed(0))
        )

    def look(self, states: Tensor, starts: Tensor, real: Tensor) -> Sentences:
        """The sentences as it is to be told them, by states (batch, n, width) of some layer.

        ``starts`` (batch, n) is True where a sentence begins, ``real`` (batch, n) where a token is
        pooled.
        """
        with torch.autocast(states.device.type, enabled=False):
            return Sentences.of(states, starts, real, self.within(states, starts, real))

    def read(
        self, history: Tensor, mask: Tensor, sentences: Sentences
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        wide = torch.promote_types(history.dtype, torch.float32)
        known = [self.target.expand(len(mask), -1).to(wide)]
        weights = []
        # In fp32 also under autocast: what one token weighs among thousands is a small number.
        with torch.autocast(history.device.type, enabled=False):
            for layer in self.layers:
                read, by = layer(torch.cat(known, dim=-1), history, mask, sentences)
                known.insert(len(known) - 1, read)
                weights.append(by)
        return known[-2], tuple(weights)

    def forward(
        self, hidden_states: Sequence[Tensor], mask: Tensor, sentences: Sentences | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert sentences is not None
        return self.read(hidden_states[-1], mask, sentences)
