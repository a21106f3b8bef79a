"""Pairs of texts with a score on a declared scale: tasks by name, and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import check_value
from ..errors import TwinlineError
from ..scales import LABELS, Range, check_range, off_scale, score_vector
from ..statistics import is_constant
from ..text import text_list
from .tables import PAIR_COLUMNS, Source, Table, read_table
from .texts import data_folder

SCORE_COLUMNS = ("score", "label")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of texts, in order, with their scores if they have any.

    Raises: TwinlineError if the columns are no texts and no numbers, differ in length, or a score
        lies off the scale.
    """

    sentence1: list[str]
    sentence2: list[str]
    score: NDArray[np.float64] | None
    """``(pairs,)``; a higher score is a closer pair, unless ``scale`` is None."""
    scale: Range | None
    """The scores of the most distant and the closest pair; None for class numbers."""
    name: str
    split: str

    def __post_init__(self) -> None:
        columns: dict[str, Any] = {
            name: list(text_list(getattr(self, name), f"{name} of {self.name}"))
            for name in ("sentence1", "sentence2")
        }
        if self.score is not None:
            columns["score"] = score_vector(self.score, f"score of {self.name}")
        if len(set(map(len, columns.values()))) > 1:
            raise TwinlineError(f"{self.name}: the columns of pairs differ in length.")
        if self.scale is not None:
            columns["scale"] = check_range(self.scale)
        for name, value in columns.items():
            object.__setattr__(self, name, value)
        if self.score is not None and self.scale is not None:
            place = off_scale(self.score, self.scale, LABELS)
            if place is not None:
                raise scale_error(
                    f"{self.name}, pair {place + 1}", "score", self.score[place], self.scale
                )

    def __len__(self) -> int:
        return len(self.sentence1)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Pairs:
        """The pairs at ``indices``, in their order."""
        return replace(
            self,
            sentence1=[self.sentence1[i] for i in indices],
            sentence2=[self.sentence2[i] for i in indices],
            score=None if self.score is None else self.score[np.asarray(indices, np.int64)],
        )

    @property
    def unit_score(self) -> NDArray[np.float64]:
        """The scores mapped from ``scale`` to 0..1, ``(pairs,)``.

        Raises:
            TwinlineError: there are no scores, or they are class numbers.
        """
        if self.score is None or self.scale is None:
            lack = "no scores" if self.score is None else "class numbers instead of scores"
            raise TwinlineError(f"{self.name} has {lack}: take pairs with scores on a scale.")
        low, high = self.scale
        return (self.score - low) / (high - low)


def scale_error(place: str, column: str, score: float, scale: Range) -> TwinlineError:
    """What is said of a score that lies off its scale."""
    return TwinlineError(
        f"{place}: the {column} {score:g} lies outside the scale {scale[0]:g} to {scale[1]:g}; "
        "correct the row or the scale."
    )


@dataclass(frozen=True)
class Task:
    """A public set of pairs."""

    scale: Range | None
    """None: three classes, whose numbers are no scale."""
    splits: tuple[str, ...]
    """The splits whose labels are public; the second is the one to validate on."""
    hub: tuple[str, ...]
    """Repository, and configuration if it has several, on the hub."""
    hub_factor: float = 1.0
    """What the hub's scores are multiplied by to come onto ``scale``."""
    reversed: bool = False
    """Label 0 is the closest pair (entailment): turned round so that a higher score is closer."""


TASKS = {
    "stsb": Task((0, 5), ("train", "validation", "test"), ("sentence-transformers/stsb",), 5.0),
    "mrpc": Task((0, 1), ("train", "validation", "test"), ("nyu-mll/glue", "mrpc")),
    "qqp": Task((0, 1), ("train", "validation"), ("nyu-mll/glue", "qqp")),
    "qnli": Task((0, 1), ("train", "validation"), ("nyu-mll/glue", "qnli"), reversed=True),
    "mnli": Task(
        None, ("train", "validation_matched", "validation_mismatched"), ("nyu-mll/glue", "mnli")
    ),
}


