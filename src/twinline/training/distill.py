"""Distillation: a student's scores learn from labels and from a teacher's scores.

DSE (arXiv 1908.05161, sec. 3.3): ``(1 − α) · task loss + α · (student − teacher)²``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import check_value, instance
from ..attention import Lent
from ..batching import ShuffledBatches, distinct, pad
from ..data import Pairs
from ..encoder import Encoder
from ..errors import TwinlineError
from ..hashing import fingerprint
from ..loop import Batch, Run, deciding, held, train
from ..model import TwinlineModel
from ..options import DistillOptions
from ..reading import Reading
from ..scales import COSINE, Scores, off_scale, score_vector
from ..statistics import is_constant, pearson
from .lengths import LongSteps
from .losses import astray, overlooked, scattered

ADDED = (".pool.", ".attention.", ".local.", "head.")
"""In the names of parameters that no pretrained encoder has."""


class Student(nn.Module):
    """Model and score head as one module: token ids of distinct texts to vectors and scores."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.model, self.head = encoder.model, encoder.head

    def forward(
        self,
        ids: Sequence[Sequence[int]],
        first: Tensor,
        second: Tensor,
        lent: Lent | None = None,
    ) -> tuple[Reading, Tensor]:
        """What the texts were read as, and scores (pairs,) of those that the indices name."""
        reading = self.encoder.read(ids, lent)
        known = reading.stored() if self.encoder.reads_states else reading.vectors
        return reading, self.head(known[first], known[second])


