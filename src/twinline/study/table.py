"""Finished runs as rows, and what can be read off them: differences, retention, costs, laws."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TwinlineError
from ..files import read_lines
from ..statistics import Correlation, is_constant, mean_difference, resampled_pearsons
from .grid import CELL, LATE, NATIVE
from .measure import COMMON, COSTS, PowerLaw, power_law, reached

LINEAR_TIME = ("linear", "hybrid", "hybrid-off", "lightning")
"""Arms that read a whole text in time linear in its length; hybrid-off in blocks that know nothing
of one another, so that its pooling alone sees all of the text."""
GENRES = {
    1500: {"captions": (0, 625), "forums": (625, 1000), "news": (1000, 1500)},
    1379: {"captions": (0, 625), "forums": (625, 879), "news": (879, 1379)},
}
"""Rows of each genre in STS-B's validation and test split, told apart by their pairs (Cer et al.,
arXiv 1708.00055, table 2; the splits are in this order)."""
BUT_FORUMS = "all but forums"
"""Captions and news together: what is left of pairs that prose can hardly hide."""
FEWEST = 20
"""Pairs below which a part of a test says nothing."""
FIELDS = (
    "arm", "pooling", "construction", "carrier", "train_length", "eval_length", "split", "pearson",
    "ci_low", "ci_high", "seed", "pairs", "steps_to_080", "tokens_to_080", "at_most", "seconds",
    "machine",
)  # fmt: skip
"""Of results/NAME.json; ``at_most``: what ``steps_to_080`` and ``tokens_to_080`` are, where a stage
starts above 0.80."""

LATE_TOO = ", late"
"""Behind a pooling's name: scored by late interaction of what it weighs, not by cosine."""


