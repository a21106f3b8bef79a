"""Tables of any format, with the place of every row for whoever has to mend one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..errors import TwinlineError
from ..text import clean_text

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
"""Names that the two texts of a pair go by; the first that a table has are taken."""


@runtime_checkable
class Dataset(Protocol):
    """As much of ``datasets.Dataset`` as is used here, so that it need not be imported."""

    @property
    def column_names(self) -> list[str]: ...
    def __getitem__(self, name: str, /) -> Iterable[object]: ...


Source = str | Path | Dataset


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

    A CSV's cells may stand in double quotes, and then hold commas and line breaks. A TSV has no
    quotes: every line is a row, and every cell is taken as it is.

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


def _read_csv(path: Path) -> Table:
    # utf-8-sig: spreadsheets put a byte order mark first. strict: without it, a quote that is
    # never closed swallows the rest of the file in silence.
    try:
        with path.open(encoding="utf-8-sig", newline="") as file, _long_cells():
            lines = csv.reader(file, strict=True)
            header, rows, numbers = next(lines, []), [], []
            start = lines.line_num + 1
            for row in lines:
                if len(row) > len(header):
                    raise TwinlineError(
                        f"{path}, line {start}: {len(row)} cells but {len(header)} columns; put "
                        "texts that contain ',' between double quotes."
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
    return _table(path, header, rows, numbers)


@contextmanager
def _long_cells() -> Iterator[None]:
    """csv refuses cells above 128 KiB, which long documents pass; its limit is global."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_tsv(path: Path) -> Table:
    """A row is a line and a cell what stands between two tabs: quotes are quotes."""
    header: list[str] = []
    rows: list[list[str]] = []
    numbers: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t")
            if number == 1:
                header = cells
            elif cells != [""]:  # an empty line is no row, as in a CSV
                if len(cells) != len(header):
                    raise TwinlineError(
                        f"{path}, line {number}: {len(cells)} cells but {len(header)} columns; a "
                        "TSV has no quotes, so give texts with tabs or line breaks as CSV or JSONL."
                    )
                rows.append(cells)
                numbers.append(number)
    return _table(path, header, rows, numbers)


def _table(path: Path, header: list[str], rows: list[list[Any]], numbers: list[int]) -> Table:
    if len(set(header)) < len(header):
        raise TwinlineError(f"{path} has two columns of one name: rename one of them.")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
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
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
