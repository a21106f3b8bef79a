"""Blocks of tokens: a linear state of each, what all the others' amount to, and sentences in them.

Blocks are ``block`` tokens from the first real one on. Where sentences are kept apart, a block
holds whole ones (``Layout``), and a mask tells which tokens of a block belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .spec import Ends, masked


@dataclass(frozen=True)
class Way:
    """For each of (to,) rows which row it is, and whether there is one."""

    index: Tensor
    some: Tensor

    def take(self, rows: Tensor) -> Tensor:
        """(from, width) to (to, width)."""
        return rows.index_select(0, self.index).mul_(self.some.to(rows.dtype)[:, None])


class Moved(torch.autograd.Function):
    """Rows taken in another order, zero where there is none to take.

    Each row is taken once at most, so that the gradient is the way back: another taking of rows,
    where that of an ordinary index would be a sum, row after row.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, way: Way, back: Way) -> Tensor:
        ctx.back = back
        return way.take(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back.take(grad), None, None


@dataclass(frozen=True)
class Layout:
    """Where tokens stand if sentences are kept apart, each whole in one block."""

    mask: Tensor
    """(batch, slots), True where a slot holds a token; blocks are ``block`` slots."""
    same: Tensor
    """(batch, 1, blocks, block, block), True where two tokens are real and of one sentence."""
    ends: Tensor
    """(batch, 1, blocks, block, 2), True where a token is real and the text's first, or last, token
    is not of its sentence."""
    several: Tensor
    """(batch,), True where a text has more than one sentence."""
    block: int
    ways: tuple[Way, Way] | None = None
    """From tokens to slots and back, both of the flattened batch; None: they stand as they do."""

    @classmethod
    def of(cls, starts: Tensor, mask: Tensor | None, block: int) -> Layout:
        """The layout of texts whose sentences begin where ``starts`` (batch, length) is True.

        The first real token begins a sentence whatever it is; one of more than ``block`` tokens is
        cut into parts of so many, which count as sentences here.
        """
        real = torch.ones_like(starts) if mask is None else mask
        part, within = parts(starts, real, block)
        several = part.amax(dim=1) > 1
        last = torch.stack([torch.ones_like(part[:, 0]), part.amax(dim=1)], dim=1)  # (batch, 2)
        if starts.shape[1] <= block:
            pair = real[:, :, None] & real[:, None] & (part[:, :, None] == part[:, None])
            away = real[:, :, None] & (part[:, :, None] != last[:, None])
            whole = pair[:, None, None], away[:, None, None]
            return cls(real, *whole, several, starts.shape[1])
        places = packed(part, within, real, block)
        batch, length = real.shape
        slots = (int(places.max()) // block + 1) * block
        row = torch.arange(batch, device=real.device)[:, None]
        to, token = places + row * slots, torch.arange(length, device=real.device) + row * length
        held = torch.zeros(batch * slots, dtype=torch.bool, device=real.device)
        source, sentence = (held.long() for _ in range(2))
        held[to[real]] = True
        source[to[real]] = token[real]
        sentence[to[real]] = part[real]
        ways = Way(source, held), Way(to.flatten(), real.flatten())
        held, sentence = (x.view(batch, 1, -1, block) for x in (held, sentence))
        pair = held[..., :, None] & held[..., None, :]
        pair &= sentence[..., :, None] == sentence[..., None, :]
        away = held[..., None] & (sentence[..., None] != last[:, None, None, None])
        return cls(held.view(batch, slots), pair, away, several, block, ways)

    def near(self, ends: Ends | None = None) -> Tensor:
        """Which keys each token is near to: those of its block and, if given, the ends behind."""
        if ends is None:
            return self.same
        real = self.same.any(dim=-1)
        away = [self.ends[..., i] if ends.here[i] else real for i in (0, 1)]
        return torch.cat([self.same, torch.stack(away, dim=-1)], dim=-1)

    def blocks(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """``x`` (batch, heads, length, width) in blocks, with ``ends`` (batch, heads, 2, width)
        behind each: (batch, heads, blocks, block or block + 2, width)."""
        laid = in_blocks(self.lay(x), self.block)
        if ends is None:
            return laid
        return torch.cat([laid, ends[:, :, None].expand(-1, -1, laid.shape[2], -1, -1)], dim=-2)

    def lay(self, x: Tensor) -> Tensor:
        """(batch, heads, length, width) to (batch, heads, slots, width), zero in empty slots."""
        return x if self.ways is None else self.move(x, *self.ways)

    def back(self, x: Tensor) -> Tensor:
        """(batch, heads, slots, width) to (batch, heads, length, width), zero where not real."""
        return x if self.ways is None else self.move(x, *self.ways[::-1])

    def move(self, x: Tensor, way: Way, back: Way) -> Tensor:
        batch, heads, _, width = x.shape
        rows = x.transpose(1, 2).reshape(-1, heads * width)
        made: Tensor = Moved.apply(rows, way, back)  # type: ignore[no-untyped-call]
        return made.view(batch, -1, heads, width).transpose(1, 2)


def parts(starts: Tensor, real: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Each token's sentence, or part of a long one, and its number in it: both (batch, length)."""
    within = since_start(starts, real)[0] % block
    return (real & (within == 0)).long().cumsum(dim=1), within


def since_start(starts: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's number in its sentence, and of its sentence's first token in the text, counted
    over real tokens from 0: both (batch, length)."""
    number = (real.long().cumsum(dim=1) - 1).clamp_min(0)
    first = torch.where(real & starts, number, 0).cummax(dim=1).values
    return number - first, first


def packed(part: Tensor, within: Tensor, real: Tensor, block: int) -> Tensor:
    """Each token's slot (batch, length): parts one after another, none across two blocks."""
    sizes = torch.zeros(len(part), int(part.max()) + 1, dtype=torch.long, device=part.device)
    sizes.scatter_add_(1, part, real.long())
    begin: list[list[int]] = []
    for row in sizes.tolist():
        begin.append([])
        at = 0
        for size in row:
            if at % block + size > block:
                at += -at % block
            begin[-1].append(at)
            at += size
    return torch.gather(torch.tensor(begin, device=part.device), 1, part) + within


def ends_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """The first and the last real of ``x`` (batch, ..., length, width): (batch, ..., 2, width)."""
    if mask is None:
        return torch.stack([x[..., 0, :], x[..., -1, :]], dim=-2)
    ones = mask.to(torch.uint8)
    first, last = ones.argmax(dim=1), mask.shape[1] - 1 - ones.flip(1).argmax(dim=1)
    rows = torch.arange(len(x), device=x.device)
    moved = x.movedim(-2, 1)  # (batch, length, ..., width)
    return torch.stack([moved[rows, first], moved[rows, last]], dim=-2)


def in_blocks(x: Tensor, block: int) -> Tensor:
    """(batch, heads, length, width) to (batch, heads, blocks, block, width), zeros at the end."""
    batch, heads, length, width = x.shape
    pad = -length % block
    x = F.pad(x, (0, 0, 0, pad)) if pad else x
    return x.reshape(batch, heads, -1, block, width)


def linear_state(k_features: Tensor, v: Tensor) -> Tensor:
    """``S`` and, as its last column, ``z``: (batch, heads, features, head_dim + 1), fp32 or wider.

    ``k_features`` are zero where a token is not real. States of pieces of a text add up.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    state = (k_features.transpose(-1, -2) @ v).to(wide)  # (batch, heads, features, head_dim)
    total = k_features.sum(dim=-2, dtype=wide).unsqueeze(-1)  # (batch, heads, features, 1)
    return torch.cat([state, total], dim=-1)


def block_states(k_features: Tensor, v: Tensor, mask: Tensor | None, block: int) -> Tensor:
    """Each block's ``Σ φ(k_j) [v_j, 1]``: (batch, heads, blocks, features, head_dim + 1), wide."""
    return linear_state(in_blocks(masked(k_features, mask), block), in_blocks(v, block))


def others(states: Tensor, neighbours: int = 0) -> Tensor:
    """For each block the sum of ``states`` (batch, heads, blocks, ...) over blocks not near it."""
    blocks, gap = states.shape[2], neighbours + 1
    before, after = torch.cumsum(states, dim=2), torch.cumsum(states.flip(2), dim=2).flip(2)
    shift = (0, 0, 0, 0)
    return F.pad(before[:, :, : blocks - gap], (*shift, gap, 0)) + F.pad(
        after[:, :, gap:], (*shift, 0, gap)
    )


def others_of_pieces(states: list[Tensor]) -> list[Tensor]:
    """As ``others`` over the blocks of all pieces, in the memory of its result alone."""
    far = [torch.empty_like(state) for state in states]
    pairs = [(s[:, :, n], f[:, :, n]) for s, f in zip(states, far, strict=True)
             for n in range(s.shape[2])]  # fmt: skip
    before, after = (torch.zeros_like(pairs[0][0]) for _ in range(2))
    for state, into in pairs:
        into.copy_(before)
        before += state
    for state, into in reversed(pairs):
        into += after
        after += state
    return far
