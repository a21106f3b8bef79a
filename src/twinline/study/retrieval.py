"""Real long text: the arms of a retrieval grid, trained alike, and what they find."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.nn import functional as F

from ..data.pairs import TASKS
from ..data.retrieval import ASKED, COLLECTIONS, load_retrieval
from ..data.texts import DOCUMENTS
from ..encoder import Encoder
from ..errors import TwinlineError
from ..evaluate import from_scores, ndcg10
from ..files import read_lines, write_whole
from ..hashing import fingerprint
from ..machine import describe
from ..options import ModelOptions, RetrievalOptions, TransferOptions
from ..recipe import chosen, read_recipe
from ..recipes import RetrievalRecipe
from ..statistics import Correlation, clustered_mean
from ..training.retrieval import searcher, untrained
from .checks import SHORTEST, choice, numbers, other_version, plain, source

TASK = ("collection", "asked", "split")
COUNTED = ("queries", "documents", "ambiguous", "encoding_seconds", "seconds")
CALIBRATION_WORDS = 200
VECTORS = "-vectors"
"""Behind an arm's name: its vectors by cosine, without its head."""
BOTH = "both"
"""In the place of what is searched with: questions and answers together."""
YARDSTICK = "softmax-windows512"
"""What every other arm is compared with: averaged windows of the same base and training."""


@dataclass(frozen=True)
class SearchArm:
    """One way to read long documents."""

    name: str = "linear"
    """Names it in results."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Attention and pooling."""
    windows: int | None = None
    """Windows of so many tokens whose vectors are averaged."""
    similarity: Literal["cosine", "stca"] = "cosine"
    """How a query and a document make a score."""
    trained: bool = True
    """False: as it is after attention transfer."""


@dataclass(frozen=True)
class SearchGrid:
    """Arms that learn from the same queries and documents."""

    name: str = "retrieval"
    """Names its results."""
    base: str = "all-MiniLM-L6-v2"
    """The encoder that every arm starts from."""
    collections: tuple[str, ...] = ("qmsum", "squality")
    """Sets of documents below TWINLINE_DATA."""
    asked: tuple[str, ...] = ("question", "answer")
    """What is searched with: tasks of their own."""
    texts: tuple[str, ...] = ("stsb",)
    """Unlabelled text for attention transfer."""
    transfer: TransferOptions = field(default_factory=TransferOptions)
    """Attention transfer of every kind that has any."""
    teacher: str | None = None
    """An encoder whose best window's score ranks documents, for train.listwise."""
    train: RetrievalOptions = field(default_factory=RetrievalOptions)
    """The same for every arm."""
    dtype: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    """Numbers that tests are encoded with."""
    seeds: tuple[int, ...] = (0,)
    """Draws of queries, windows and dropout."""
    arms: tuple[SearchArm, ...] = ()
    """What is compared."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise TwinlineError(f"arms must be one or more of distinct names, not {names}.")
        for name in (self.name, *names):
            plain("a name", name)
        choice("collections", self.collections, COLLECTIONS)
        choice("asked", self.asked, ASKED)
        for text in self.texts:
            source("texts", text, (*TASKS, *DOCUMENTS, "builtin"))
        numbers("seeds", self.seeds, int)
        for arm in self.arms:
            if arm.windows is not None and arm.windows < SHORTEST:
                raise TwinlineError(f"windows must be at least {SHORTEST}, not {arm.windows}.")
        if not (self.collections and self.asked and self.seeds):
            raise TwinlineError("collections, asked and seeds must name at least one each.")
        if self.train.listwise and not self.teacher:
            raise TwinlineError("train.listwise needs a teacher: name one, or leave listwise out.")

    def runs(self) -> Iterator[tuple[SearchArm, int]]:
        return ((arm, seed) for seed in self.seeds for arm in self.arms)

    def recipe(self, arm: SearchArm, seed: int) -> RetrievalRecipe:
        """How an arm is trained."""
        return RetrievalRecipe(
            base=self.base, model=arm.model, windows=arm.windows, similarity=arm.similarity,
            texts=self.texts, transfer=replace(self.transfer, seed=seed),
            collections=self.collections, asked=self.asked, teacher=self.teacher,
            teacher_dtype=self.dtype,
            train=replace(self.train, seed=seed),
        )  # fmt: skip

    def identity(self, arm: SearchArm, seed: int) -> str:
        """What an arm's weights depend on."""
        own = sorted(chosen(self.recipe(arm, seed)).items())
        return fingerprint([str(own), str(arm.trained)])[:12]