@dataclass(frozen=True)
class Table:
    """The runs of one grid, finished or under way."""

    name: str
    runs: list[list[dict[str, Any]]]
    """The lines of each run's file."""
    sets: dict[tuple[Any, ...], dict[str, Any]]
    """What is known of the pairs of each test, by what names the test."""

    @classmethod
    def read(cls, folder: Path) -> Table:
        """Raises: TwinlineError if nothing is finished there."""
        files = sorted(f for f in folder.glob("*.jsonl") if f.stem != "pairs")
        runs = [read_lines(file) for file in files]
        if not runs:
            raise TwinlineError(
                f"{folder} holds no finished run: give twinline study run the grid first."
            )
        for file, lines in zip(files, runs, strict=True):
            if not lines or lines[0].get("what") != "run":
                raise TwinlineError(
                    f"{file} is no run of a study: name a grid of twinline study run."
                )
        sets = {set_key(line): line for line in read_lines(folder / "pairs.jsonl")}
        return cls(folder.name, runs, sets)

    def beside(self, other: Table, suffix: str) -> tuple[Table, list[str]]:
        """Both tables' runs, and the names of ``other``'s arms in it, which end in ``suffix``."""
        named = []
        for lines in other.runs:
            if lines[0]["arm"] != NATIVE:
                named.append(
                    [
                        {**line, **{k: line[k] + suffix for k in ("run", "arm") if k in line}}
                        for line in lines
                    ]
                )
        arms = list(dict.fromkeys(line["arm"] for lines in named for line in lines
                                  if line["what"] == "test"))  # fmt: skip
        return Table(self.name, [*self.runs, *named], {**other.sets, **self.sets}), arms

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row for every test of every run: ``FIELDS``, and the scores as ``scores``.

        Of a test that was given again, with more pairs or in other numbers, the last counts.
        """
        made = {}
        for lines in self.runs:
            head = lines[0]
            curves = whole_curves(lines)
            for line in lines:
                if line["what"] != "test":
                    continue
                at = reached(curves.get(line["train_length"], []), COMMON)
                costs = at.costs
                how = head["pooling"] + (LATE_TOO if line.get("similarity") == LATE else "")
                made[(head["run"], how, *(line[k] for k in CELL))] = {
                    **{k: head[k] for k in ("seed", "machine")},
                    **{k: v for k, v in line.items() if k != "what"},
                    "pooling": how,
                    "steps_to_080": costs and round(costs["steps"]),
                    "tokens_to_080": costs and round(costs["tokens"]),
                    "at_most": at.at_start if costs else None,
                }
        return list(made.values())

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """Rows whose fields are as given, by seed."""
        found = [r for r in self.rows if all(r.get(k) == v for k, v in wanted.items())]
        return sorted(found, key=lambda r: r["seed"])

    def pearsons(self, rows: list[dict[str, Any]]) -> list[float]:
        """Of each of a test's rows: where they have scored different pairs, on those of all."""
        if len({r["pairs"] for r in rows}) < 2:
            return [r["pearson"] for r in rows]
        every = on_common([scored(self, r) for r in rows])
        return [one.pearson(np.ones(len(one.rows), dtype=np.bool_)) for one in every]

    def mean(self, **wanted: Any) -> float | None:
        """Mean Pearson over the seeds, as ``pearsons``; None if there is none."""
        found = self.find(**wanted)
        return float(np.mean(self.pearsons(found))) if found else None

    def difference(
        self, one: dict[str, Any], other: dict[str, Any], same_seeds: bool = True
    ) -> Correlation | None:
        """Mean over seeds of ``one``'s rows less ``other``'s, bootstrapped over the pairs that all
        of them have scored; None if these are fewer than three, or of several tests.

        Args:
            same_seeds: leave out the seeds that only one side has, if there are others; False where
                a seed is not the same start and order of data in both.
        """
        sides = [self.find(**one), self.find(**other)]
        seeds = {r["seed"] for r in sides[0]} & {r["seed"] for r in sides[1]}
        if seeds and same_seeds:
            sides = [[r for r in side if r["seed"] in seeds] for side in sides]
        if not all(sides) or len({set_key(r)[:-1] for side in sides for r in side}) != 1:
            return None
        every = on_common([scored(self, r) for side in sides for r in side])
        if len(every[0].rows) < 3:
            return None
        scores, first = [made.scores for made in every], len(sides[0])
        return mean_difference(scores[:first], scores[first:], every[0].gold)

    def lengths(self, **wanted: Any) -> list[int]:
        """Evaluation lengths that there are rows of."""
        return sorted({r["eval_length"] for r in self.rows
                       if all(r.get(k) == v for k, v in wanted.items())})  # fmt: skip

    def names(self, field: str) -> list[Any]:
        """Distinct values of a field, in the order of their first row."""
        return list(dict.fromkeys(r[field] for r in self.rows))

    @cached_property
    def poolings(self) -> list[str]:
        """Poolings of the arms."""
        found = {r["pooling"] for r in self.rows if r["arm"] != NATIVE}
        return sorted(found)

    @property
    def curves(self) -> Iterable[tuple[dict[str, Any], int, list[dict[str, float]]]]:
        """Head, training length and curve of every stage, costs counted from the run's start."""
        for lines in self.runs:
            for length, curve in whole_curves(lines).items():
                yield lines[0], length, curve


def set_key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What names the pairs of a test."""
    return tuple(line[k] for k in ("construction", "carrier", "eval_length", "split", "pairs"))


def whole_curves(lines: list[dict[str, Any]]) -> dict[int, list[dict[str, float]]]:
    """Each stage's curve, with what transfer and earlier stages cost before it added."""
    transfer = next((line for line in lines if line["what"] == "transfer"), {})
    spent = {name: float(transfer.get(name, 0.0)) for name in COSTS}
    made = {}
    for line in lines:
        if line["what"] != "curve":
            continue
        points = line["points"]
        made[line["train_length"]] = [
            {**{name: spent[name] + p[name] for name in COSTS}, "pearson": p["pearson"]}
            for p in points
        ]
        spent = {name: spent[name] + points[-1][name] for name in COSTS}
    return made


def unpacked(text: str, kind: str) -> NDArray[np.float64]:
    """What ``run.packed`` made."""
    return np.frombuffer(b64decode(text), dtype=kind).astype(np.float64)


def flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``FIELDS`` alone, for ``results/NAME.json``."""
    return [{name: row.get(name) for name in FIELDS} for row in rows]


@dataclass(frozen=True)
class Scored:
    """The pairs of one row: their place in the split, gold and score, each (pairs,)."""

    rows: NDArray[np.float64]
    gold: NDArray[np.float64]
    scores: NDArray[np.float64]

    def pearson(self, chosen: NDArray[np.bool_], least: int = 3) -> float:
        """Among the chosen pairs; nan if they are fewer than ``least``, or a side is constant."""
        gold, scores = self.gold[chosen], self.scores[chosen]
        if len(gold) < least or is_constant(gold) or is_constant(scores):
            return float("nan")
        return float(np.corrcoef(gold, scores)[0, 1])

    def on(self, rows: NDArray[np.float64]) -> Scored:
        """What is known of those pairs that are in ``rows``."""
        at = np.isin(self.rows, rows)
        return Scored(self.rows[at], self.gold[at], self.scores[at])


def on_common(every: Sequence[Scored]) -> list[Scored]:
    """Each on the pairs that all have scored, which stand in the same order in all."""
    common = reduce(np.intersect1d, (one.rows for one in every))
    return [one.on(common) for one in every]


def scored(table: Table, row: dict[str, Any]) -> Scored:
    """A row's pairs and scores."""
    about = table.sets[set_key(row)]
    return Scored(
        unpacked(about["rows"], "<u2"),
        unpacked(about["gold"], "<f2"),
        unpacked(row["scores"], "<f2"),
    )


def by_place(table: Table, row: dict[str, Any], parts: int = 4) -> list[float]:
    """Pearson among the pairs of which a sentence stands in that part of its text; nan below 20."""
    places = unpacked(table.sets[set_key(row)]["places"], "u1").reshape(-1, 2) / 256
    part = (places * parts).astype(int)  # of each side
    made = scored(table, row)
    return [made.pearson((part == number).any(axis=1), FEWEST) for number in range(parts)]


def by_genre(table: Table, row: dict[str, Any]) -> dict[str, float]:
    """Pearson among the pairs of each genre, and without those of forums; nothing where the pairs
    are not STS-B's.

    Which they are is told by how many pairs the yardstick has scored of the split.
    """
    whole = table.find(arm=NATIVE, construction="native", split=row["split"])
    made = scored(table, row)
    of = {
        name: (made.rows >= start) & (made.rows < end)
        for name, (start, end) in GENRES.get(whole[0]["pairs"] if whole else 0, {}).items()
    }
    if of:
        of[BUT_FORUMS] = ~of["forums"]
    return {name: made.pearson(chosen, FEWEST) for name, chosen in of.items()}


def unseen(table: Table, row: dict[str, Any]) -> float | None:
    """Pearson without the pairs that share a sentence with training; None if that is not known."""
    native = next(
        (s for s in table.sets.values()
         if s["construction"] == "native" and s["split"] == row["split"]), None,
    )  # fmt: skip
    if native is None:
        return None
    shared = dict(
        zip(unpacked(native["rows"], "<u2"), unpacked(native["shared"], "u1"), strict=True)
    )
    made = scored(table, row)
    if any(r not in shared for r in made.rows):
        return None
    return made.pearson(np.array([not shared[r] for r in made.rows]))


def law_of_length(
    table: Table, rows: list[dict[str, Any]]
) -> tuple[PowerLaw | None, tuple[float, float] | None, int]:
    """``measure.power_law`` of the ``rows`` on the pairs that all of them have scored, the 95 %
    interval of its exponent, bootstrapped over these pairs, and how many these are; of fewer than
    20 the law is of each row's own pairs and has no interval.
    """
    lengths = [row["eval_length"] for row in rows]
    every = on_common([scored(table, row) for row in rows])
    if len(every[0].rows) < FEWEST:
        own = min(row["pairs"] for row in rows)
        return power_law(lengths, [row["pearson"] for row in rows]), None, own
    whole = np.ones(len(every[0].rows), dtype=np.bool_)
    law = power_law(lengths, [one.pearson(whole) for one in every])
    drawn = resampled_pearsons([one.scores for one in every], every[0].gold)
    logs = np.log(lengths)
    off = logs - logs.mean()
    slopes = off @ np.log((1 - drawn).clip(1e-6)) / (off @ off)
    low, high = np.nanpercentile(slopes, (2.5, 97.5))
    return law, (float(low), float(high)), len(whole)


