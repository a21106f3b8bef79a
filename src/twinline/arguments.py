"""Arguments of plain types: numbers, names, flags and devices, refused in one sentence each.

Options that stand in a dataclass are checked against their annotations (``check_fields``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import TwinlineError

if TYPE_CHECKING:
    import torch
    from _typeshed import DataclassInstance

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
         NoneType: "None"}  # fmt: skip
"""What a value of each plain type is called."""
MANY = {int: "whole numbers", float: "numbers", str: "texts"}
"""What several are called."""


def plain(value: Any) -> Any:
    """A NumPy scalar as Python's own number, truth value or text; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < float("inf")  # False for nan, too


def allowed(hint: Any) -> list[str]:
    """What an option of a type takes, in words; empty where that is not checked here."""
    if get_origin(hint) is Literal:
        return [f"one of {', '.join(map(str, get_args(hint)))}"]
    if get_origin(hint) in (Union, UnionType):
        inner = [allowed(one) for one in get_args(hint)]
        return [word for words in inner for word in words] if all(inner) else []
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        if Ellipsis in others:
            return ["a list of options" if is_dataclass(first) else "a list"]
        return [f"a list of {1 + len(others)} {MANY.get(first, 'values')}"]
    if is_dataclass(hint) and isinstance(hint, type):
        return [f"a {hint.__name__}"]
    return [WORDS[hint]] if hint in WORDS else []


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an option's type; a list may stand for a tuple."""
    if get_origin(hint) is Literal:
        return isinstance(value, (str, int)) and value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, (list, tuple)):
            return False
        if Ellipsis in inner:
            return all(fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return is_number(value)
    if is_dataclass(hint) and isinstance(hint, type):
        return isinstance(value, hint)
    return hint not in WORDS or isinstance(value, hint)


def complaint(name: str, value: Any, hint: Any, in_file: bool = False) -> str | None:
    """What is wrong with a plain value of an option's type; None if nothing is.

    Args:
        in_file: the value stands in a recipe file, whose language is YAML.
    """
    words = allowed(hint)
    if not words or fits(value, hint):
        return None
    if isinstance(value, (list, tuple)):
        for one in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
            if get_origin(one) is tuple and Ellipsis in get_args(one):
                inner = get_args(one)[0]
                places = (i for i, item in enumerate(value, 1) if not fits(item, inner))
                place = next(places)
                return complaint(f"{name}, number {place},", value[place - 1], inner, in_file)
    takes, note = " or ".join(words), ""
    if in_file:
        takes = " or ".join("null" if word == WORDS[NoneType] else word for word in words)
        if isinstance(value, str) and WORDS[float] in words:
            note = " (write 1.0e-4 for 1e-4)"
    return f"{name} must be {takes}, not {value!r:.60}{note}."


def is_text(hint: Any) -> bool:
    """Whether an option of a type may be any text."""
    return hint is str or (get_origin(hint) in (Union, UnionType) and str in get_args(hint))


def check_value(name: str, value: Any, hint: Any) -> Any:
    """The value of an option, of exactly its type.

    NumPy scalars become Python's, lists become tuples, and a path is text where text is taken.

    Raises: TwinlineError naming the option and what it takes.
    """
    value = plain(value)
    if isinstance(value, PathLike) and is_text(hint):
        value = fspath(value)
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        value = tuple(fspath(item) if isinstance(item, PathLike) else item for item in items)
    if wrong := complaint(name, value, hint):
        raise TwinlineError(wrong)
    return value


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's options."""
    return get_type_hints(kind)


def check_fields(options: DataclassInstance) -> None:
    """Refuse every option of the wrong type, and bring the others to exactly theirs, in place.

    Raises: TwinlineError as ``check_value``.
    """
    hints = hints_of(type(options))
    for option in fields(options):
        value = getattr(options, option.name)
        fit = check_value(option.name, value, hints[option.name])
        if fit is not value:
            object.__setattr__(options, option.name, fit)  # the dataclass may be frozen


def whole_number(name: str, value: Any, least: int | None = None, optional: bool = False) -> Any:
    """``value`` as an int; or None, if ``optional``.

    Raises: TwinlineError if it is no whole number (8.0, "8" and True are none), or below ``least``.
    """
    value = plain(value)
    if value is None and optional:
        return None
    suffix = " or None" if optional else ""
    if not fits(value, int):
        raise TwinlineError(f"{name} must be a whole number{suffix}, not {value!r:.60}.")
    if least is not None and value < least:
        raise TwinlineError(f"{name} must be at least {least}{suffix}, not {value}.")
    return value


def one_of(name: str, value: Any, names: Iterable[str]) -> None:
    """Refuse what is not among ``names``."""
    known = list(names)
    if not isinstance(value, str) or value not in known:
        raise TwinlineError(f"{name} must be one of {', '.join(known)}, not {value!r:.60}.")


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool.

    Raises: TwinlineError if it is neither True nor False.
    """
    truth = plain(value)
    if not isinstance(truth, bool):
        raise TwinlineError(f"{name} must be True or False, not {value!r:.60}.")
    return truth


def instance(name: str, value: Any, kind: type, optional: bool = False) -> None:
    """Refuse what is no object of a class; or None, unless ``optional``.

    Raises: TwinlineError naming the class.
    """
    if not isinstance(value, kind) and not (optional and value is None):
        raise TwinlineError(
            f"{name} must be of the class {kind.__name__}, not of {type(value).__name__}."
        )


def device_of(value: Any) -> torch.device:
    """A device by its name; None: a GPU if there is one, else the processor.

    Raises: TwinlineError if there is no such kind of device.
    """
    import torch  # takes seconds

    if value is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(value, (str, int, torch.device)) or isinstance(value, bool):
        raise TwinlineError(f"device must be a name such as 'cpu' or 'cuda:0', not {value!r:.60}.")
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise TwinlineError(
            f"device must be a name such as 'cpu' or 'cuda:0', not {value!r:.60}."
        ) from error


def usable_device(value: Any) -> torch.device:
    """``device_of``, of which torch can use the device here.

    Raises: TwinlineError as it, or if a number cannot be put there.
    """
    import torch

    device = device_of(value)
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        raise TwinlineError(
            f"The device {str(device)!r} cannot be used here: choose another, such as 'cpu'."
        ) from error
    return device
