"""Length-extrapolative training: what lengths a run's steps have, and what they cost.

arXiv 2511.06077, sec. 3.4: train on texts that are short on average, serve much longer ones. Every
draw is a function of the seed and the step's number, so a resumed run reads the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.long import Builder, TooLongError
from ..errors import TwinlineError
from ..options import LengthOptions

MULTIPLE = 8
"""Lengths are rounded to it."""


@dataclass(frozen=True)
class Lengths:
    """The length of every step of a run of ``steps``."""

    options: LengthOptions
    steps: int
    seed: int = 0

    def stage(self, step: int) -> int:
        """Which stage a step belongs to, from 0."""
        shares = self.options.shares or (1.0,) * len(self.options.greatest)
        ends = np.cumsum(shares) / sum(shares) * self.steps
        passed = int(np.searchsorted(ends, step, side="right"))
        return min(passed, len(shares) - 1)

    def __getitem__(self, step: int) -> int:
        """Tokens of each text of a step, virtual ones counted; 0: the short pairs as they are."""
        options = self.options
        least, greatest = options.least, options.greatest[self.stage(step)]
        alpha, mean = options.edge, options.mean
        random = np.random.default_rng((self.seed, step))
        if options.native and random.random() < options.native:
            return 0
        drawn = least + random.beta(alpha, alpha * (1 - mean) / mean) * (greatest - least)
        return int(min(greatest, max(least, round(drawn / MULTIPLE) * MULTIPLE)))

    def real(self, step: int) -> int:
        """Tokens of each text of a step that are really read.

        Of a virtual text as many as ``real`` allows, and half of them in every second step, so that
        what surrounds a sentence is not always equally much.
        """
        length, most = self[step], self.options.real
        if most is None or length <= most:
            return length
        return max(self.options.least, most // 2 if step % 2 else most)

    def pairs(self, step: int, pairs: int) -> int:
        """Pairs of a step: ``pairs``, or as many as have the tokens of so many of ``least``."""
        if self.options.equal == "pairs" or not self[step]:
            return pairs
        return max(1, min(pairs, round(pairs * self.options.least / self.real(step))))

    @cached_property
    def mean(self) -> float:
        """Mean length over the whole run; short pairs as they are count as 0."""
        return float(np.mean([self[step] for step in range(self.steps)]))


@dataclass(frozen=True)
class LongBatch:
    """The texts of a step."""

    rows: list[int]
    """The short pairs that they were made from."""
    texts: list[str]
    """First texts, then second ones, then as many of prose alone as there are more."""
    spans: list[tuple[int, int]]
    """Of each text the tokens of the sentence that counts, from and to; (0, 0) in prose."""
    reads: NDArray[np.bool_] | None = None
    """Which texts' prose each one reads too, (texts, texts); None: each reads itself alone."""


@dataclass(frozen=True)
class LongSteps:
    """A run's pairs as long ones, built step by step: nothing long is kept.

    All texts of a step that lend one another prose take it from one document, as a long text has
    it: how a sentence differs from the rest of its text is what it can be found by.
    ``repeat``, which holds no prose, neither lends nor borrows: it stays as long as what is really
    read.

    Args:
        builders: of the constructions that are trained on; each step draws one of them.
        apart: lend whole texts of prose alone, and nothing of the pairs' own: an average of windows
            can read no part of one. ``keyed`` does so too, as its texts hold other pointers.
    """

    builders: tuple[Builder, ...]
    lengths: Lengths
    apart: bool = False

    def __post_init__(self) -> None:
        trained = {builder.construction for builder in self.builders}
        if "composite" in trained:
            raise TwinlineError(
                "A composite's score is not its first pair's, so that none is trained on: choose "
                "another construction, and evaluate on composites."
            )

    def __call__(self, step: int, rows: Sequence[int]) -> LongBatch:
        """The texts of a step, made of those pairs in ``rows`` that fit.

        Left out are pairs with a sentence longer than the step's texts; if all are, the whole step
        takes the shortest length that one of them fits into.
        """
        random = np.random.default_rng((self.lengths.seed, step, 1))
        builder = self.builders[int(random.integers(len(self.builders)))]
        length, lenders = self.lengths.real(step), 0
        virtual = length if builder.construction == "repeat" else self.lengths[step]
        many = self.lengths.pairs(step, len(rows))
        apart = self.apart or builder.construction == "keyed"
        if apart and virtual > length:
            lenders = round((virtual - length) / length)
            many = min(many, max(2, many - lenders // 2))  # a step's tokens stay what they were
        # At random: a batch is sorted by length, and the first would be the shortest.
        rows = [rows[i] for i in np.sort(random.permutation(len(rows))[:many])]
        if not virtual:
            pairs = builder.pairs
            texts = [side[row] for side in (pairs.sentence1, pairs.sentence2) for row in rows]
            return LongBatch(list(rows), texts, [(0, 0)] * len(texts))
        while True:
            made = {}
            document = builder.document(length, step) if virtual > length else None
            for row in rows:
                try:
                    made[row] = builder.pair(row, length, step, document)
                except TooLongError:
                    continue
            if made:
                break
            length *= 2
        texts = [pair.text1 for pair in made.values()] + [pair.text2 for pair in made.values()]
        spans = [pair.spans[side] for side in (0, 1) for pair in made.values()]
        if virtual <= length:
            return LongBatch(list(made), texts, spans)
        prose = [builder.prose(length, step, number, document) for number in range(lenders)]
        places = np.arange(len(texts) + lenders)[len(texts) if apart else 0 :]
        share = 1.0 if apart else 1 - np.mean([end - start for start, end in spans]) / length
        many = round((virtual - length) / (length * share))
        reads = np.zeros((len(texts) + lenders,) * 2, dtype=np.bool_)
        for i in range(len(texts)):
            others = places[places != i]
            reads[i, random.permutation(others)[:many]] = True
        return LongBatch(list(made), texts + prose, spans + [(0, 0)] * lenders, reads)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that reads these texts is told apart by."""
        return {
            "lengths": asdict(self.lengths.options),
            "steps": self.lengths.steps,
            "builders": [
                [b.construction, b.carrier and b.carrier.name, b.seed] for b in self.builders
            ],
            "seed": self.lengths.seed,
            "apart": self.apart,
        }
