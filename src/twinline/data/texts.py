"""Texts out of files: tables of any format with the place of every row, prose, sentences."""

from __future__ import annotations

import csv
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..errors import TwinlineError

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
"""Names that the two texts of a pair go by; the first that a table has are taken."""

DOCUMENTS = {"novels": "train", "qmsum": "train-documents", "squality": "train-documents"}
"""Collections of documents below TWINLINE_DATA, and the file of each that is for training."""


@runtime_checkable
class Dataset(Protocol):
    """As much of ``datasets.Dataset`` as is used here, so that it need not be imported."""

    @property
    def column_names(self) -> list[str]: ...
    def __getitem__(self, name: str, /) -> Iterable[object]: ...


Source = str | Path | Dataset

_UNFIT = re.compile("[\0\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Replace what tokenizers cannot take, NUL and lone surrogates, by U+FFFD each."""
    if not _UNFIT.search(text):
        return text
    # UTF-16 joins what is a pair of surrogates and replaces only the lone ones.
    units = text.replace("\0", "\ufffd").encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace")


def data_folder(data: str | Path | None = None) -> Path | None:
    """The folder of data sets: ``data``, or TWINLINE_DATA, or None where neither is given.

    Raises:
        TwinlineError: it is given and does not exist.
    """
    named = data or os.environ.get("TWINLINE_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        option = "data" if data else "TWINLINE_DATA"
        raise TwinlineError(f"{option} is {named}, which is not a folder: correct or unset it.")
    return folder


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and where each row stands in what they were read from."""

    source: str
    columns: dict[str, list[object]]
    unit: str = "row"
    """What ``numbers`` count: the lines of a text file, or rows."""
    numbers: Sequence[int] | None = None
    """One-based place of each row; None where row i is simply number i + 1."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def place(self, row: int) -> str:
        """``pairs.csv, line 3``: where ``row`` (from 0) stands."""
        number = row + 1 if self.numbers is None else self.numbers[row]
        return f"{self.source}, {self.unit} {number}"

    def texts(self, column: str) -> list[str]:
        """The cells of a column, cleaned; TwinlineError where one is not a text."""
        for row, cell in enumerate(self.columns[column]):
            if not isinstance(cell, str):
                found = "is missing" if cell is None else f"is {cell!r:.40}, which is not a text"
                raise TwinlineError(
                    f"{self.place(row)}: {column} {found}; give a text (it may be empty) or "
                    "remove the row."
                )
        return [clean_text(str(cell)) for cell in self.columns[column]]

    def pair_columns(self) -> tuple[str, str] | None:
        """The first of PAIR_COLUMNS that the table has."""
        return next((pair for pair in PAIR_COLUMNS if set(pair) <= set(self.columns)), None)


def read_table(source: Source) -> Table:
    """Read a CSV, TSV, JSONL or Parquet file, or a ``datasets.Dataset``, whole.

    Raises:
        TwinlineError: the file is missing, empty, unreadable, damaged or of another kind.
    """
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Dataset) or not isinstance(source.column_names, list):
            raise TwinlineError(
                f"A {type(source).__name__} is not a table: give a path or one split of a data "
                "set, as in dataset['train']."
            )
        columns = {name: list(source[name]) for name in source.column_names}
        return _not_empty(Table("the data set", columns))
    path = existing_file(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise TwinlineError(
            f"{path}: the extension {path.suffix!r} is not known; give one of "
            f"{', '.join(_READERS)}."
        )
    try:
        return _not_empty(reader(path))
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def existing_file(source: str | Path) -> Path:
    """The path of a file that is there and not empty; TwinlineError otherwise."""
    path = Path(source).expanduser()
    if not path.exists():
        raise TwinlineError(f"There is no file {source}: check the path.")
    if path.is_dir():
        raise TwinlineError(f"{source} is a folder: name a file in it.")
    if not path.stat().st_size:
        raise TwinlineError(f"{source} is empty: give a file with at least one row.")
    return path


def unreadable(path: Path, error: OSError | UnicodeDecodeError) -> TwinlineError:
    if isinstance(error, UnicodeDecodeError):
        return TwinlineError(f"{path} is not UTF-8 text: save it as UTF-8.")
    return TwinlineError(f"{path} cannot be read ({error.strerror or error}): check the file.")


def _not_empty(table: Table) -> Table:
    if not len(table):
        raise TwinlineError(f"{table.source} is empty: give at least one row.")
    return table


def _read_separated(path: Path, separator: str) -> Table:
    # The csv module refuses cells above 128 KiB, which long documents pass; the limit is global.
    limit = csv.field_size_limit(2**31 - 1)
    # utf-8-sig: spreadsheets put a byte order mark first. strict: without it, a quote that is
    # never closed swallows the rest of the file in silence.
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=separator, strict=True)
            header, rows, numbers = next(lines, []), [], []
            if len(set(header)) < len(header):
                raise TwinlineError(f"{path} has two columns of one name: rename one of them.")
            start = lines.line_num + 1
            for row in lines:
                if len(row) > len(header):
                    raise TwinlineError(
                        f"{path}, line {start}: {len(row)} cells but {len(header)} columns; put "
                        f"texts that contain {separator!r} between double quotes."
                    )
                if row:
                    rows.append(row + [None] * (len(header) - len(row)))
                    numbers.append(start)
                start = lines.line_num + 1
    except csv.Error as error:
        raise TwinlineError(
            f"{path}, line {lines.line_num}: {error}; write a double quote inside a quoted text "
            "twice, or give JSONL."
        ) from error
    finally:
        csv.field_size_limit(limit)
    columns: dict[str, list[object]] = {
        name: [row[i] for row in rows] for i, name in enumerate(header)
    }
    return Table(str(path), columns, "line", numbers)


def _read_jsonl(path: Path) -> Table:
    rows: list[dict[str, object]] = []
    numbers: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise TwinlineError(
                    f"{path}, line {number} is not a JSON object: write one object a line."
                )
            rows.append(row)
            numbers.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {n: [row.get(n) for row in rows] for n in names}, "line", numbers)