def run_search(path: Path, results: Path, work: Path, only: tuple[str, ...] = ()) -> list[Path]:
    """Train and test what is not finished; write ``RESULTS/long-retrieval.json``.

    Args:
        only: names of arms, if not all.
    Raises: TwinlineError for a grid with a typo, an arm that is not there, or results of another
        version of the grid.
    """
    grid = read_recipe(SearchGrid, path)
    known = [arm.name for arm in grid.arms]
    for name in only:
        if name not in known:
            raise TwinlineError(f"{path} has no arm {name!r}; it has {', '.join(known)}.")
    folder = results / grid.name
    todo = []
    for arm, seed in grid.runs():  # all of them are checked before the first is trained
        file = folder / f"{arm.name}-{seed}.jsonl"
        lines = read_lines(file)
        if lines and lines[0].get("identity") != grid.identity(arm, seed):
            raise other_version(file)
        if not lines and (not only or arm.name in only):
            todo.append((arm, seed, file))
    for arm in dict.fromkeys(arm for arm, _, _ in todo):
        untrained(grid.recipe(arm, grid.seeds[0]))
    for arm, seed, file in todo:
        lines = one_arm(grid, arm, seed, work)
        write_whole(file, "".join(f"{json.dumps(one)}\n" for one in lines))
    made = rows(grid, folder)
    written = published(results, grid.name)
    write_whole(written, json.dumps(made, indent=0) + "\n")
    print(markdown(table_of(made, "test")))
    return [written]


def one_arm(grid: SearchGrid, arm: SearchArm, seed: int, work: Path) -> list[dict[str, Any]]:
    """Train an arm, or take up its training, and test it: lines of results."""
    folder = work / f"{grid.name}-{arm.name}-{seed}-{grid.identity(arm, seed)}"
    if not (folder / "config.json").is_file():
        recipe = grid.recipe(arm, seed)
        if not arm.trained:
            recipe = replace(recipe, collections=())
        student, _ = searcher(recipe, folder.with_suffix(".work"), shared=work)
        student.save(folder)
    encoder = Encoder(
        folder, windows=arm.windows, dtype=grid.dtype,
        calibration=calibration(grid) if grid.dtype == "int8" else None,
    )  # fmt: skip
    head = {"arm": arm.name, "seed": seed, "identity": grid.identity(arm, seed),
            "machine": describe(), "date": date.today().isoformat()}  # fmt: skip
    lines = [head]
    for name in grid.collections:
        started = time.perf_counter()
        every = load_retrieval(name, "test", grid.asked[0]).documents  # the same for every task
        documents = encoder.known(every, "document", {"show_progress_bar": None})
        encoding = time.perf_counter() - started
        for split, asked in product(("validation", "test"), grid.asked):
            task = load_retrieval(name, split, asked)
            started = time.perf_counter()
            queries = encoder.known(task.queries, "query", {})
            ways = {arm.name: encoder.similarity(queries, documents)}
            if encoder.reads_states:  # what the head adds to the cosine of the same vectors
                u, v = (F.normalize(one.vectors, dim=-1) for one in (queries, documents))
                ways[f"{arm.name}{VECTORS}"] = u @ v.T
            seconds = round(time.perf_counter() - started, 2)
            for way, scores in ways.items():
                found = from_scores(scores.cpu().numpy(), task)
                lines.append(
                    {
                        "arm": way,
                        "collection": name,
                        "asked": asked,
                        "split": split,
                        "queries": len(task),
                        "documents": len(task.documents),
                        "ambiguous": task.ambiguous,
                        "seconds": seconds,
                        "encoding_seconds": round(encoding, 1),
                        "ranks": found.ranks.tolist(),
                        "relevant": task.relevant.tolist(),
                    }
                )
                told = f"{way} {seed} {split} {name} {asked}"
                print(f"{told}: nDCG@10 {found.ndcg10}", flush=True)
    return lines