def load_task(name: str, split: str, data: str | Path | None = None) -> Pairs:
    """A task's pairs from ``<data>/<name>/<split>.parquet``, or else from the hub.

    ``data`` defaults to the environment's TWINLINE_DATA. The hub's local cache is asked before
    the hub, and the hub not at all when HF_HUB_OFFLINE is set. Scores are as published, but for
    QNLI: 1 is entailment here, so that a higher score is a closer pair everywhere. MNLI keeps
    its class numbers (0 entailment, 1 neutral, 2 contradiction).

    Raises:
        TwinlineError: no such task or split, the folder does not exist, or nothing has the data.
    """
    if name not in TASKS:
        raise TwinlineError(f"There is no task {name!r}: give one of {', '.join(TASKS)}.")
    task = TASKS[name]
    if split not in task.splits:
        raise TwinlineError(
            f"{name} has no split {split!r} with public labels: give one of "
            f"{', '.join(task.splits)}."
        )
    folder = data_folder(data)
    file = folder / name / f"{split}.parquet" if folder else None
    if file and file.exists():
        table, factor = read_table(file), 1.0
    else:
        table, factor = _from_hub(name, split, file), task.hub_factor
    pairs = _pairs(table, _columns(table, None, need_score=True), task.scale, factor)
    if task.reversed and pairs.score is not None:
        pairs = replace(pairs, score=1 - pairs.score)
    return replace(pairs, name=name, split=split)


def _from_hub(name: str, split: str, file: Path | None) -> Table:
    import datasets  # takes seconds
    from huggingface_hub.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()  # its tries are told in our sentence
    repository = " ".join(TASKS[name].hub)
    try:
        # It asks its own cache first where it may not or cannot reach the hub.
        found = datasets.load_dataset(*TASKS[name].hub, split=split)
    except (OSError, ValueError) as error:
        tried = [f"{file} (TWINLINE_DATA)" if file else "not TWINLINE_DATA, which is not set"]
        tried.append(f"the hub's local cache for {repository}")
        offline = os.environ.get("HF_HUB_OFFLINE")
        tried.append("not the hub, since HF_HUB_OFFLINE is set" if offline else "the hub")
        raise TwinlineError(
            f"No data for {name}/{split} was found; tried {'; '.join(tried)}. Please set "
            f"TWINLINE_DATA to a folder with {name}/{split}.parquet, allow the hub, or use "
            "'builtin', which needs neither."
        ) from error
    finally:
        logging.set_verbosity(told)
    columns = {column: list(found[column]) for column in found.column_names}
    return Table(f"{repository} {split}", columns)


def load_pairs(
    source: Source,
    *,
    scale: Range | None = None,
    columns: Sequence[str] | None = None,
    need_score: bool = True,
) -> Pairs:
    """Pairs from a CSV, TSV, JSONL or Parquet file or a ``datasets.Dataset``.

    Args:
        source: has the columns ``sentence1, sentence2`` (or another of PAIR_COLUMNS) and
            ``score`` or ``label``. Empty texts are allowed.
        scale: the scores of the most distant and the closest pair; needed with scores, since a
            scale is declared and never guessed.
        columns: names of the columns with the first text, the second and the score instead.
        need_score: False reads the texts only.

    Raises:
        TwinlineError: it cannot be read, a column or a value is missing, a text is no text, a
            score is not a finite number on the scale, or all scores are the same.
    """
    columns = check_value("columns", columns, tuple[str, ...] | None)
    table = read_table(source)
    found = _columns(table, columns, need_score)
    if not need_score:
        return _pairs(table, found, None)
    if scale is None:
        scores = _numbers(table, found[2])
        raise TwinlineError(
            f"{table.source} has scores from {scores.min():g} to {scores.max():g} on no declared "
            "scale: give --scale LOW HIGH (scale=(LOW, HIGH)), as in --scale 0 5."
        )
    pairs = _pairs(table, found, check_range(scale))
    if pairs.score is not None and is_constant(pairs.score):
        raise TwinlineError(
            f"{table.source}: all {len(pairs)} scores are {pairs.score[0]:g} (one class only), so "
            "a correlation is undefined; give pairs with at least two distinct scores."
        )
    return pairs


