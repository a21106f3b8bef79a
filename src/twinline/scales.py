"""The scales of scores: declared, never guessed, and checked.

A scorer's scale is "logit" (any number; its sigmoid is the score), "unit" (already 0 to 1) or a
pair ``(low, high)``; labelled pairs have such a pair. A score that lies off its declared scale is
refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import is_number, plain
from .errors import TwinlineError

Range = tuple[float, float]
Scale = str | Range
Scores = NDArray[np.float64]

LABELS = (-1e-6, 1 + 1e-6)
"""Where labels may lie, on the unit scale: a little is rounding."""
REGRESSOR = (-0.1, 1.1)
"""Where a cross-encoder's scores may lie, on the unit scale: a regressor overshoots a little."""
COSINE = (-1.0, 1.5)
"""Where a twin's scores may lie, on the unit scale: cosines of unrelated texts are a little
negative, and learned heads overshoot."""


def check_range(scale: Any) -> Range:
    """``scale`` as two rising numbers.

    Raises: TwinlineError if it is anything else.
    """
    ends = list(map(plain, scale)) if isinstance(scale, (list, tuple, np.ndarray)) else []
    if len(ends) != 2 or not all(map(is_number, ends)):
        raise TwinlineError(f"scale must be two numbers, (low, high), not {scale!r:.60}.")
    low, high = map(float, ends)
    if not low < high:
        raise TwinlineError(
            f"scale must go from a lower number to a higher, not {low:g} to {high:g}."
        )
    return low, high


def check_scale(scale: Any) -> Scale:
    """``scale`` if it is one of a scorer.

    Raises: TwinlineError if it is not "logit", "unit" or two rising numbers.
    """
    if isinstance(scale, str) and scale in ("logit", "unit"):
        return scale
    try:
        return check_range(scale)
    except TwinlineError:
        raise TwinlineError(
            f'scale must be "logit", "unit" or (low, high), two rising numbers, not {scale!r:.60}.'
        ) from None


def to_unit(scores: Scores, scale: Scale) -> Scores:
    """Scores on a declared scale, on the unit scale."""
    if scale == "logit":
        return 1 / (1 + np.exp(-scores))
    if scale == "unit":
        return scores
    low, high = float(scale[0]), float(scale[1])
    return (scores - low) / (high - low)


def off_scale(scores: Scores, scale: Scale, bounds: Range) -> int | None:
    """The place of the first score that lies off its scale; None if there is none.

    Args:
        bounds: what is allowed, on the unit scale: ``LABELS``, ``REGRESSOR`` or ``COSINE``.
    """
    if scale == "logit":
        return None
    unit = to_unit(scores, scale)
    outside = np.flatnonzero((unit < bounds[0]) | (unit > bounds[1]))
    return int(outside[0]) if outside.size else None


def scale_words(scale: Scale) -> str:
    """A scale in words."""
    return f'"{scale}"' if isinstance(scale, str) else f"{scale[0]:g} to {scale[1]:g}"


def score_vector(value: Any, name: str) -> Scores:
    """Scores as a vector of finite numbers.

    Raises: TwinlineError if ``value`` holds anything else, naming the first such row.
    """
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "iufO" or (
            raw.dtype.kind == "O" and any(isinstance(one, str) for one in raw.flat)
        ):
            raise TypeError(f"these are of type {raw.dtype}")
        scores = raw.astype(np.float64)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TwinlineError(f"{name} must be a list of numbers: {reason}.") from error
    if scores.ndim != 1:
        raise TwinlineError(f"{name} must be a list of numbers, not an array {scores.shape}.")
    if (bad := np.flatnonzero(~np.isfinite(scores))).size:
        raise TwinlineError(
            f"{name}: the score of pair {bad[0] + 1} is not a number but {scores[bad[0]]}: give a "
            "finite one."
        )
    return scores
