"""A student that learns which long document a query is about, from windows of the documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..conversion import convert
from ..data.retrieval import Retrieval, load_retrieval
from ..encoder import Encoder
from ..errors import TwinlineError
from ..evaluate import evaluate_retrieval
from ..files import whole_file
from ..hashing import fingerprint
from ..loop import Batch, Run, deciding, train
from ..options import RetrievalOptions
from ..randomness import fork_generators
from ..reading import Reader
from ..recipes import ConvertRecipe, RetrievalRecipe
from ..scales import Scores
from ..windows import cut
from .distill import ADDED, frozen
from .lengths import Lengths
from .losses import in_batch_negatives, listwise
from .pipeline import converted


class Searcher(nn.Module):
    """Model and score head as one module: queries and documents to all their scores."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.model, self.head = encoder.model, encoder.head

    def forward(self, queries: list[list[int]], documents: list[list[int]]) -> Tensor:
        """(queries, documents)."""
        asked, found = self.encoder.read(queries), self.encoder.read(documents)
        if not self.encoder.reads_states:
            u, v = (F.normalize(one.vectors.float(), dim=-1) for one in (asked, found))
            with torch.autocast(u.device.type, enabled=False):  # divided by a temperature later
                return u @ v.T
        one, other = asked.stored(), found.stored()
        rows = [one[i : i + 1].repeated(len(other)) for i in range(len(one))]
        return torch.stack([self.head(row, other) for row in rows])


def window(ids: Sequence[int], length: int, rule: str, draw: np.random.Generator) -> list[int]:
    """``length`` tokens of a document, its special ones kept: its start, its end, or anywhere.

    A document that is no longer is whole.
    """
    if len(ids) <= length:
        return list(ids)
    body, room = list(ids[1:-1]), length - 2
    if rule == "mixed":
        rule = ("prefix", "suffix", "random")[int(draw.integers(3))]
    last = len(body) - room
    start = {"prefix": 0, "suffix": last, "random": int(draw.integers(last + 1))}[rule]
    return [ids[0], *body[start : start + room], ids[-1]]


