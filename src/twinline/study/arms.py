"""The kinds of arms of a study: what each reads, and how."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 512
"""Tokens of a window, and of what ``softmax-cut512`` reads."""


@dataclass(frozen=True)
class Kind:
    """What an arm is: how it reads in training, and what else is evaluated of its weights."""

    attention: str
    windows: int | None = None
    """Read in windows of so many tokens whose vectors are averaged."""
    virtual: bool = True
    """Long texts of training may be virtual; where not, every text is read whole."""
    also: tuple[str, ...] = ()
    """Arms that are this one's weights read in another way."""


ARMS = {
    "softmax-full": Kind("softmax", virtual=False, also=("softmax-cut512",)),
    "softmax-windows512": Kind("softmax", windows=WINDOW),
    "linear": Kind("linear"),
    "hybrid": Kind("hybrid", also=("hybrid-off",)),
    "lightning": Kind("lightning"),
}
"""Arms that are trained. ``softmax-cut512`` is softmax-full that reads the first 512 tokens,
``hybrid-off`` hybrid with its linear branch switched off."""


def trained_as(name: str) -> str:
    """The arm whose weights an arm reads."""
    return next((arm for arm, kind in ARMS.items() if name in kind.also), name)
