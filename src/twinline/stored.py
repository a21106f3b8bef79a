"""What is kept of a candidate beside its vector, in float16: states by the block or the sentence.

Target-to-history cross attention (arXiv 2511.06077) then reads a long candidate for one query
without encoding it again: a text of N tokens stores N / 128 means of its token states. Late
interaction compares sentences: of a text of any length it stores the ``KEPT`` of them that its
pooling weighs most, and what they weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .stca import Sentences
from .windows import Windows

BLOCK = 128
"""Real tokens of a block."""
KEPT = 32
"""Sentences of a text: chosen among 4, 8, 16, 32, 64 and all of them on 200 validation pairs of
2,048 tokens, of which all say no more (docs/architecture.md)."""
FAINT = 1e-9
"""The least share that a logarithm is taken of."""


@dataclass(frozen=True)
class Stored:
    """Texts as they are stored: vectors, and the states of their blocks or sentences."""

    vectors: Tensor
    """(texts, dimension), fp32."""
    states: Tensor
    """(texts, states, hidden), float16 where stored; zeros behind a text's last one."""
    mask: Tensor
    """(texts, states), True where a text has one."""
    shares: Tensor
    """(texts, states), what each weighs in its text, fp32; their sum is at most one."""

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, chosen: slice | Tensor) -> Stored:
        return Stored(*(part[chosen] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.vectors, self.states, self.mask, self.shares

    def repeated(self, times: int) -> Stored:
        """One text as many."""
        return Stored(*(part.expand(times, *part.shape[1:]) for part in self.parts))

    def halved(self) -> Stored:
        """With its states in float16."""
        return Stored(self.vectors, self.states.half(), self.mask, self.shares)

    def widened(self) -> Stored:
        """With its states in fp32."""
        return Stored(self.vectors, self.states.float(), self.mask, self.shares)


def block_states(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the token states over blocks of ``BLOCK`` tokens; gradients flow.

    Args:
        states: (batch, length, hidden), padded on the right.
        mask: (batch, length), True where a token is real.
    Returns: (batch, blocks, hidden) in fp32 or wider, which blocks there are, (batch, blocks), and
        each one's share of its text's tokens, likewise.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    gap = -states.shape[1] % BLOCK
    real = F.pad(mask, (0, gap)).unflatten(1, (-1, BLOCK))[..., None].to(wide)
    parts = F.pad(states.to(wide), (0, 0, 0, gap)).unflatten(1, (-1, BLOCK))
    count = real.sum(dim=2)
    shares = (count / count.sum(dim=1, keepdim=True).clamp_min(1.0))[..., 0]
    return (parts * real).sum(dim=2) / count.clamp_min(1.0), shares > 0, shares


def sentence_states(
    states: Tensor, starts: Tensor, mask: Tensor, weights: Tensor, windows: Windows | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``KEPT`` sentences that a learned pooling weighs most; gradients flow.

    A sentence's state is the mean of its tokens' by the pooling's weights, and its share their sum.

    Args:
        states: (batch, length, hidden), padded on the right.
        starts: (batch, length), True where a sentence begins.
        mask: (batch, length), True where a token is pooled.
        weights: (batch, heads, length), the pooling's; of texts that read one another's prose
            (batch, heads, batch * length), of which each text's own are taken.
        windows: of texts, of which each is a row; None: each row is a text.
    Returns: (texts, sentences, hidden) in fp32 or wider, those with the greatest shares first;
        which there are, (texts, sentences); and the shares, likewise.
    """
    batch, length = mask.shape
    if weights.shape[2] != length:
        weights = weights.unflatten(2, (batch, length)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    each = weights.mean(dim=1).to(torch.promote_types(weights.dtype, torch.float32)) * mask
    sentences = Sentences.of(states, starts, mask, torch.log(each.clamp_min(FAINT**2)))
    made = sentences.means
    shares = each.new_zeros(made.shape[:2]).scatter_add(1, sentences.number, each)
    if windows is not None:
        shares = shares * windows.share().to(shares)[:, None]
        own = [windows.owner == text for text in range(int(windows.owner.max()) + 1)]
        pad = torch.nn.utils.rnn.pad_sequence
        made = pad([made[of].flatten(0, 1) for of in own], batch_first=True)
        shares = pad([shares[of].flatten() for of in own], batch_first=True)
    shares, at = shares.topk(min(KEPT, shares.shape[1]), dim=1)
    made = torch.gather(made, 1, at[..., None].expand(-1, -1, made.shape[2]))
    return made * (shares > 0)[..., None], shares > 0, shares


def joined(texts: Sequence[Stored]) -> Stored:
    """Several as one, padded to the most states."""
    most = max(one.states.shape[1] for one in texts)
    gaps = [most - one.states.shape[1] for one in texts]
    return Stored(
        torch.cat([one.vectors for one in texts]),
        torch.cat([F.pad(x.states, (0, 0, 0, gap)) for x, gap in zip(texts, gaps, strict=True)]),
        torch.cat([F.pad(x.mask, (0, gap)) for x, gap in zip(texts, gaps, strict=True)]),
        torch.cat([F.pad(x.shares, (0, gap)) for x, gap in zip(texts, gaps, strict=True)]),
    )