def among(table: Table, wanted: dict[str, Any], rows: NDArray[np.float64]) -> Scored | None:
    """Of the native pairs that ``wanted`` has scored those in ``rows``; None if it has not all."""
    for native in table.find(construction="native", **wanted):
        made = scored(table, native).on(rows)
        if len(made.rows) == len(rows):
            return made
    return None


def same_native(table: Table, row: dict[str, Any]) -> Scored | None:
    """The same weights on the unmodified pairs that ``row`` was made from; None if they have not
    been scored."""
    same = {k: row[k] for k in ("arm", "pooling", "seed", "train_length", "split")}
    return among(table, same, scored(table, row).rows)


def against_native(table: Table, row: dict[str, Any]) -> Correlation | None:
    """``row`` less the same weights on the unmodified pairs."""
    native, made = same_native(table, row), scored(table, row)
    if native is None:
        return None
    return mean_difference([made.scores], [native.scores], made.gold)


@dataclass(frozen=True)
class Kept:
    """A row's correlation as a share of the softmax student's on the unmodified pairs."""

    whole: float
    """Of that on all of the split."""
    same: float
    """Of that on the same pairs, with its 95 % interval."""
    low: float
    high: float


def retained(table: Table, row: dict[str, Any]) -> Kept | None:
    """None where the yardstick has not scored the split."""
    made = scored(table, row)
    native = among(table, {"arm": NATIVE, "split": row["split"]}, made.rows)
    whole = table.mean(arm=NATIVE, construction="native", split=row["split"])
    if native is None or whole is None:
        return None
    own, theirs = resampled_pearsons([made.scores, native.scores], made.gold)
    low, high = np.nanpercentile(own / theirs, (2.5, 97.5))
    every = np.ones(len(made.rows), dtype=np.bool_)
    same = made.pearson(every) / native.pearson(every)
    return Kept(row["pearson"] / whole, same, float(low), float(high))


def longest(table: Table) -> int:
    """The longest length trained on."""
    return int(max(r["train_length"] for r in table.rows))


def reported_split(table: Table) -> str:
    """Test, as soon as an arm has been scored on it in prose."""
    tested = any(r["split"] == "test" and r["construction"] == "context" for r in table.rows)
    return "test" if tested else "validation"


def main_test(table: Table, split: str) -> dict[str, Any]:
    """What is asked above all: ``context`` on the study's own prose.

    Raises: TwinlineError if nothing of it is finished.
    """
    for row in table.rows:
        if row["construction"] == "context":
            return {"construction": "context", "carrier": row["carrier"], "split": split}
    raise TwinlineError("No test of the construction context is finished: the report needs one.")


def chosen_student(table: Table) -> tuple[str, str] | None:
    """The linear-time arm and pooling best on validation, at the longest length there."""
    best = None
    at = main_test(table, "validation")
    reported = main_test(table, reported_split(table))
    lengths = [n for n in table.lengths(**at) if n]
    for arm in LINEAR_TIME:
        for pooling in table.poolings:
            if not table.find(arm=arm, pooling=pooling, train_length=longest(table), **reported):
                continue  # a run that is under way has been validated only
            for length in reversed(lengths):
                value = table.mean(
                    arm=arm, pooling=pooling, eval_length=length, train_length=longest(table), **at
                )
                if value is not None and (best is None or (length, value) > best[:2]):
                    best = (length, value, arm, pooling)
                if value is not None:
                    break
    return best and (best[2], best[3])


def main_pooling(table: Table) -> str:
    """That of the chosen student: what pictures of a single pooling show."""
    student = chosen_student(table)
    return student[1] if student else table.poolings[0]


def trained_pooling(pooling: str) -> str:
    """What it was trained with, however it is scored."""
    return pooling.removesuffix(LATE_TOO)
