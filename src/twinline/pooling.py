"""From token states to one vector a text: mean, cls, DSE's top-4 concatenation, a learned query.

A pooling is a function ``(hidden_states, mask) -> vector, weights``: the vector (batch, width) in
fp32 or wider, the weights those that a learned query gave each token, (batch, heads, length) a
layer, none for the others. ``hidden_states`` is the tuple of every layer's output, the embeddings
first, each (batch, length, hidden), and ``mask`` (batch, length) is True where a token is real. The
states may also be (length, hidden), the same for all, with the mask telling who reads which (all
but ``cls``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .stca import STCA

Pooled = tuple[Tensor, tuple[Tensor, ...]]

PIECE = 4096
"""Tokens that are summed at a time."""


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


def pool_mean(hidden_states: Sequence[Tensor], mask: Tensor) -> Pooled:
    """Mean of the last layer's real tokens."""
    return mean(hidden_states[-1], mask), ()


def pool_cls(hidden_states: Sequence[Tensor], mask: Tensor) -> Pooled:
    """The first real token's state in the last layer."""
    first = mask.to(torch.uint8).argmax(dim=1)
    state = hidden_states[-1][torch.arange(len(first), device=first.device), first]
    return state.to(torch.promote_types(state.dtype, torch.float32)), ()


def pool_top4(hidden_states: Sequence[Tensor], mask: Tensor) -> Pooled:
    """Token means of the last four layers, concatenated (DSE, arXiv 1908.05161, sec. 4)."""
    return torch.cat([mean(hidden, mask) for hidden in hidden_states[-4:]], dim=-1), ()


class Latent(nn.Module):
    """STCA whose target is learned, so that vectors can be stored; starts as the mean."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.target = nn.Parameter(torch.empty(width))
        self.stca = STCA(width, heads)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put the target at its start."""
        self.target.copy_(
            torch.randn(self.target.shape, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, hidden_states: Sequence[Tensor], mask: Tensor) -> Pooled:
        pooled: Pooled = self.stca(self.target.expand(len(mask), -1), hidden_states[-1], mask)
        return pooled


@dataclass(frozen=True)
class Pooling:
    """A pooling, what width it makes, and its name in sentence-transformers' Pooling module."""

    make: Callable[[int, int], Callable[[Sequence[Tensor], Tensor], Pooled]]
    """From hidden size and heads; a module if it has something to learn."""
    layers: int = 1
    """How many hidden sizes wide the vector is."""
    stock: str | None = None
    """``pooling_mode`` of sentence-transformers; None if only the model itself can do it."""


POOLINGS: dict[str, Pooling] = {
    "mean": Pooling(lambda width, heads: pool_mean, stock="mean"),
    "cls": Pooling(lambda width, heads: pool_cls, stock="cls"),
    "top4": Pooling(lambda width, heads: pool_top4, layers=4),
    "latent": Pooling(Latent),
}