def distill(
    student: Encoder,
    pairs: Pairs,
    *,
    teacher_scores: Scores | None = None,
    extra: Pairs | None = None,
    twin: Encoder | None = None,
    goals: Tensor | None = None,
    validation: Pairs | None = None,
    options: DistillOptions | None = None,
    longer: LongSteps | None = None,
    folder: Path | None = None,
    show_progress: bool | None = None,
) -> Run:
    """Train ``student`` in place.

    The task loss is the squared error to the label on the unit scale. A text that several pairs of
    a batch share is encoded once (the run's ``spared`` tokens): same loss, same gradients.

    Args:
        pairs: labelled; may be without scores if ``alpha`` is 1.
        teacher_scores: (pairs,) on the unit scale; needed unless ``alpha`` is 0.
        extra: pairs whose ``score`` is the teacher's, not a label: only α's part counts for them.
        twin: a softmax twin whose vectors ``match`` draws the student's to.
        goals: those vectors as ``twin_vectors`` makes them of all first texts and then all second
            ones (``extra``'s behind ``pairs``'), where several runs share them.
        validation: Pearson on it is logged and, evaluated by step, chooses the best weights.
        longer: reads each step's pairs as long ones (made from ``pairs`` and then ``extra``).
        folder: checkpoints and ``metrics.jsonl``; a run found there goes on.
    Raises: TwinlineError if options and data contradict each other.
    """
    instance("student", student, Encoder)
    instance("pairs", pairs, Pairs)
    for name, value, kind in (
        ("extra", extra, Pairs), ("twin", twin, Encoder), ("validation", validation, Pairs)
    ):  # fmt: skip
        instance(name, value, kind, optional=True)
    options = check_value("options", options or DistillOptions(), DistillOptions)
    check(options, student, pairs, teacher_scores, extra, twin)
    student.head_is_random = False
    texts1, texts2 = list(pairs.sentence1), list(pairs.sentence2)
    zeros = np.zeros(len(pairs))
    labels = zeros if pairs.score is None else pairs.unit_score
    soft = zeros if teacher_scores is None else np.asarray(teacher_scores, dtype=np.float64)
    weight = np.full(len(pairs), 1 - options.alpha)
    if extra is not None:
        texts1, texts2 = texts1 + extra.sentence1, texts2 + extra.sentence2
        none = np.zeros(len(extra))
        labels, weight = np.concatenate([labels, none]), np.concatenate([weight, none])
        soft = np.concatenate([soft, extra.unit_score])
    ids1, ids2 = student.prompted_ids(texts1), student.prompted_ids(texts2)
    if twin is None or not options.match:
        goals = None
    elif goals is None:
        goals = twin_vectors(twin, texts1 + texts2)
    elif len(goals) != 2 * len(texts1):
        raise TwinlineError(
            f"{len(goals)} goals do not fit {2 * len(texts1)} texts: make them of these pairs."
        )
    counts = [max(len(a), len(b)) for a, b in zip(ids1, ids2, strict=True)]
    group = options.group
    if group is None:
        group = len(texts1) >= 2 * len(set(texts1))
    keys = texts1 if group else None
    batches = ShuffledBatches(counts, options.pairs, options.seed, keys)
    steps = max(1, round(options.epochs * batches.per_epoch / options.accumulate))

    def batch_at(number: int) -> Batch:
        rows = batches[number]
        built = longer(number, rows) if longer else None
        if built:  # whose texts are distinct
            rows, both = built.rows, student.prompted_ids(built.texts)
            where = which = list(range(len(both)))
        else:
            both = [ids1[i] for i in rows] + [ids2[i] for i in rows]
            where, which = distinct([tuple(row) for row in both])
        ids = [both[place] for place in where]
        inputs: dict[str, Any] = {
            "ids": ids,
            "first": torch.tensor(which[: len(rows)]),
            "second": torch.tensor(which[len(rows) : 2 * len(rows)]),
            "label": torch.tensor(labels[rows], dtype=torch.float32),
            "soft": torch.tensor(soft[rows], dtype=torch.float32),
            "weight": torch.tensor(weight[rows], dtype=torch.float32),
        }
        if goals is not None:
            inputs["goal"] = goals[[*rows, *(i + len(texts1) for i in rows)]]
        if built:
            inputs["spans"] = torch.tensor(built.spans)
            inputs["short"] = [ids1[i] for i in rows] + [ids2[i] for i in rows]
            if built.reads is not None:
                inputs["reads"] = torch.from_numpy(built.reads)
        tokens = sum(map(len, ids))
        return Batch(inputs, len(rows), tokens, spared=sum(map(len, both)) - tokens)

    def loss(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        device = student.device
        held: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()
        }
        spans, lent = held.get("spans"), None
        if spans is not None and "reads" in held:
            lent = Lent(prose(held["ids"], spans, student.model), held["reads"])
        with gains_heard(student, bool(options.gather) and spans is not None) as gains:
            reading, scores = module(held["ids"], held["first"], held["second"], lent)
        scores = scores.float()
        task = held["weight"] * (scores - held["label"]).square()
        total: Tensor = (task + options.alpha * (scores - held["soft"]).square()).mean()
        if goals is not None:
            sides = torch.cat([held["first"], held["second"]])  # a shared text counts as often
            unit = nn.functional.normalize(reading.vectors.float(), dim=-1)[sides]
            total = total + options.match * (unit - held["goal"]).square().sum(-1).mean()
        if spans is None or not bool((spans[:, 1] > 0).any()):
            return total
        if len(reading.states) != len(spans):
            raise TwinlineError(
                "Training texts are longer than the student's windows: give lengths whose real "
                "texts fit into one."
            )
        if gains:
            total = total + options.gather * scattered(gains, spans, reading.mask, lent)
        if options.attend and reading.weights:
            total = total + options.attend * overlooked(
                reading.weights[-1:], spans, reading.states.shape[1]
            )
        if options.states and twin is not None:
            alone, mask = pad(held["short"], twin.model.config.pad_token_id)
            with torch.no_grad():
                goal = twin.model(alone.to(twin.device), mask.to(twin.device)).last_hidden_state
            sizes = mask.sum(dim=1).to(device)
            total = total + options.states * astray(reading.states, spans, goal.to(device), sizes)
        return total

    evaluate = None
    if validation is not None:
        gold = labels_of(validation)

        def evaluate() -> float:
            made = student.score(validation.sentence1, validation.sentence2)
            return pearson(made, gold)

    with frozen(student, options.freeze_words):
        run = train(
            Student(student), batch_at, loss, options.loop(steps),
            folder=folder,
            identity={
                "distill": deciding(options),
                "student": student.fingerprint,
                "longer": longer and longer.identity,
                "goals": None if goals is None else fingerprint([goals.numpy().tobytes()]),
                "validation": None if validation is None else fingerprint(
                    [*validation.sentence1, *validation.sentence2, gold.tobytes()]
                ),
                "pairs": fingerprint([*texts1, *texts2, labels.tobytes(), soft.tobytes()]),
            },
            evaluate=evaluate,
            factors=dict.fromkeys(ADDED, options.added_rate),
            title=f"distilling ({student.model.config.attention})",
            show_progress=show_progress,
        )  # fmt: skip
    student.eval()
    return run


def labels_of(validation: Pairs) -> Scores:
    """The labels (pairs,) of validation pairs on the unit scale.

    Raises: TwinlineError if they are all the same: no correlation with them is ever defined.
    """
    gold = validation.unit_score
    if is_constant(gold):
        raise TwinlineError(
            f"The labels of the validation pairs {validation.name} are all the same: give pairs "
            "with at least two distinct ones, or train without validation."
        )
    return gold


def frozen(student: Encoder, words: bool) -> AbstractContextManager[None]:
    """Inside the block, word embeddings are not trained, if ``words``."""
    return held(student.model.embeddings.word.parameters() if words else [])


