"""What training and encoding cost, and how a curve reaches its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..bysentence import INSIDE
from ..errors import TwinlineError
from ..loop import Record, Run

TARGETS = (0.75, 0.80, 0.85)
"""Common targets of validation Pearson."""
COMMON = 0.80
"""That of them whose cost is told first."""
SHARES = (0.90, 0.95, 0.99)
"""Of a curve's own final value."""
COSTS = ("steps", "pairs", "tokens", "seconds", "flops")
Curve = list[dict[str, float]]
"""Points with ``pearson`` and the ``COSTS`` until then."""


def point(line: Record, tokens: int, seconds: float, flops: float) -> dict[str, float]:
    """A point of a curve."""
    assert line.validation_pearson is not None
    return {
        "steps": line.step, "pairs": line.pairs, "tokens": tokens, "seconds": round(seconds, 1),
        "flops": flops, "pearson": round(line.validation_pearson, 5),
    }  # fmt: skip


def check_end(run: Run, name: str) -> None:
    """Refuse a run whose last validation score is undefined: its curve has no end to compare.

    Raises: TwinlineError.
    """
    if run.log[-1].validation_pearson is None:
        raise TwinlineError(
            f"{name} ends with a student that gives all validation pairs the same score: lower its "
            "learning rate, or leave it out of the grid."
        )


def joined(before: Curve, curve: Curve) -> Curve:
    """Two curves as one: the second starts where the first ended."""
    if not before:
        return curve
    costs = before[-1]
    later = [{**p, **{name: p[name] + costs[name] for name in COSTS}} for p in curve[1:]]
    return [*before, *later]


def flops(config: Any, tokens: int, length: int) -> float:
    """Floating-point operations of encoding ``tokens`` in texts of ``length``: products alone.

    ``config`` is a ``TwinlineConfig``. A product of (m, k) with (k, n) counts 2 m k n; embeddings,
    norms and activations are left out. Training takes three times as many: the backward pass has
    two products for each.
    """
    h: int = config.hidden_size
    heads: int = config.num_attention_heads
    d = h // heads
    layer: int = 8 * h * h + 4 * h * config.intermediate_size  # q, k, v, out; up, down
    directions = config.feature_dim or d
    signed = config.feature_map in ("hedgehog", "gated")
    features = 2 * directions if signed else d
    maps = 2 * 2 * heads * d * features if signed else 0  # of queries and keys
    state = 2 * 2 * heads * features * (d + 1)  # collected and read
    near = min(length, config.block_size)
    # Of other blocks, or of other sentences.
    far = config.far and (length > config.block_size or config.sentences)
    layer += {
        "softmax": 4 * length * h,
        "linear": maps + state,
        "hybrid": 4 * near * h + (maps + state if far else 0),
        "lightning": maps + state + 2 * near * heads * (features + d + 1),
    }[config.attention]
    pooling = {
        "latent": 2 * 2 * 2 * heads * h,  # two layers read twice
        "sentence": 2 * INSIDE * h + 2 * 2 * h,  # within sentences; each head its part, two layers
    }.get(config.pooling, 0)
    total: float = float(tokens) * (config.num_hidden_layers * layer + pooling)
    return total


@dataclass(frozen=True)
class Reached:
    """What it cost to reach a value; interpolated between the two evaluations around it."""

    target: float
    costs: dict[str, float] | None
    """By name (``COSTS``); None: not reached."""
    at_start: bool = False
    """It was there at the curve's first point: what it cost is at most this."""


def reached(curve: Sequence[dict[str, float]], target: float) -> Reached:
    """When a curve is first at ``target``.

    Args:
        curve: points with ``pearson`` and the ``COSTS`` so far, in their order.
    """
    before: dict[str, float] | None = None
    for point in curve:
        if point["pearson"] >= target:
            share = 1.0
            if before is not None:
                share = (target - before["pearson"]) / (point["pearson"] - before["pearson"])
            costs = {
                name: (before or point)[name] * (1 - share) + point[name] * share for name in COSTS
            }
            return Reached(target, costs, before is None)
        before = point
    return Reached(target, None)


@dataclass(frozen=True)
class PowerLaw:
    """``1 - r = a * x ** b``, fitted to logarithms by least squares."""

    a: float
    b: float
    b_error: float
    """Standard error of ``b``; nan with two points."""
    spread: float
    """Residual standard deviation of the natural logarithm: 0.1 is about 10 %."""
    points: int


def power_law(x: ArrayLike, r: ArrayLike) -> PowerLaw | None:
    """How the loss of correlation grows (b > 0) or shrinks (b < 0) with x; None below two points.

    The form is that of Kaplan et al. (arXiv 2001.08361, eq. 1.1), of 1 - r instead of the loss.
    """
    at, lost = np.log(np.asarray(x, float)), np.log(np.clip(1 - np.asarray(r, float), 1e-6, None))
    if len(np.unique(at)) < 2:
        return None
    design = np.stack([np.ones_like(at), at], axis=1)
    (start, slope), *_ = np.linalg.lstsq(design, lost, rcond=None)
    rest = lost - design @ np.array([start, slope])
    free = len(at) - 2
    spread = float(np.sqrt((rest**2).sum() / free)) if free else float("nan")
    error = spread / float(np.sqrt(((at - at.mean()) ** 2).sum()))
    return PowerLaw(float(np.exp(start)), float(slope), error, spread, len(at))
