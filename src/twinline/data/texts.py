"""Unlabelled texts: lines, columns, documents; sentences and stretches of prose."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..arguments import whole_number
from ..errors import TwinlineError
from ..text import clean_text, one_text
from .tables import Source, existing_file, read_table, unreadable

DOCUMENTS = {"novels": "train", "qmsum": "train-documents", "squality": "train-documents"}
"""Collections of documents below TWINLINE_DATA, and the file of each that is for training."""


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


def load_texts(
    source: Source | list[Source] | tuple[Source, ...], limit: int | None = None
) -> list[str]:
    """Distinct unlabelled texts in the order of their first occurrence, without blank ones.

    Args:
        source: a ``.txt`` file (one text a line); a ``.csv``, ``.tsv``, ``.jsonl`` or
            ``.parquet`` file or a ``datasets.Dataset`` with a column ``text`` or with pairs; the
            name of a task or ``builtin`` (the sentences of its train split); ``novels`` (those
            whose authors ``load_carrier`` gives to training), ``qmsum`` or ``squality`` (the
            training documents) below TWINLINE_DATA; or a list of these.
        limit: take no more than so many.

    Raises:
        TwinlineError: a source cannot be read or holds no text.
    """
    limit = whole_number("limit", limit, 1, optional=True)
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


def read_texts(source: Source) -> Iterator[str]:
    """Every text of a source that ``load_texts`` knows: in order, equal and empty ones too.

    A ``.txt`` file is read as it is asked for, and may be larger than memory.

    Raises:
        TwinlineError: the source cannot be read.
    """
    return iter(_texts_of(source))


def _texts_of(source: Source) -> Iterable[str]:
    from . import carriers, pairs  # which read this module's folder in turn

    if isinstance(source, str) and source in DOCUMENTS:
        table = read_table(_documents(source))
        texts = table.texts("text")
        if source != "novels":
            return texts
        # What long pairs are tested in is not trained on, be it without labels.
        names = [str(name) for name in table.columns.get("id", range(len(table)))]
        kept = set(carriers.of_split(names, "train"))
        return [text for name, text in zip(names, texts, strict=True) if name in kept]
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


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield clean_text(line.strip())
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

    Raises:
        TwinlineError: ``document`` is no string.
    """
    found = []
    for paragraph in _PARAGRAPH.split(one_text("document", document)):
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
    words = whole_number("words", words, 1)
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