def _read_parquet(path: Path) -> Table:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except arrow.ArrowException as error:
        raise TwinlineError(f"{path} is not a sound Parquet file: write it anew.") from error
    return Table(str(path), {name: table[name].to_pylist() for name in table.column_names})


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def load_texts(
    source: Source | list[Source] | tuple[Source, ...], limit: int | None = None
) -> list[str]:
    """Distinct unlabelled texts in the order of their first occurrence, without blank ones.

    Args:
        source: a ``.txt`` file (one text a line); a ``.csv``, ``.tsv``, ``.jsonl`` or
            ``.parquet`` file or a ``datasets.Dataset`` with a column ``text`` or with pairs; the
            name of a task or ``builtin`` (the sentences of its train split); ``novels``,
            ``qmsum`` or ``squality`` (the training documents below TWINLINE_DATA); or a list of
            these.
        limit: take no more than so many.

    Raises:
        TwinlineError: a source cannot be read or holds no text.
    """
    if limit is not None and limit < 1:
        raise TwinlineError(f"limit must be at least 1, not {limit}.")
    found: dict[str, None] = {}
    for one in source if isinstance(source, (list, tuple)) else [source]:
        for text in _texts_of(one):
            if text.strip():
                found.setdefault(text)
            if len(found) == limit:
                return list(found)
    if not found:
        raise TwinlineError(f"{source} holds no text: give a source with at least one.")
    return list(found)


def _texts_of(source: Source) -> Iterable[str]:
    from . import pairs  # pairs are read with this module's tables, so it cannot be the other way

    if isinstance(source, str) and source in DOCUMENTS:
        return read_table(_documents(source)).texts("text")
    if isinstance(source, str) and source in pairs.NAMED:
        named = pairs.load(source, split="train")
        return _interleaved(named.sentence1, named.sentence2)
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".txt":
        return _lines(existing_file(source))
    table = read_table(source)
    if "text" in table.columns:
        return table.texts("text")
    columns = table.pair_columns()
    if columns is None:
        raise TwinlineError(
            f"{table.source} has the columns {', '.join(table.columns)}: name one of them text, "
            "or two of them sentence1 and sentence2."
        )
    return _interleaved(*(table.texts(column) for column in columns))


def _documents(name: str) -> Path:
    folder = data_folder()
    if folder is None:
        raise TwinlineError(
            f"The documents {name} are looked for below TWINLINE_DATA, which is not set: set it "
            f"to a folder with {name}/{DOCUMENTS[name]}.parquet."
        )
    return folder / name / f"{DOCUMENTS[name]}.parquet"


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [clean_text(line.strip()) for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def _interleaved(first: list[str], second: list[str]) -> Iterator[str]:
    for one, other in zip(first, second, strict=True):
        yield one
        yield other


_PARAGRAPH = re.compile(r"\n\s*\n")
_END = re.compile(r"""[.!?…]["'\u201d\u2019)\]]*\s+(?=["'\u201c\u2018(\[]*[A-Z0-9])""")
_NO_END = re.compile(
    r"\b(?:Mrs?|Ms|Messrs|Mme|Mlle|M|Drs?|Prof|Rev|Hon|St|Capt|Col|Gen|Lt|Sgt|Maj|Gov|Sen|Rep"
    r"|Jr|Sr|vs|cf|viz|i\.e|e\.g|[A-HJ-Z])\.\s+$"
)
_LONGEST_ABBREVIATION = 12


def sentences(document: str) -> list[str]:
    """Split English prose into sentences, each on one line with single spaces.

    A paragraph ends at an empty line; within it a sentence ends at ``. ! ? …``, with the quotes
    and brackets that close there, before a capital or a digit. Titles (Mr., Dr.) and initials
    but I. do not end one. Known limits: other abbreviations before a capital split too much, a
    sentence that ends in an initial or begins in lower case is not split off, and a heading
    counts as a sentence.
    """
    found = []
    for paragraph in _PARAGRAPH.split(document):
        start = 0
        for end in _END.finditer(paragraph):
            before = paragraph[max(start, end.end() - _LONGEST_ABBREVIATION) : end.end()]
            if not _NO_END.search(before):
                found.append(paragraph[start : end.end()])
                start = end.end()
        found.append(paragraph[start:])
    joined = (" ".join(sentence.split()) for sentence in found)
    return [sentence for sentence in joined if sentence]


def stretches(document: str, words: int, seed: int) -> Iterator[str]:
    """Cut a document into consecutive stretches of whole sentences, in its order.

    Each starts at a sentence's start and is closed by the first sentence with which it has
    ``words`` words or more; what remains at the end and is shorter is left out. The first one
    starts at a sentence within the first ``words`` words, drawn by ``seed``, so that another
    seed cuts elsewhere.

    Raises:
        TwinlineError: ``words`` is below 1.
    """
    if words < 1:
        raise TwinlineError(f"words must be at least 1, not {words}.")
    skipped = random.Random(seed).random() * words
    stretch: list[str] = []
    length = passed = 0
    for sentence in sentences(document):
        size = len(sentence.split())
        passed += size
        if passed <= skipped:
            continue
        stretch.append(sentence)
        length += size
        if length >= words:
            yield " ".join(stretch)
            stretch, length = [], 0
