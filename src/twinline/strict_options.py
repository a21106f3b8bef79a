"""What a command line or a recipe file gives for each option, held against the option's type.

The parser rounds 1.5 to a whole number and takes "yes" for true in a file. Here both are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from .arguments import complaint, hints_of
from .errors import TwinlineError

FRACTION = re.compile(r"[+-]?(\d+\.\d*[1-9]\d*|\.\d+|\d*\.?\d+e[+-]?\d+|nan|inf)", re.IGNORECASE)
"""What is written as a number and is no whole one."""


def types_of(verb: Callable[..., Any]) -> dict[str, Any]:
    """The types of a verb's options by their names, those inside others as ``train.seed``."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(verb).items():
        kinds = [one for one in (hint, *get_args(hint)) if is_dataclass(one)]
        if kinds:  # a recipe's options stand flat among the verb's own
            found |= dict(_inside(kinds[0], ""))
        elif name != "return":
            found[name] = hint
    return found


def _inside(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in hints_of(kind).items():
        if is_dataclass(hint):
            yield from _inside(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def check_tokens(tokens: Sequence[str], types: dict[str, Any]) -> None:
    """Refuse a fraction where an option takes whole numbers alone.

    Raises: TwinlineError naming the option.
    """
    name = ""
    for token in tokens:
        if token.startswith("--"):
            name, _, value = token[2:].partition("=")
        else:
            value = token
        hint = types.get(name.replace("-", "_"))
        kinds = {hint, *get_args(hint)}
        if int in kinds and float not in kinds and FRACTION.fullmatch(value):
            raise TwinlineError(f"--{name} must be a whole number, not {value}.")
        if value and get_origin(hint) is not tuple:  # what follows belongs to no option
            name = ""


def check_values(values: dict[str, Any], types: dict[str, Any], where: str, of: str = "") -> None:
    """Refuse a recipe file's values that are not of their options' types.

    Names that no option has are the parser's to refuse.

    Raises: TwinlineError naming the file and the option.
    """
    for key, value in values.items():
        name = of + str(key)
        if isinstance(value, dict):
            check_values(value, types, where, f"{name}.")
        elif name in types and (wrong := complaint(name, value, types[name], in_file=True)):
            raise TwinlineError(f"{where}: {wrong}")