def load(
    source: Source,
    split: str | None = None,
    *,
    scale: Range | None = None,
    columns: Sequence[str] | None = None,
    need_score: bool = True,
    data: str | Path | None = None,
) -> Pairs:
    """Pairs by a task's name, by ``builtin``, or from a file or data set as :func:`load_pairs`.

    ``split`` belongs to a name, and is its validation split if not given. A file or data set is
    one split already, which ``split`` only names.

    Raises:
        TwinlineError: as :func:`load_task` and :func:`load_pairs`, or ``scale`` or ``columns``
            are given for a name, which declares its own.
    """
    if isinstance(source, str) and source in NAMED:
        for option, value in (("scale", scale), ("columns", columns)):
            if value is not None:
                raise TwinlineError(f"{source} declares its own {option}: leave {option} out.")
        return NAMED[source](split or _validation(source), data)
    if isinstance(source, str) and not Path(source).suffix and not Path(source).exists():
        raise TwinlineError(
            f"{source!r} is neither a file nor a name: give a path or one of {', '.join(NAMED)}."
        )
    pairs = load_pairs(source, scale=scale, columns=columns, need_score=need_score)
    return replace(pairs, split=split or pairs.split)


def _validation(name: str) -> str:
    return TASKS[name].splits[1] if name in TASKS else "validation"


def _builtin(split: str, data: str | Path | None) -> Pairs:
    from .builtin import builtin_pairs  # it makes Pairs, so it cannot be imported above

    return builtin_pairs(split)


NAMED: dict[str, Callable[[str, str | Path | None], Pairs]] = {
    "builtin": _builtin,
    **{name: partial(load_task, name) for name in TASKS},
}
"""What can be loaded by name: from the split and the data folder to pairs."""


def _columns(table: Table, named: Sequence[str] | None, need_score: bool) -> tuple[str, str, str]:
    """The names of the columns of both texts and the score (an empty one without a score)."""
    wanted = 3 if need_score else 2
    if named is not None:
        if not wanted <= len(named) <= 3:
            what = "first text, second text and score" if need_score else "first and second text"
            raise TwinlineError(f"columns must name the {what}, not {', '.join(named)}.")
        missing = [name for name in named[:wanted] if name not in table.columns]
        if missing:
            raise _missing(table, f"the column {missing[0]}")
        return named[0], named[1], named[2] if need_score else ""
    texts = table.pair_columns()
    if texts is None:
        choices = ", ".join("/".join(pair) for pair in PAIR_COLUMNS)
        raise _missing(table, f"the two text columns (one of {choices})")
    score = next((name for name in SCORE_COLUMNS if name in table.columns), None)
    if need_score and score is None:
        raise _missing(table, f"a column {' or '.join(SCORE_COLUMNS)}")
    return *texts, score if need_score and score else ""


def _missing(table: Table, what: str) -> TwinlineError:
    return TwinlineError(
        f"{table.source} lacks {what}; it has {', '.join(table.columns)}: rename a column or say "
        "which with columns."
    )


def _pairs(
    table: Table, columns: tuple[str, str, str], scale: Range | None, factor: float = 1.0
) -> Pairs:
    first, second, score = columns
    scores = _numbers(table, score) * factor if score else None
    if scores is not None and scale is not None:
        outside = off_scale(scores, scale, LABELS)
        if outside is not None:
            raise scale_error(table.place(outside), score, scores[outside], scale)
    name = Path(table.source).name
    return Pairs(table.texts(first), table.texts(second), scores, scale, name, "all")


def _numbers(table: Table, column: str) -> NDArray[np.float64]:
    numbers = np.empty(len(table))
    for row, cell in enumerate(table.columns[column]):
        try:
            numbers[row] = float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            found = "is missing" if cell in (None, "") else f"is {cell!r:.40}, not a number"
            raise TwinlineError(
                f"{table.place(row)}: the {column} {found}; give a number or remove the row."
            ) from None
        if not np.isfinite(numbers[row]):
            raise TwinlineError(
                f"{table.place(row)}: the {column} is {numbers[row]}; give a finite number or "
                "remove the row."
            )
    return numbers