@contextmanager
def gains_heard(student: Encoder, hear: bool) -> Iterator[list[Tensor]]:
    """Inside the block, if ``hear``, the log-gains of the upper layers' keys come into the list.

    Of the kinds whose gains weigh a global sum: ``lightning``'s decays, whatever a key's gain.
    """
    gains: list[Tensor] = []
    layers: list[Any] = list(student.model.each_layer()) if hear else []
    upper = [one.attention for one in layers[len(layers) // 2 :]]
    maps = [one.k_map for one in upper if getattr(one, "reads_lent", False)]
    heard = [one for one in maps if hasattr(one, "report")]
    for one in heard:
        one.report = gains.append
    try:
        yield gains
    finally:
        for one in heard:
            one.report = None


def prose(
    ids: Sequence[Sequence[int]], spans: Tensor, model: TwinlineModel | None = None
) -> Tensor:
    """Which tokens of long texts are prose, neither sentence nor special: (texts, longest).

    Where ``model`` tells sentences apart, neither is what stands in one sentence with what counts:
    one without a full stop goes on into the prose behind it.
    """
    padded, real = (x.to(spans.device) for x in pad(ids, 0))
    real = real.bool()
    place = torch.arange(padded.shape[1], device=spans.device)[None]
    counts = real.sum(dim=1, keepdim=True)
    counting = (place >= spans[:, :1]) & (place < spans[:, 1:])
    made = (place > 0) & (place < counts - 1) & ~counting
    if model is None or model.roles is None:
        return made
    number = model.sentence_starts(padded, real).long().cumsum(dim=1)
    # Sentences are numbered in rising order: what counts lies in those from its least to its most.
    least = number.masked_fill(~counting, number.shape[1] + 1).amin(dim=1, keepdim=True)
    most = number.masked_fill(~counting, 0).amax(dim=1, keepdim=True)
    return made & ~((number >= least) & (number <= most))


def check(
    options: DistillOptions,
    student: Encoder,
    pairs: Pairs,
    teacher_scores: Scores | None,
    extra: Pairs | None,
    twin: Encoder | None,
) -> None:
    """Refuse options that the data cannot serve."""
    if student.dtype != "float32":
        raise TwinlineError(
            f"The student holds its weights in {student.dtype}, for encoding alone: train one "
            "with dtype float32 (its options' precision may be bf16)."
        )
    if options.alpha > 0 and teacher_scores is None:
        raise TwinlineError(f"alpha={options.alpha} needs a teacher: give one, or set alpha to 0.")
    if options.alpha < 1 and pairs.score is None:
        raise TwinlineError(f"{pairs.name} has no scores: set alpha to 1, or give labelled pairs.")
    if teacher_scores is not None:
        scores = score_vector(teacher_scores, "teacher_scores")
        if len(scores) != len(pairs):
            raise TwinlineError(f"{len(scores)} teacher scores do not fit {len(pairs)} pairs.")
        bad = off_scale(scores, "unit", COSINE)
        if bad is not None:
            raise TwinlineError(
                f"The teacher's score {scores[bad]:g} of pair {bad + 1} is not on the unit scale: "
                "give what Teacher.predict gives, or bring the scores to 0 … 1."
            )
    if extra is not None and options.alpha == 0:
        raise TwinlineError("Extra pairs have no labels: they need alpha above 0.")
    pooling = student.model.config.pooling
    if options.attend and pooling not in ("latent", "sentence"):
        raise TwinlineError(
            f"attend={options.attend} is for latent pooling, or by the sentence; the student's is "
            f"{pooling}."
        )
    for name in ("match", "states"):
        if getattr(options, name) and twin is None:
            raise TwinlineError(
                f"{name}={getattr(options, name)} needs a twin whose vectors and states to match."
            )
    if options.match and twin is not None and twin.dimension != student.dimension:
        raise TwinlineError(
            f"The twin's vectors are {twin.dimension} wide, the student's {student.dimension}: "
            "match needs equal widths."
        )
    if options.states and twin is not None and not same_tokens(twin, student):
        raise TwinlineError(
            f"states={options.states} needs a twin with the student's tokens and hidden size."
        )


def same_tokens(one: Encoder, other: Encoder) -> bool:
    """Whether two encoders cut texts alike and have states of one width."""
    widths = one.model.config.hidden_size, other.model.config.hidden_size
    return bool(widths[0] == widths[1] and one.tokenizer.get_vocab() == other.tokenizer.get_vocab())


def twin_vectors(twin: Encoder, texts: list[str]) -> Tensor:
    """Unit vectors (texts, dimension) of a twin."""
    vectors = twin.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    made: Tensor = vectors.float().cpu().clone()
    return made
