"""What is kept of a candidate beside its vector: the mean of its token states, block by block.

Target-to-history cross attention (arXiv 2511.06077) then reads a long candidate for one query
without encoding it again: a text of N tokens stores N / 128 states, in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128
"""Real tokens of a block."""


@dataclass(frozen=True)
class Stored:
    """Texts as they are stored: vectors and block states."""

    vectors: Tensor
    """(texts, dimension), fp32."""
    states: Tensor
    """(texts, blocks, hidden), float16 where stored; zeros behind a text's last block."""
    mask: Tensor
    """(texts, blocks), True where a text has a block."""

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, chosen: slice | Tensor) -> Stored:
        return Stored(self.vectors[chosen], self.states[chosen], self.mask[chosen])

    def repeated(self, times: int) -> Stored:
        """One text as many."""
        return Stored(
            self.vectors.expand(times, -1),
            self.states.expand(times, -1, -1),
            self.mask.expand(times, -1),
        )


def block_states(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the token states over blocks of ``BLOCK`` tokens; gradients flow.

    Args:
        states: (batch, length, hidden), padded on the right.
        mask: (batch, length), True where a token is real.
    Returns: (batch, blocks, hidden) in fp32 or wider, and which blocks there are, (batch, blocks).
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    gap = -states.shape[1] % BLOCK
    real = F.pad(mask, (0, gap)).unflatten(1, (-1, BLOCK))[..., None].to(wide)
    parts = F.pad(states.to(wide), (0, 0, 0, gap)).unflatten(1, (-1, BLOCK))
    count = real.sum(dim=2)
    return (parts * real).sum(dim=2) / count.clamp_min(1.0), count[..., 0] > 0


def joined(parts: Sequence[Stored]) -> Stored:
    """Several as one, padded to the most blocks."""
    most = max(part.states.shape[1] for part in parts)
    gaps = [most - part.states.shape[1] for part in parts]
    return Stored(
        torch.cat([part.vectors for part in parts]),
        torch.cat([F.pad(p.states, (0, 0, 0, gap)) for p, gap in zip(parts, gaps, strict=True)]),
        torch.cat([F.pad(p.mask, (0, gap)) for p, gap in zip(parts, gaps, strict=True)]),
    )
