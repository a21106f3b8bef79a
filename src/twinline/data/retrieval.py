"""Long documents, and questions (or answers) that are each about one of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import TwinlineError
from ..text import text_list
from .tables import Table, read_table
from .texts import data_folder

COLLECTIONS = ("qmsum", "squality")
SPLITS = ("train", "validation", "test")
ASKED = {"question": "query", "answer": "answer"}
"""What is searched with, and its column."""


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Queries of one split, and documents among which each has one that it is about.

    Raises: TwinlineError if queries or documents are no texts, or ``relevant`` names a document
        that is not there.
    """

    queries: list[str]
    relevant: NDArray[np.int64]
    """The document of each query, ``(queries,)``."""
    documents: list[str]
    name: str
    split: str
    ambiguous: int
    """Distinct queries left out because they serve more than one document."""

    def __post_init__(self) -> None:
        for name in ("queries", "documents"):
            texts = text_list(getattr(self, name), f"{name} of {self.name}")
            object.__setattr__(self, name, list(texts))
        relevant = np.asarray(self.relevant)
        if relevant.shape != (len(self.queries),) or (
            relevant.size and relevant.dtype.kind not in "iu"
        ):
            raise TwinlineError(
                f"{self.name}: relevant must be a whole number for each of {len(self.queries)} "
                f"queries, not {relevant.dtype} {relevant.shape}."
            )
        outside = np.flatnonzero((relevant < 0) | (relevant >= len(self.documents)))
        if outside.size:
            raise TwinlineError(
                f"{self.name}: query {outside[0] + 1} is about document {relevant[outside[0]]}, "
                f"counted from 0, but there are {len(self.documents)}."
            )
        object.__setattr__(self, "relevant", relevant.astype(np.int64))

    def __len__(self) -> int:
        return len(self.queries)


def load_retrieval(
    name: str,
    split: str,
    asked: str = "question",
    *,
    own_documents: bool = False,
    data: str | Path | None = None,
) -> Retrieval:
    """Questions or answers of ``split`` against the documents of all splits together.

    A text that is asked about several documents, of whatever split, can be about none of them alone
    ("summarise the meeting"): it is left out, and counted. Equal texts about one document are one.

    Args:
        name: ``qmsum`` or ``squality``, below TWINLINE_DATA (or ``data``).
        asked: ``question`` or ``answer``.
        own_documents: only the documents of ``split``, as training may see no others.
    Raises: TwinlineError if there is no such collection, split or file, or a query names a document
        that is not there.
    """
    for option, value, allowed in (
        ("collection", name, COLLECTIONS), ("split", split, SPLITS), ("asked", asked, tuple(ASKED))
    ):  # fmt: skip
        if value not in allowed:
            raise TwinlineError(f"{option} must be one of {', '.join(allowed)}, not {value!r}.")
    folder = data_folder(data)
    if folder is None:
        raise TwinlineError(
            f"{name} is looked for below TWINLINE_DATA, which is not set: set it to a folder with "
            f"{name}/{split}-documents.parquet and {name}/{split}-queries.parquet."
        )
    places: dict[str, int] = {}
    documents: list[str] = []
    about: dict[str, set[str]] = defaultdict(set)
    own: list[tuple[str, str]] = []
    for part in SPLITS:
        if part == split or not own_documents:
            table = read_table(folder / name / f"{part}-documents.parquet")
            for key, text in zip(column(table, "id"), column(table, "text"), strict=True):
                places.setdefault(key, len(places))
                if places[key] == len(documents):
                    documents.append(text)
        table = read_table(folder / name / f"{part}-queries.parquet")
        asks = list(zip(column(table, "document_id"), column(table, ASKED[asked]), strict=True))
        for key, text in asks:
            about[text.strip()].add(key)
        if part == split:
            own = list(dict.fromkeys((key, text.strip()) for key, text in asks if text.strip()))
    kept = [(key, text) for key, text in own if len(about[text]) == 1]
    if missing := sorted({key for key, _ in kept} - places.keys()):
        raise TwinlineError(
            f"{folder / name}: {len(missing)} documents that {split}-queries.parquet names are not "
            f"there (first: {missing[0]}); add them, or remove their rows."
        )
    return Retrieval(
        [text for _, text in kept],
        np.array([places[key] for key, _ in kept], dtype=np.int64),
        documents,
        name,
        split,
        len({text for _, text in own}) - len({text for _, text in kept}),
    )


def column(table: Table, name: str) -> list[str]:
    if name not in table.columns:
        has = ", ".join(table.columns)
        raise TwinlineError(f"{table.source} lacks the column {name}; it has {has}.")
    return table.texts(name)