def train_retrieval(
    student: Encoder,
    tasks: Sequence[Retrieval],
    *,
    teacher_scores: Sequence[Scores] | None = None,
    validation: Sequence[Retrieval] = (),
    options: RetrievalOptions | None = None,
    folder: Path | None = None,
    show_progress: bool | None = None,
) -> Run:
    """Train ``student`` in place: each query against the windows of a batch's documents.

    Args:
        tasks: training queries and documents; each step reads one of the tasks.
        teacher_scores: of each task (queries, documents), needed for ``listwise``.
        validation: the mean of their nDCG@10 is logged and chooses the best weights.
        folder: checkpoints and ``metrics.jsonl``; a run found there goes on.
    Raises: TwinlineError if options and data contradict each other.
    """
    options = options or RetrievalOptions()
    student.head_is_random = False
    if student.dtype != "float32":
        raise TwinlineError(f"A student in {student.dtype} cannot be trained: load it in float32.")
    if options.listwise and teacher_scores is None:
        raise TwinlineError(f"listwise={options.listwise} needs a teacher: give its scores.")
    for task in tasks:
        check(task, options)
    asked = [by_document(task) for task in tasks]
    queries = [student.prompted_ids(task.queries, "query") for task in tasks]
    documents = [student.prompted_ids(task.documents, "document") for task in tasks]
    per_epoch = sum(-(-len(found) // options.pairs) for found in asked)
    steps = max(1, round(options.epochs * per_epoch))
    lengths = Lengths(options.lengths, steps, options.seed)

    def batch_at(number: int) -> Batch:
        draw = np.random.default_rng((options.seed, number))
        which = number % len(tasks)
        places = list(asked[which])
        chosen = [places[i] for i in draw.permutation(len(places))[: options.pairs]]
        rows = [int(draw.choice(asked[which][place])) for place in chosen]
        read = [window(documents[which][p], lengths[number], options.rule, draw) for p in chosen]
        inputs: dict[str, Any] = {"queries": [queries[which][r] for r in rows], "documents": read}
        if teacher_scores is not None:
            block = teacher_scores[which][np.ix_(rows, chosen)]
            inputs["teacher"] = torch.tensor(block, dtype=torch.float32)
        both = inputs["queries"] + read
        return Batch(inputs, len(rows), sum(map(len, both)))

    def loss(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        scores = module(inputs["queries"], inputs["documents"]).float()
        total = in_batch_negatives(scores, options.temperature)
        if options.listwise:
            goal = inputs["teacher"].to(scores.device)
            total = total + options.listwise * listwise(scores, goal, options.temperature)
        return total

    def evaluate() -> float:
        return float(np.mean([evaluate_retrieval(student, t).ndcg10.value for t in validation]))

    with frozen(student, options.freeze_words):
        run = train(
            Searcher(student), batch_at, loss, options.loop(steps),
            folder=folder,
            identity={
                "retrieval": deciding(options),
                "student": [student.fingerprint, student.prompts],
                "tasks": [
                    fingerprint([*task.queries, *task.documents, task.relevant.tobytes()])
                    for task in tasks
                ],
                "teacher": fingerprint([s.tobytes() for s in teacher_scores or ()]),
            },
            evaluate=evaluate if validation else None,
            factors=dict.fromkeys(ADDED, options.added_rate),
            title=f"learning to find ({student.model.config.attention})",
            show_progress=show_progress,
        )  # fmt: skip
    student.eval()
    return run


def check(task: Retrieval, options: RetrievalOptions) -> None:
    """Refuse queries about fewer documents than a step has."""
    many = len(by_document(task))
    if many < options.pairs:
        raise TwinlineError(
            f"{task.name} has queries about {many} documents, fewer than pairs={options.pairs}: "
            "lower pairs, or give more documents."
        )


def by_document(task: Retrieval) -> dict[int, NDArray[np.int64]]:
    """The queries about each document that has any."""
    found = np.unique(task.relevant)
    return {int(place): np.flatnonzero(task.relevant == place) for place in found}


@torch.inference_mode()
def window_vectors(
    teacher: Reader, documents: list[str], size: int, show_progress: bool | None = None
) -> tuple[Tensor, NDArray[np.int64]]:
    """Unit vectors of all windows of ``size`` tokens, and where each document's begin."""
    special = set(teacher.tokenizer.all_special_ids)
    windows = cut(teacher.prompted_ids(documents, "document"), size, special)
    vectors = F.normalize(teacher.encode_ids(windows.ids, show_progress_bar=show_progress), dim=-1)
    return vectors, np.searchsorted(windows.owner.numpy(), np.arange(len(documents)))


@torch.inference_mode()
def best_windows(teacher: Reader, queries: list[str], vectors: Tensor, starts: Any) -> Scores:
    """The score of each query with the best of a document's windows: (queries, documents).

    What a reader of short texts can say of a long document; dear to search with, as every window is
    stored, and therefore worth distilling. ``vectors`` and ``starts`` are ``window_vectors``'s.
    """
    asked = F.normalize(teacher.encode_ids(teacher.prompted_ids(queries, "query")), dim=-1)
    scores = (asked @ vectors.T).cpu().numpy().astype(np.float64)
    best: Scores = np.maximum.reduceat(scores, starts, axis=1)
    return best


def rankings(
    recipe: RetrievalRecipe,
    tasks: Sequence[Retrieval],
    kept: Path | None,
    show_progress: bool | None = None,
) -> list[Scores]:
    """The teacher's scores of each task, found in the folder ``kept`` or left there."""
    teacher = Encoder(recipe.teacher or "", dtype=recipe.teacher_dtype)
    own = [teacher.fingerprint, json.dumps(teacher.prompts), str(recipe.teacher_windows)]
    made, read = [], ""
    for task in tasks:
        key = fingerprint([*own, *task.queries, *task.documents])[:12]
        file = kept and kept / f"teacher-{key}.npy"
        if file and file.is_file():
            made.append(np.load(file))
            continue
        if fingerprint(task.documents) != read:  # questions and answers share their documents
            read = fingerprint(task.documents)
            windows = window_vectors(teacher, task.documents, recipe.teacher_windows, show_progress)
        made.append(best_windows(teacher, task.queries, *windows))
        if file:
            with whole_file(file) as into:
                np.save(into, made[-1])
    return made


@fork_generators()
def untrained(recipe: RetrievalRecipe) -> Encoder:
    """A recipe's student before anything is trained.

    Raises: TwinlineError if its model, similarity and windows do not go together.
    """
    made = convert(recipe.base, **recipe.model.given())
    return Encoder(made, similarity=recipe.similarity, windows=recipe.windows)


def searcher(
    recipe: RetrievalRecipe,
    work: Path | None = None,
    show_progress: bool | None = None,
    shared: Path | None = None,
) -> tuple[Encoder, Run]:
    """Run a whole recipe.

    Args:
        work: where checkpoints and metrics go; a run found there goes on.
        shared: where the teacher's scores are kept for other students too; None: in ``work``.
    Returns: the trained student, and the run.
    Raises: TwinlineError if something is not there, or options and data contradict each other.
    """
    # What is not there, or contradicts the rest, is to be said before transfer, not after it.
    named = [(name, asked) for name in recipe.collections for asked in recipe.asked]
    tasks = [load_retrieval(name, "train", asked, own_documents=True) for name, asked in named]
    # Documents are long: they are only validated on where that is asked for.
    validation = [
        load_retrieval(name, "validation", asked, own_documents=True)
        for name, asked in named
        if recipe.train.evaluate_every
    ]
    for task in tasks:
        check(task, recipe.train)
    start = ConvertRecipe(
        base=recipe.base, texts=recipe.texts, transfer=recipe.transfer, **recipe.model.given()
    )
    untrained(recipe)
    scores = None
    if tasks and recipe.teacher and recipe.train.listwise:
        scores = rankings(recipe, tasks, shared or (work and work / "retrieval"), show_progress)
    made = converted(start, work, show_progress)
    with fork_generators(recipe.train.seed):  # draws a learned head
        made = Encoder(made.model, similarity=recipe.similarity, windows=recipe.windows)
    if not tasks:
        return made, Run()
    run = train_retrieval(
        made, tasks, teacher_scores=scores, validation=validation, options=recipe.train,
        folder=work and work / "retrieval", show_progress=show_progress,
    )  # fmt: skip
    return made, run
