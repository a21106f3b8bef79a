"""What users call texts: one gate that makes a list of strings of it, or refuses it.

Texts may come as a list, a tuple, a generator, a one-dimensional NumPy array, a pandas Series, an
Arrow array, an open text file: whatever has an order. They are taken by position. Nothing that
holds labels, columns or characters beside them is guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Set
from os import PathLike
from typing import Any

from .errors import TwinlineError

Pair = tuple[str, str]

_UNFIT = re.compile("[\0\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Replace what tokenizers cannot take, NUL and lone surrogates, by U+FFFD each."""
    if not _UNFIT.search(text):
        return text
    # UTF-16 joins what is a pair of surrogates and replaces only the lone ones.
    units = text.replace("\0", "\ufffd").encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace")


class TextList(list[str]):
    """Texts by position, and what the user calls each of them: messages name it so.

    Args:
        label: from a text's place to its name, as in "text number 3".
    """

    def __init__(self, texts: Iterable[str], label: Callable[[int], str]) -> None:
        super().__init__(texts)
        self.label = label

    def at(self, places: list[int]) -> TextList:
        """The texts at ``places``, under the names that they have here."""
        return TextList((self[place] for place in places), lambda i: self.label(places[i]))


class PairList(list[Pair]):
    """Pairs of texts by position, and what the user calls each of them.

    Args:
        label: from a pair's place to its name, as in "pair number 3"; with a side (0 or 1), to that
            of one of its texts.
    """

    def __init__(self, pairs: Iterable[Pair], label: Callable[[int, int | None], str]) -> None:
        super().__init__(pairs)
        self.label = label

    def side(self, side: int) -> TextList:
        """All first texts (0) or all second ones (1)."""
        return TextList((pair[side] for pair in self), lambda place: self.label(place, side))

    def turned(self) -> PairList:
        """The pairs with their second text first."""
        return PairList(
            ((b, a) for a, b in self),
            lambda place, side: self.label(place, None if side is None else 1 - side),
        )

    def at(self, places: list[int]) -> PairList:
        """The pairs at ``places``, under the names that they have here."""
        return PairList(
            (self[place] for place in places), lambda i, side: self.label(places[i], side)
        )


def numbered(name: str = "", before: int = 0) -> Callable[[int], str]:
    """Names of the texts of an argument: "text number 3 of documents".

    Args:
        before: texts that came earlier, as in a stream that is read in parts.
    """
    of = f" of {name}" if name else ""
    return lambda place: f"text number {before + place + 1}{of}"


def numbered_pair(place: int, side: int | None = None) -> str:
    """The name of a pair, or of one of its texts."""
    part = "" if side is None else ("the first text of ", "the second text of ")[side]
    return f"{part}pair number {place + 1}"


def capital(words: str) -> str:
    """``words`` as the beginning of a sentence."""
    return words[:1].upper() + words[1:]


def text_list(
    value: Any, name: str = "texts", label: Callable[[int], str] | None = None, one: str = ""
) -> TextList:
    """What a user gives as texts, as a list of strings by position.

    Args:
        name: the argument's, in messages.
        label: names of the texts; by default their numbers.
        one: what to do with a single string instead.
    Raises: TwinlineError if ``value`` has no order or more than texts in it, or an item is no text.
    """
    if isinstance(value, TextList):
        return value
    label = label or numbered(name)
    return TextList(iter_texts(value, name, label, one), label)


def iter_texts(
    value: Any, name: str = "texts", label: Callable[[int], str] | None = None, one: str = ""
) -> Iterator[str]:
    """``text_list`` of a stream: ``value`` is refused at once, each text where it comes."""
    items = items_of(value, name, "texts", one, dimensions=(1,))
    return each_text(items, label or numbered(name))


def each_text(items: Iterator[Any], label: Callable[[int], str]) -> Iterator[str]:
    for place, item in enumerate(items):
        if type(item) is str:
            yield item
        elif isinstance(item, str):  # of a class of its own, as NumPy's are
            yield str.__str__(item)
        else:
            raise TwinlineError(
                f"{capital(label(place))} is of type {type(item).__name__}: give strings."
            )


