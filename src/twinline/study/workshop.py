"""What the runs of a grid share, each made when it is first asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..conversion import convert, learns, transfer
from ..data import Pairs, load, load_texts
from ..data.carriers import load_carrier
from ..data.long import Builder, LongPairs, long_pairs
from ..encoder import Encoder
from ..errors import TwinlineError
from ..files import read_lines, whole_file, write_whole
from ..hashing import fingerprint
from ..loop import Run
from ..recipe import chosen
from ..teacher import Teacher
from ..training import distill, teach
from ..training.distill import twin_vectors
from .grid import FinishOptions, Grid, RunPlan
from .measure import flops

SHORT = 32
"""Tokens of a text at native length, for its floating-point operations."""
MOST_PAIRS = 2**16
"""Of a split that is tested on: a result keeps each row's number in two bytes."""
SEED = 0
"""Of what is tested on: the same texts for every run."""


class Workshop:
    """What the runs of a grid share: teacher, softmax student, transferred models, long pairs.

    Everything is made when it is first asked for, and lies under ``work``.
    """

    def __init__(self, grid: Grid, work: Path, show_progress: bool | None = None) -> None:
        self.grid, self.show = grid, show_progress
        self.base = work / f"base-{grid.teacher_identity}"
        self.work = work
        self.train = load(grid.data, "train")
        self.pairs = lru_cache(maxsize=None)(self._pairs)
        self.carrier = lru_cache(maxsize=None)(self._carrier)
        self.long = lru_cache(maxsize=4)(self._long)
        self.goals = lru_cache(maxsize=1)(self._goals)
        self.tokenizer = Encoder(grid.base).tokenizer

    def _pairs(self, split: str) -> Pairs:
        return load(self.grid.data, split)

    def _carrier(self, source: str, split: str) -> Any:
        return load_carrier(source, split, self.tokenizer)

    def builders(
        self, pairs: Pairs, seed: int, constructions: Sequence[str] = ()
    ) -> tuple[Builder, ...]:
        """What long texts of training are made by: every construction (none given: the study's) in
        every prose."""
        grid = self.grid
        return tuple(
            Builder(pairs, construction, self.tokenizer, self.carrier(name, "train"), seed)
            for name in grid.train_carriers or (grid.carrier,)
            for construction in constructions or grid.constructions
        )

    def planted(self, options: FinishOptions) -> Pairs:
        """Training pairs, and beside them pairs of other texts, whose scores nobody knows."""
        draw = np.random.default_rng(SEED)
        own = self.train.select(draw.permutation(len(self.train))[: options.find.pairs])
        first, second = list(own.sentence1), list(own.sentence2)
        for name in options.sources:
            texts = sorted(set(load(name, "train", need_score=False).sentence2))
            order = draw.permutation(len(texts))[: 2 * options.planted].tolist()
            half = len(order) // 2
            first += [texts[i] for i in order[:half]]
            second += [texts[i] for i in order[half : 2 * half]]
        return replace(own, sentence1=first, sentence2=second, score=None, scale=None)

    def curve_pairs(self, plan: RunPlan, stage: int) -> Pairs:
        """What a stage's curve is of."""
        grid = self.grid
        return self.long(
            grid.constructions[0], plan.stages[stage], grid.carrier, "validation", grid.curve_pairs
        ).pairs

    def teacher(self) -> Teacher:
        """The cross-encoder and the softmax twin on the labels, averaged."""
        grid, cross, twin = self.grid, self.base / "cross-encoder", self.base / "twin"
        if not (cross / "teacher.json").is_file():
            teach(
                grid.base, self.train, cross, validation=self.pairs("validation"),
                options=grid.teach, folder=self.base / "cross-encoder.work",
                show_progress=self.show,
            )  # fmt: skip
        if not (twin / "config.json").is_file():
            made = Encoder(convert(grid.base, attention="softmax"))
            distill(
                made, self.train, validation=self.pairs("validation"),
                options=replace(grid.twin, alpha=0.0), folder=self.base / "twin.work",
                show_progress=self.show,
            )  # fmt: skip
            made.save(twin)
        return Teacher(cross, twin, cache=self.base / "scores.sqlite")

    def teacher_scores(self) -> Any:
        """Of the training pairs, (pairs,)."""
        file = self.base / "scores.npy"
        if not file.is_file():
            both = list(zip(self.train.sentence1, self.train.sentence2, strict=True))
            scores = self.teacher().predict(both, show_progress=self.show)
            with whole_file(file) as into:  # another run may be reading
                np.save(into, scores)
        return np.load(file)

    def softmax(self) -> Encoder:
        """The softmax student at native length: the yardstick, and what vectors are drawn to."""
        folder = self.base / "softmax"
        if not (folder / "config.json").is_file():
            made = Encoder(convert(self.grid.base, attention="softmax"))
            distill(
                made, self.train, teacher_scores=self.teacher_scores(),
                validation=self.pairs("validation"), options=self.grid.softmax,
                folder=self.base / "softmax.work", show_progress=self.show,
            )  # fmt: skip
            made.save(folder)
        return Encoder(folder)

    def softmax_costs(self) -> dict[str, Any]:
        """The last line of the softmax student's log: what it cost is part of what every arm does.

        Raises: TwinlineError if the log was removed.
        """
        file = self.base / "softmax.work" / "metrics.jsonl"
        lines = read_lines(file)
        if not lines:
            raise TwinlineError(
                f"{file} is gone, which tells what the softmax student cost: remove "
                f"{self.base / 'softmax'} too, and it is made again."
            )
        return lines[-1]

    def _goals(self) -> Tensor:
        """The softmax student's vectors of the training pairs' texts."""
        texts = [*self.train.sentence1, *self.train.sentence2]
        return twin_vectors(self.softmax(), texts)

    def start(self, plan: RunPlan) -> tuple[Encoder, dict[str, float]]:
        """The softmax student with the arm's attention, after transfer, and what both cost.

        A pair is far shorter at its own length than in the first stage: what a pair means is
        learned there, by one student for all arms.
        """
        grid = self.grid
        # Transfer does not see what pools.
        options = replace(plan.model, pooling="mean", words_only=False)
        own = [grid.teacher_identity, sorted(chosen(grid.transfer).items()), grid.transfer_texts,
               sorted(chosen(options).items())]  # fmt: skip
        folder = self.work / f"start-{plan.kind.attention}-{fingerprint(map(str, own))[:8]}"
        costs = folder / "costs.json"
        if not costs.is_file():
            softmax = self.softmax().model
            model = convert(self.base / "softmax", **options.given())
            run = Run()
            if grid.transfer.steps and learns(model):
                run = transfer(
                    model, load_texts(list(grid.transfer_texts)), grid.transfer,
                    folder=folder.with_suffix(".work"), show_progress=self.show,
                )  # fmt: skip
            Encoder(model).save(folder)
            before = self.softmax_costs()
            cost = {
                "tokens": before["tokens"] + run.tokens,
                "transfer_tokens": run.tokens,
                "seconds": round(before["seconds"] + run.seconds, 1),
                "transfer_seconds": round(run.seconds, 1),
                # Transfer: forward once by softmax, once and back by the new attention's own part.
                "flops": 3 * flops(softmax.config, before["tokens"], SHORT)
                + 2 * flops(model.config, run.tokens, SHORT),
            }
            write_whole(costs, json.dumps(cost))
        model = convert(folder, **plan.model.given())
        return Encoder(model, windows=plan.kind.windows), json.loads(costs.read_text())

    def _long(
        self, construction: str, length: int, carrier: str, split: str, count: int | None,
        others: bool = False,
    ) -> LongPairs:  # fmt: skip
        """The fixed pairs of a test: the same for every run; ``others`` are those that tests take
        last, and none of the first where the split has twice as many."""
        pairs = self.pairs(split)
        if len(pairs) > MOST_PAIRS:
            raise TwinlineError(
                f"{self.grid.data} has {len(pairs):,} pairs in {split}; results tell the rows of "
                f"up to {MOST_PAIRS:,}: give data with fewer."
            )
        rows = np.arange(len(pairs))
        if count is not None and count < len(pairs):
            drawn = np.random.default_rng(SEED).permutation(len(pairs))
            rows = np.sort(drawn[-count:] if others else drawn[:count])
        if construction == "native":
            return LongPairs(pairs.select(rows.tolist()), rows, np.zeros((len(rows), 2)), 0)
        return long_pairs(
            pairs, construction, length, self.tokenizer, self.carrier(carrier, split),
            rows=rows.tolist(), seed=SEED, skip_longer=True, workers=self.grid.train.workers,
            show_progress=self.show,
        )  # fmt: skip
