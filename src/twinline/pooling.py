"""From token states to one vector a text: mean, cls, DSE's top-4 concatenation, learned queries.

A pooling is a function ``(hidden_states, mask, sentences) -> vector, weights``: the vector (batch,
width) in fp32 or wider, the weights those that a learned query gave each token, (batch, heads,
length) a layer, none for the others. ``hidden_states`` is the tuple of every layer's output, the
embeddings first, each (batch, length, hidden), and ``mask`` (batch, length) is True where a token
is real. The states may also be (length, hidden), the same for all, with the mask telling who reads
which (all but ``cls``). Only a learned query is told the sentences, if it was made so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .bysentence import SentencePooling
from .stca import STCA, Sentences, mean

Pooled = tuple[Tensor, tuple[Tensor, ...]]


def pool_mean(hidden_states: Sequence[Tensor], mask: Tensor, _: Any = None) -> Pooled:
    """Mean of the last layer's real tokens."""
    return mean(hidden_states[-1], mask), ()


def pool_cls(hidden_states: Sequence[Tensor], mask: Tensor, _: Any = None) -> Pooled:
    """The first real token's state in the last layer."""
    first = mask.to(torch.uint8).argmax(dim=1)
    state = hidden_states[-1][torch.arange(len(first), device=first.device), first]
    return state.to(torch.promote_types(state.dtype, torch.float32)), ()


def pool_top4(hidden_states: Sequence[Tensor], mask: Tensor, _: Any = None) -> Pooled:
    """Token means of the last four layers, concatenated (DSE, arXiv 1908.05161, sec. 4)."""
    return torch.cat([mean(hidden, mask) for hidden in hidden_states[-4:]], dim=-1), ()


class Latent(nn.Module):
    """STCA whose target is learned, so that vectors can be stored; starts as the mean."""

    def __init__(self, width: int, heads: int, sentences: bool = False) -> None:
        super().__init__()
        self.target = nn.Parameter(torch.empty(width))
        self.stca = STCA(width, heads, sentences=sentences)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put the target at its start."""
        self.target.copy_(
            torch.randn(self.target.shape, generator=torch.Generator().manual_seed(0))
        )

    def forward(
        self, hidden_states: Sequence[Tensor], mask: Tensor, sentences: Sentences | None = None
    ) -> Pooled:
        target = self.target.expand(len(mask), -1)
        pooled: Pooled = self.stca(target, hidden_states[-1], mask, sentences)
        return pooled


@dataclass(frozen=True)
class Pooling:
    """A pooling, what width it makes, and its name in sentence-transformers' Pooling module."""

    make: Callable[[int, int, bool], Callable[[Sequence[Tensor], Tensor, Sentences | None], Pooled]]
    """From hidden size, heads, and whether sentences are told; a module if it learns."""
    layers: int = 1
    """How many hidden sizes wide the vector is."""
    by_sentence: bool = False
    """Whether it has a use for sentences."""
    looks: bool = False
    """Whether it is told them by a middle layer, and cannot do without."""
    stock: str | None = None
    """``pooling_mode`` of sentence-transformers; None if only the model itself can do it."""


POOLINGS: dict[str, Pooling] = {
    "mean": Pooling(lambda *_: pool_mean, stock="mean"),
    "cls": Pooling(lambda *_: pool_cls, stock="cls"),
    "top4": Pooling(lambda *_: pool_top4, layers=4),
    "latent": Pooling(Latent, by_sentence=True),
    "sentence": Pooling(
        lambda width, heads, _: SentencePooling(width, heads), by_sentence=True, looks=True
    ),
}
