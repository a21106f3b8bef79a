"""Recipe files: YAML that holds options by their names, and nothing that they do not know."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from .arguments import complaint, hints_of
from .errors import TwinlineError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def build(kind: type[Options], values: dict[str, Any], where: str) -> Options:
    """An options object from plain values (a recipe file's), nested ones included.

    Raises: TwinlineError naming ``where``, the key and what is allowed.
    """
    hints = hints_of(kind)
    known = {f.name: f for f in fields(kind)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise TwinlineError(f"{where} has no option {name!r}; known: {', '.join(known)}.")
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise TwinlineError(f"{where}: {name} must hold options, not {value!r}.")
            value = build(hints[name], value, f"{where}: {name}")
        inner = get_args(hints[name])
        if inner and is_dataclass(inner[0]):  # a tuple of options
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise TwinlineError(f"{where}: {name} must be a list of options, not {value!r}.")
            value = [
                build(cast(Any, inner[0]), one, f"{where}: {name}, number {number}")
                for number, one in enumerate(value, 1)
            ]
        if wrong := complaint(name, value, hints[name], in_file=True):
            raise TwinlineError(f"{where}: {wrong}")
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
        text = Path(path).read_text(encoding="utf-8")
        twice = repeated_key(yaml.compose(text, yaml.SafeLoader), set())
        values = yaml.safe_load(text)
    except OSError as error:
        raise TwinlineError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise TwinlineError(f"The recipe {path} is not valid YAML: {line}.") from error
    if twice:  # YAML itself takes the last value
        raise TwinlineError(f"The recipe {path} gives {twice} twice: remove one.")
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise TwinlineError(f"The recipe {path} holds no options (name: value lines).")
    return values


def repeated_key(node: Any, seen: set[int]) -> str | None:
    """A key that a mapping below a YAML node has twice, if any does."""
    if node is None or id(node) in seen or isinstance(node.value, str):
        return None
    seen.add(id(node))
    pairs = [item for item in node.value if isinstance(item, tuple)]
    names = [str(key.value) for key, _ in pairs]
    inside = [value for _, value in pairs] or node.value
    again = (name for name in names if names.count(name) > 1 and name != "<<")
    return next(again, None) or next(filter(None, (repeated_key(n, seen) for n in inside)), None)
