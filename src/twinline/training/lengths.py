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
        """Tokens of each text of a step."""
        options = self.options
        least, greatest = options.least, options.greatest[self.stage(step)]
        alpha, mean = options.edge, options.mean
        random = np.random.default_rng((self.seed, step))
        drawn = least + random.beta(alpha, alpha * (1 - mean) / mean) * (greatest - least)
        return int(min(greatest, max(least, round(drawn / MULTIPLE) * MULTIPLE)))

    def pairs(self, step: int, pairs: int) -> int:
        """Pairs of a step: ``pairs``, or as many as have the tokens of so many of mean length."""
        if self.options.equal == "pairs":
            return pairs
        return max(1, round(pairs * self.mean / self[step]))

    @cached_property
    def mean(self) -> float:
        """Mean length over the whole run."""
        return float(np.mean([self[step] for step in range(self.steps)]))

    def report(self) -> str:
        """Mean and greatest length of each stage, and what the mean saves, as a Markdown table."""
        lines = ["| stage | steps | mean length | greatest | tokens against always the greatest |"]
        lines += ["|---|---|---|---|---|"]
        for stage, greatest in enumerate(self.options.greatest):
            drawn = [self[step] for step in range(self.steps) if self.stage(step) == stage]
            mean = float(np.mean(drawn)) if drawn else 0.0
            cells = (f"{len(drawn)}", f"{mean:,.0f}", f"{greatest:,}", f"{mean / greatest:.0%}")
            lines.append(f"| {stage + 1} | {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass(frozen=True)
class LongSteps:
    """A run's pairs as long ones, built step by step: nothing long is kept."""

    builder: Builder
    lengths: Lengths

    def __post_init__(self) -> None:
        if self.builder.construction == "composite":
            raise TwinlineError(
                "A composite's score is not its first pair's, so that none is trained on: choose "
                "another construction, and evaluate on composites."
            )

    def __call__(self, step: int, rows: Sequence[int]) -> tuple[list[int], list[str], list[str]]:
        """The pairs of a step, of those in ``rows``, and both their texts.

        Left out are pairs with a sentence longer than the step's texts; if all are, the whole step
        takes the shortest length that one of them fits into.
        """
        length = self.lengths[step]
        rows = rows[: self.lengths.pairs(step, len(rows))]
        while True:
            made = {}
            for row in rows:
                try:
                    made[row] = self.builder.pair(row, length, epoch=step)
                except TooLongError:
                    continue
            if made:
                break
            length *= 2
        texts = [(pair.text1, pair.text2) for pair in made.values()]
        return list(made), [first for first, _ in texts], [second for _, second in texts]

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that reads these texts is told apart by."""
        return {
            "lengths": asdict(self.lengths.options),
            "steps": self.lengths.steps,
            "construction": self.builder.construction,
            "carrier": self.builder.carrier and self.builder.carrier.name,
            "seeds": [self.lengths.seed, self.builder.seed],
        }
