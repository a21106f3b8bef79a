"""What a grid's file may hold, checked before anything starts; a refusal says what is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import TwinlineError

SHORTEST = 16
"""Tokens of a long text, at least."""


def choice(name: str, values: tuple[Any, ...], allowed: tuple[Any, ...] | dict[str, Any]) -> None:
    """Refuse values that are not allowed, or twice there."""
    for value in values:
        if value not in allowed:
            known = ", ".join(str(a) for a in allowed)
            raise TwinlineError(f"{name} must be among {known}, not {value!r}.")
    if len(set(values)) < len(values):
        raise TwinlineError(f"{name} names something twice: {', '.join(map(str, values))}.")


def source(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a source of data that is neither known by name nor a file."""
    if value not in known and not Path(value).is_file():
        raise TwinlineError(
            f"{name} must be among {', '.join(known)}, or a file that exists, not {value!r}."
        )


def numbers(name: str, values: Any, kind: type[int] | type[float], least: float = 0) -> None:
    """Refuse what is no list of numbers of a kind, or has one below ``least``."""
    if not isinstance(values, tuple) or not all(
        isinstance(v, kind) and not isinstance(v, bool) and v >= least for v in values
    ):
        hint = " (write 1.0e-4 for 1e-4)" if kind is float else ""
        raise TwinlineError(
            f"{name} must be a list of {kind.__name__}s of at least {least}, not {values!r}{hint}."
        )


def plain(name: str, value: str) -> None:
    """Refuse what cannot be part of a file's name."""
    if value and not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", value):
        raise TwinlineError(f"{name} must be letters, digits and hyphens, not {value!r}.")


def rising(name: str, values: tuple[int, ...]) -> None:
    """Refuse stages that do not grow: each is a training of its own."""
    numbers(name, values, int, SHORTEST)
    if list(values) != sorted(set(values)):
        raise TwinlineError(f"{name} must rise stage by stage, not {values}.")


def other_version(file: Path) -> TwinlineError:
    """The refusal of results that are not of this grid."""
    return TwinlineError(
        f"{file} holds results of another version of the grid; they are not mixed. Move it away, "
        "or give the grid another name."
    )