def calibration(grid: SearchGrid) -> list[str]:
    """The starts of training documents, on which int8 finds its ranges."""
    found = load_retrieval(grid.collections[0], "train", grid.asked[0], own_documents=True)
    return [" ".join(text.split()[:CALIBRATION_WORDS]) for text in found.documents[:24]]


def rows(grid: SearchGrid, folder: Path) -> list[dict[str, Any]]:
    """One flat row for each arm, seed and task, with its difference to averaged windows, and of a
    head that reads states to the vectors alone."""
    lines = [
        (seed, line, found[0]["machine"])
        for arm, seed in grid.runs()
        if (found := read_lines(folder / f"{arm.name}-{seed}.jsonl"))
        for line in [*found[1:], *together(found[1:])]
    ]
    known = {(seed, *(line[k] for k in ("arm", *TASK))): line for seed, line, _ in lines}
    made = []
    for seed, line, machine in lines:
        ranks, about = np.array(line["ranks"]), np.array(line["relevant"])
        mean = clustered_mean(ndcg10(ranks), about)
        row = {
            "arm": line["arm"],
            **{k: line[k] for k in TASK},
            "seed": seed,
            "ndcg10": round(mean.value, 5),
            "ci_low": round(mean.low, 5),
            "ci_high": round(mean.high, 5),
            "recall1": round(float((ranks == 1).mean()), 5),
            "mrr": round(float((1 / ranks).mean()), 5),
        }
        for name, arm in (("over_windows", YARDSTICK), ("over_vectors", line["arm"] + VECTORS)):
            other = known.get((seed, arm, *(line[k] for k in TASK)))
            gap: Correlation | None = None
            if other is not None and line["arm"] != arm:
                gap = clustered_mean(ndcg10(ranks) - ndcg10(np.array(other["ranks"])), about)
            row[name] = gap and round(gap.value, 5)
            row[f"{name}_low"] = gap and round(gap.low, 5)
            row[f"{name}_high"] = gap and round(gap.high, 5)
        made.append({**row, **{k: line[k] for k in COUNTED}, "machine": machine})
    return made


def together(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each arm, collection and split the queries of all tasks as one."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["arm"], line["collection"], line["split"]), []).append(line)
    return [
        {
            **of[0], "asked": BOTH,
            **{k: [x for one in of for x in one[k]] for k in ("ranks", "relevant")},
            **{k: sum(one[k] for one in of) for k in ("queries", "ambiguous", "seconds")},
        }
        for of in found.values() if len(of) > 1
    ]  # fmt: skip


def published(results: Path, name: str = "retrieval") -> Path:
    """The file of a grid's rows; the shipped grid's are the published ones."""
    return results / f"long-retrieval{'' if name == 'retrieval' else f'-{name}'}.json"


def table_of(made: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """The rows of a split as ``head`` and ``rows``."""
    cells = []
    for row in made:
        if row["split"] != split:
            continue
        gaps = [
            "–" if row[name] is None
            else f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"
            for name in ("over_windows", "over_vectors")
        ]  # fmt: skip
        cells.append(
            [
                f"{row['arm']}, seed {row['seed']}",
                f"{row['collection']}, {row['asked']}",
                f"{row['ndcg10']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
                f"{row['recall1']:.3f}",
                f"{row['mrr']:.3f}",
                *gaps,
            ]
        )
    head = ["arm", "collection, asked", "nDCG@10", "recall@1", "MRR", f"over {YARDSTICK}",
            "over its own vectors"]  # fmt: skip
    return {"head": head, "rows": cells}


def markdown(table: dict[str, Any]) -> str:
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
