"""How good a scorer of pairs is, and what the linear branch of a hybrid does for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attention import HybridAttention
from .data import Pairs
from .data.retrieval import Retrieval
from .encoder import Encoder, check_scoring
from .errors import TwinlineError
from .model import TwinlineModel
from .scales import Scores
from .statistics import (
    Correlation,
    UndefinedCorrelation,
    clustered_mean,
    correlation,
    is_constant,
)
from .teacher import Teacher
from .text import text_list


@dataclass(frozen=True)
class Evaluation:
    """A scorer's correlations with the labels of one split."""

    pearson: Correlation
    spearman: Correlation
    scores: Scores
    """What was predicted, (pairs,): for paired differences."""


def evaluate(scorer: Encoder | Teacher, pairs: Pairs, resamples: int = 2000) -> Evaluation:
    """Pearson and Spearman with 95 % bootstrap intervals.

    Raises: TwinlineError if the pairs have no scores or all the same one, or if ``scorer`` gives
        all of them the same, but for rounding: there is then no correlation.
    """
    return against_labels(predict(scorer, pairs), pairs, resamples)


def predict(scorer: Encoder | Teacher, pairs: Pairs) -> Scores:
    """Scores (pairs,) of an encoder or a teacher."""
    if isinstance(scorer, Teacher):
        return scorer.predict(list(zip(pairs.sentence1, pairs.sentence2, strict=True)))
    return np.asarray(scorer.score(pairs.sentence1, pairs.sentence2), dtype=np.float64)


def against_labels(scores: Scores, pairs: Pairs, resamples: int = 2000) -> Evaluation:
    """What ``evaluate`` returns, of scores already made."""
    if pairs.score is None:
        raise TwinlineError(f"{pairs.name} has no scores to evaluate against.")
    gold = pairs.unit_score  # refuses class numbers, which are no scale
    if len(scores) and np.isfinite(scores).all() and is_constant(scores):
        raise UndefinedCorrelation(
            f"The correlation is undefined: all {len(scores)} predicted scores of {pairs.name} are "
            f"{scores[0]:g}, but for rounding; give pairs of different texts, or another model if "
            "these are different."
        )
    return Evaluation(
        correlation(scores, gold, "pearson", resamples),
        correlation(scores, gold, "spearman", resamples),
        scores,
    )


def hybrids(model: TwinlineModel) -> list[HybridAttention]:
    """The model's hybrid attentions, layer by layer.

    Raises: TwinlineError if it has none.
    """
    found = [a for layer in model.each_layer() if isinstance(a := layer.attention, HybridAttention)]
    if not found:
        raise TwinlineError(f"A model with {model.config.attention} attention has no hybrid layer.")
    return found


@contextmanager
def far_off(model: TwinlineModel) -> Iterator[None]:
    """Inside the block, the linear branch of a hybrid is switched off."""
    attentions = hybrids(model)
    before = [attention.far for attention in attentions]
    for attention in attentions:
        attention.far = False
    try:
        yield
    finally:
        for attention, far in zip(attentions, before, strict=True):
            attention.far = far


def far_share(encoder: Encoder, texts: Iterable[str]) -> list[float]:
    """Per layer, the mean share of the denominator that the linear branch of a hybrid holds.

    The mean runs over the texts' real tokens and all heads.

    Raises: TwinlineError if the model is no hybrid, or ``texts`` are none.
    """
    given = text_list(texts)
    attentions = hybrids(encoder.model)
    sums = np.zeros((len(attentions), 2))

    def watch(number: int) -> Any:
        def report(log_odds: Tensor, mask: Tensor | None) -> None:
            share = torch.sigmoid(log_odds)  # (batch, heads, length)
            real = torch.ones_like(share) if mask is None else mask[:, None].expand_as(share)
            sums[number] += [float((share * real).sum()), float(real.sum())]

        return report

    for number, attention in enumerate(attentions):
        attention.report = watch(number)
    try:
        encoder.encode(given)
    finally:
        for attention in attentions:
            attention.report = None
    return [float(s) for s in sums[:, 0] / np.maximum(sums[:, 1], 1)]


@dataclass(frozen=True)
class RetrievalEvaluation:
    """How high each query's document stands among all, and the usual means of it.

    With one relevant document a query, nDCG@10 is ``1 / log2(1 + rank)`` up to rank 10, MRR the
    mean of ``1 / rank``. Intervals are bootstrapped over documents.
    """

    ndcg10: Correlation
    recall1: Correlation
    mrr: Correlation
    ranks: NDArray[np.int64]
    """From 1, ``(queries,)``; a document of equal score counts as standing higher."""


def evaluate_retrieval(encoder: Encoder, task: Retrieval, **options: Any) -> RetrievalEvaluation:
    """Ranks of the relevant documents under ``encoder``, every text read whole.

    Args:
        options: those of ``encoder.SCORING``, as ``encode`` takes them, for queries and documents.
    Raises: TwinlineError for another option.
    """
    check_scoring("evaluate_retrieval", options)
    queries, documents = text_list(task.queries, "queries"), text_list(task.documents, "documents")
    return from_scores(encoder.scores(queries, documents, options, options), task)


def from_scores(scores: NDArray[Any], task: Retrieval) -> RetrievalEvaluation:
    """``evaluate_retrieval`` of scores (queries, documents) already made."""
    own = scores[np.arange(len(task)), task.relevant][:, None]
    ranks = (scores >= own).sum(axis=1)
    return RetrievalEvaluation(
        clustered_mean(ndcg10(ranks), task.relevant),
        clustered_mean(ranks == 1, task.relevant),
        clustered_mean(1 / ranks, task.relevant),
        ranks,
    )


def ndcg10(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """nDCG@10 of each query with one relevant document at ``ranks``."""
    return np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