def pair_list(value: Any, name: str = "pairs") -> PairList:
    """What a user gives as pairs of texts, as a list of two strings each, by position.

    Raises: TwinlineError as ``text_list``, or if an item is not exactly two texts.
    """
    if isinstance(value, PairList):
        return value
    one = 'write [("a text", "another")]'
    items = items_of(value, name, "pairs of texts", one, dimensions=(1, 2))
    return PairList((as_pair(place, item) for place, item in enumerate(items)), numbered_pair)


def as_pair(place: int, item: Any) -> Pair:
    """The pair number ``place`` of a list."""
    words = f"{capital(numbered_pair(place))} is no pair of texts"
    if isinstance(item, (str, bytes)):
        raise TwinlineError(
            f'{words} but one text, {item!r:.40}: write [("a text", "another")], a list of pairs.'
        )
    if isinstance(item, (Mapping, Set)):
        raise TwinlineError(f"{words} but a {type(item).__name__}: give its two texts in a tuple.")
    try:
        both = list(item)
    except TypeError as error:
        raise TwinlineError(f"{words} but of type {type(item).__name__}: give two.") from error
    if len(both) != 2:
        raise TwinlineError(f"{words}: it has {len(both)} items, not two: {both!r:.60}.")
    for side, text in enumerate(both):
        if not isinstance(text, str):
            which = ("first", "second")[side]
            raise TwinlineError(
                f"{words}: its {which} text is of type {type(text).__name__}; give strings."
            )
    return str.__str__(both[0]), str.__str__(both[1])


def one_text(name: str, value: Any) -> str:
    """A single text.

    Raises: TwinlineError if ``value`` is anything else.
    """
    if not isinstance(value, str):
        raise TwinlineError(f"{name} must be one string, not of type {type(value).__name__}.")
    return str.__str__(value)


def items_of(
    value: Any, name: str, what: str, one: str, dimensions: tuple[int, ...]
) -> Iterator[Any]:
    """The items of an ordered container, by position.

    Args:
        what: it holds, in messages.
        one: what to do with a single string; by default to write a list of it.
        dimensions: that an array may have.
    Raises: TwinlineError with the remedy if it is no such container.
    """
    kind = type(value).__name__
    start = f"{name} must be a list of {what}, not"
    if isinstance(value, str):
        raise TwinlineError(f"{start} a single string: {one or f'write [{value!r:.60}]'}.")
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TwinlineError(f"{start} {kind}: decode it, and give a list.")
    if isinstance(value, PathLike):
        raise TwinlineError(
            f"{start} a path: give the file's texts, by twinline.data.read_texts or an open file."
        )
    if isinstance(value, Mapping):
        raise TwinlineError(
            f"{start} a {kind}, which would be read by its keys: give one of its lists, or "
            "list(….values())."
        )
    if hasattr(value, "columns") or hasattr(value, "column_names"):
        raise TwinlineError(
            f"{start} a {kind}, which has columns: give one of them as a list, as in "
            'frame["text"].tolist(); of pairs zip two.'
        )
    if isinstance(value, Set) and not isinstance(value, KeysView):
        raise TwinlineError(f"{start} a {kind}, which has no order: give sorted(…) or a list.")
    shape = getattr(value, "ndim", 1)
    if shape not in dimensions:
        raise TwinlineError(f"{start} an array of {shape} dimensions: give one of texts alone.")
    if hasattr(value, "to_pylist"):  # Arrow's own items are no strings
        value = value.to_pylist()
    if callable(getattr(value, "readline", None)):
        if _is_binary(value):
            raise TwinlineError(f"{start} a binary file: open it as text, open(path).")
        return lines(value, name)
    try:
        return iter(value)
    except TypeError as error:
        raise TwinlineError(f"{start} of type {kind}.") from error


def _is_binary(file: Any) -> bool:
    try:
        return isinstance(file.read(0), bytes)
    except Exception:  # closed, or no file after all: reading its lines says so
        return False


def lines(file: Any, name: str) -> Iterator[str]:
    """The lines of an open file, without their line breaks."""
    try:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r") if isinstance(line, str) else line
    except ValueError as error:  # it is closed, or holds other bytes than its encoding has
        raise TwinlineError(f"The file given as {name} cannot be read: {error}.") from error
