"""How well predictions follow gold scores, with confidence intervals.

Intervals are percentile bootstrap intervals of 95 % over pairs (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import TwinlineError

if TYPE_CHECKING:  # numpy takes 0.1 s to import and scipy.stats 1 s: only where they are needed
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Vector = NDArray[np.float64]

Kind = Literal["pearson", "spearman"]

ROUNDING = 1e-6
"""Values whose spread is at most this share of the largest of them differ by rounding only: a
float32 carries 1.2e-7 of its size, and a score is the end of a few sums of such numbers."""

_LEVEL = 95.0
_CELLS_PER_CHUNK = 2**18
"""Resamples are handled so many numbers at a time, to stay in the processor's cache."""


class UndefinedCorrelation(TwinlineError):  # noqa: N818 (it names what is not there)
    """One side does not vary, or holds a value that is not a number."""


@dataclass(frozen=True)
class Correlation:
    """A correlation, a mean, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Number of pairs or queries it was measured on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's linear correlation of two vectors of the same length.

    Raises:
        UndefinedCorrelation: a vector holds NaN or infinity, or its values are all the same or
            differ by rounding only (``ROUNDING``).
        TwinlineError: the two are not vectors of the same length.
    """
    from scipy.stats import pearsonr

    return float(pearsonr(*_checked(a, b)).statistic)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two vectors of the same length, equal values sharing a rank.

    Raises:
        UndefinedCorrelation: a vector holds NaN or infinity, or its values are all the same or
            differ by rounding only (``ROUNDING``).
        TwinlineError: the two are not vectors of the same length.
    """
    from scipy.stats import spearmanr

    return float(spearmanr(*_checked(a, b)).statistic)


_POINT = {"pearson": pearson, "spearman": spearman}


def correlation(
    a: ArrayLike,
    b: ArrayLike,
    kind: Kind = "pearson",
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """The correlation of two vectors of the same length, with its bootstrap interval.

    Resamples in which one side is constant have no correlation and are left out.

    Raises:
        TwinlineError: as :func:`pearson`, or an unknown ``kind``.
    """
    import numpy as np

    first, second = _checked(a, b)
    value = _point(kind)(first, second)
    drawn = np.concatenate(
        [_resampled(kind, first, second, c) for c in _counts(len(first), resamples, seed)]
    )
    return _with_interval(value, drawn, len(first))


def paired_difference(
    prediction_a: ArrayLike,
    prediction_b: ArrayLike,
    gold: ArrayLike,
    kind: Kind = "pearson",
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """How much better ``prediction_a`` correlates with ``gold`` than ``prediction_b`` does.

    Both are looked at on the same resampled pairs, so what they share cancels and the interval
    is the difference's own.

    Raises:
        TwinlineError: as :func:`correlation`.
    """
    import numpy as np

    first, truth = _checked(prediction_a, gold)
    second, _ = _checked(prediction_b, gold)
    value = _point(kind)(first, truth) - _point(kind)(second, truth)
    drawn = np.concatenate(
        [
            _resampled(kind, first, truth, c) - _resampled(kind, second, truth, c)
            for c in _counts(len(truth), resamples, seed)
        ]
    )
    return _with_interval(value, drawn, len(truth))


def mean_difference(
    predictions_a: Sequence[ArrayLike],
    predictions_b: Sequence[ArrayLike],
    gold: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """How much better ``a``'s runs correlate (Pearson) with ``gold`` on average than ``b``'s do.

    As :func:`paired_difference`, each side the mean of several runs' correlations on the same
    resampled pairs. The spread between runs is not in the interval: show it beside.

    Raises:
        TwinlineError: as :func:`correlation`, or a side has no run.
    """
    import numpy as np

    if not len(predictions_a) or not len(predictions_b):
        raise TwinlineError("A difference needs at least one run on each side.")
    sides = [[_checked(one, gold) for one in side] for side in (predictions_a, predictions_b)]
    first, second = ([pearson(made, truth) for made, truth in side] for side in sides)
    drawn = []
    for counts in _counts(len(sides[0][0][1]), resamples, seed):
        one, other = (
            np.mean([_resampled("pearson", made, truth, counts) for made, truth in side], axis=0)
            for side in sides
        )
        drawn.append(one - other)
    value = float(np.mean(first) - np.mean(second))
    return _with_interval(value, np.concatenate(drawn), len(sides[0][0][1]))


def resampled_pearsons(
    predictions: Sequence[ArrayLike], gold: ArrayLike, resamples: int = 2000, seed: int = 0
) -> NDArray[Any]:
    """Pearson of several predictions on the same resampled pairs: (predictions, resamples).

    Raises:
        TwinlineError: as :func:`correlation`.
    """
    import numpy as np

    sides = [_checked(one, gold) for one in predictions]
    drawn = [
        [_resampled("pearson", made, truth, counts) for made, truth in sides]
        for counts in _counts(len(sides[0][1]), resamples, seed)
    ]
    return np.concatenate([np.array(chunk) for chunk in drawn], axis=1)


def clustered_mean(
    values: ArrayLike, clusters: ArrayLike, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """The mean of ``values``, with the interval of a bootstrap over whole clusters.

    Queries about one document stand or fall together, so documents are drawn, not queries. Given
    the differences of two systems on the same queries, this is their paired difference.

    Raises:
        TwinlineError: nothing is given, or the two differ in length.
    """
    import numpy as np

    found, which = _same_length(_numbers(values), np.asarray(clusters))
    _, which = np.unique(which, return_inverse=True)
    sums, sizes = np.bincount(which, weights=found), np.bincount(which)
    drawn = np.concatenate([(c @ sums) / (c @ sizes) for c in _counts(len(sums), resamples, seed)])
    return _with_interval(float(found.mean()), drawn, len(found))


def accuracy(prediction: ArrayLike, gold: ArrayLike) -> float:
    """Share of predicted classes that equal the gold classes.

    Raises:
        TwinlineError: the two differ in length or are empty.
    """
    import numpy as np

    predicted, truth = _same_length(np.asarray(prediction), np.asarray(gold))
    return float((predicted == truth).mean())


def f1(prediction: ArrayLike, gold: ArrayLike) -> float:
    """Harmonic mean of precision and recall of class 1.

    Raises:
        TwinlineError: the two differ in length or are empty, or class 1 occurs in neither.
    """
    import numpy as np

    predicted, truth = _same_length(np.asarray(prediction) == 1, np.asarray(gold) == 1)
    occurrences = int(predicted.sum() + truth.sum())
    if not occurrences:
        raise TwinlineError("F1 is undefined: class 1 is neither predicted nor in the gold labels.")
    return 2 * int((predicted & truth).sum()) / occurrences


def is_constant(values: ArrayLike) -> bool:
    """Whether finite ``values`` are all the same, but for rounding (``ROUNDING``)."""
    import numpy as np

    found = _numbers(values)
    return not found.size or bool(np.ptp(found) <= ROUNDING * np.abs(found).max())


def _numbers(values: Any) -> Vector:
    """What can be read as numbers.

    Raises: TwinlineError if ``values`` cannot.
    """
    import numpy as np

    try:
        return np.asarray(values, np.float64)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise TwinlineError(
            f"A correlation is of two lists of numbers; one is of type {type(values).__name__}."
        ) from error


def _point(kind: str) -> Any:
    if kind not in _POINT:
        raise TwinlineError(f"kind must be one of {', '.join(_POINT)}, not {kind!r}.")
    return _POINT[kind]


def _same_length(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if a.ndim != 1 or a.shape != b.shape:
        raise TwinlineError(
            f"Two vectors of the same length are needed, not shapes {a.shape} and {b.shape}."
        )
    if not len(a):
        raise TwinlineError("Two vectors of the same length are needed, but both are empty.")
    return a, b


def _checked(a: ArrayLike, b: ArrayLike) -> tuple[Vector, Vector]:
    import numpy as np

    first, second = _same_length(_numbers(a), _numbers(b))
    for vector, side in ((first, "first"), (second, "second")):
        finite = np.isfinite(vector)
        if not finite.all():
            row = int(np.argmin(finite))
            raise UndefinedCorrelation(
                f"The correlation is undefined: value {row + 1} of the {side} vector is "
                f"{vector[row]}; every value must be a finite number."
            )
        if is_constant(vector):
            rounding = "" if (vector == vector[0]).all() else ", but for rounding"
            raise UndefinedCorrelation(
                f"The correlation is undefined: all {len(vector)} values of the {side} vector "
                f"are {vector[0]:g}{rounding}; at least two distinct values are needed."
            )
    return first, second


def _counts(count: int, resamples: int, seed: int) -> Iterator[Vector]:
    """Chunks of (resamples of the chunk, count): how often each pair was drawn."""
    import numpy as np

    if resamples < 1:
        raise TwinlineError(f"resamples must be at least 1, not {resamples}.")
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS_PER_CHUNK // count)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(count, size=(size, count))
        drawn += np.arange(size)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float)


def _resampled(kind: str, a: Vector, b: Vector, counts: Vector) -> Vector:
    """The correlation in each resample, ``(resamples,)``; NaN where a side is constant."""
    if kind == "spearman":
        return _weighted_pearson(_ranks(a, counts), _ranks(b, counts), counts)
    # Centring loses nothing and keeps the sums of squares below from cancelling.
    return _weighted_pearson(a - a.mean(), b - b.mean(), counts)


def _weighted_pearson(a: Vector, b: Vector, counts: Vector) -> Vector:
    """``a`` and ``b`` are ``(count,)`` or one row a resample; ``counts`` is (resamples, count)."""
    import numpy as np

    def total(values: Vector) -> Vector:
        return counts @ values if values.ndim == 1 else np.einsum("rc,rc->r", counts, values)

    size = counts.shape[1]
    sum_a, sum_b, square_a, square_b = total(a), total(b), total(a * a), total(b * b)
    variance_a = square_a - sum_a**2 / size
    variance_b = square_b - sum_b**2 / size
    covariance = total(a * b) - sum_a * sum_b / size
    # A constant side leaves rounding dust instead of a zero variance.
    varies = (variance_a > 1e-12 * square_a) & (variance_b > 1e-12 * square_b)
    result = np.full(len(counts), np.nan)
    np.divide(covariance, np.sqrt(np.abs(variance_a * variance_b)), out=result, where=varies)
    return result


def _ranks(values: Vector, counts: Vector) -> Vector:
    """Centred mid-ranks of each value within each resample, ``(resamples, count)``.

    Sorting once and adding up how often each distinct value was drawn spares a sort a resample.
    """
    import numpy as np

    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)
    middle = np.cumsum(drawn, axis=1) - drawn / 2 - counts.shape[1] / 2
    ranks: Vector = middle[:, group]
    return ranks


def _with_interval(value: float, drawn: Vector, count: int) -> Correlation:
    import numpy as np

    tail = (100 - _LEVEL) / 2
    defined = drawn[np.isfinite(drawn)]
    if not len(defined):
        raise TwinlineError(
            f"No resample of {count} pairs had two distinct values on both sides; give more pairs."
        )
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Correlation(value, float(low), float(high), count)
