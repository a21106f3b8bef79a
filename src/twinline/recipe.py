"""Recipe files: YAML that holds options by their names, and nothing that they do not know."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from .errors import TwinlineError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
         NoneType: "null"}  # fmt: skip
"""What a value of each plain type is called."""


def allowed(hint: Any) -> list[str]:
    """What an option of a type takes, in words; empty where that is not checked here."""
    if get_origin(hint) is Literal:
        return [f"one of {', '.join(map(str, get_args(hint)))}"]
    if get_origin(hint) in (Union, UnionType):
        inner = [allowed(one) for one in get_args(hint)]
        return [word for words in inner for word in words] if all(inner) else []
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return ["a list of options" if is_dataclass(inner) else "a list"]
    return [WORDS[hint]] if hint in WORDS else []


def fits(value: Any, hint: Any) -> bool:
    """Whether a recipe's plain value is of an option's type; a list's items are not looked at."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float))
    return hint not in WORDS or isinstance(value, hint)


def build(kind: type[Options], values: dict[str, Any], where: str) -> Options:
    """An options object from plain values (a recipe file's), nested ones included.

    Raises: TwinlineError naming ``where``, the key and what is allowed.
    """
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise TwinlineError(f"{where} has no option {name!r}; known: {', '.join(known)}.")
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise TwinlineError(f"{where}: {name} must hold options, not {value!r}.")
            value = build(hints[name], value, f"{where}: {name}")
        elif (words := allowed(hints[name])) and not fits(value, hints[name]):
            number = isinstance(value, str) and "a number" in words
            hint = " (write 1.0e-4 for 1e-4)" if number else ""
            raise TwinlineError(
                f"{where}: {name} must be {' or '.join(words)}, not {value!r}{hint}."
            )
        inner = get_args(hints[name])
        if inner and is_dataclass(inner[0]):  # a tuple of options
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise TwinlineError(f"{where}: {name} must be a list of options, not {value!r}.")
            value = [
                build(cast(Any, inner[0]), one, f"{where}: {name}, number {number}")
                for number, one in enumerate(value, 1)
            ]
        made[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**made)
    except TwinlineError as error:
        raise TwinlineError(f"{where}: {error}") from error
    except TypeError as error:
        raise TwinlineError(f"{where}: a value has the wrong type ({error}).") from error


def chosen(options: DataclassInstance) -> dict[str, Any]:
    """What differs from the defaults, nested options included: an option that is added later, with
    a default that changes nothing, does not change it."""
    made: dict[str, Any] = {}
    for option in fields(options):
        value = getattr(options, option.name)
        default = option.default
        if option.default_factory is not MISSING:
            default = option.default_factory()
        if value != default:
            made[option.name] = chosen(cast(Any, value)) if is_dataclass(value) else value
    return made


def read_recipe(kind: type[Options], path: str | Path) -> Options:
    """An options object from a YAML file.

    Raises: TwinlineError if the file cannot be read or has an option that is not known.
    """
    return build(kind, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A recipe file's values.

    Raises: TwinlineError if it cannot be read or holds no options.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TwinlineError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise TwinlineError(f"The recipe {path} is not valid YAML: {line}.") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise TwinlineError(f"The recipe {path} holds no options (name: value lines).")
    return values
