"""Running prose that long pairs are made of, split so that no book or author serves twice."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import TwinlineError
from ..text import text_list
from .prose import builtin_prose
from .tables import Source, read_table
from .texts import DOCUMENTS, data_folder, sentences

SPLITS = ("train", "validation", "test")
SHARES = (0.6, 0.8)
"""Where, of a carrier's authors in the order of their hashes, validation and test begin."""
AUTHORS = {
    "105_persuasion": "Austen",
    "1342_pride_and_prejudice": "Austen",
    "62_a_princess_of_mars": "Burroughs",
    "78_tarzan_of_the_apes": "Burroughs",
    "208_daisy_miller_a_study": "James",
    "209_the_turn_of_the_screw": "James",
    "2814_dubliners": "Joyce",
    "4217_a_portrait_of_the_artist_as_a_young_man": "Joyce",
}
"""Authors of more than one of the novels; every other novel is its author's only one."""
QNLI_SENTENCES = 1000
"""Encyclopaedic sentences that stand for a document."""


class Carrier:
    """Documents of prose, as whole sentences with their token counts.

    Args:
        documents: text by name.
        tokenizer: what counts tokens.
        name: in messages.
    Raises: TwinlineError if there is no sentence in them, or they are no texts.
    """

    def __init__(self, documents: Mapping[str, str], tokenizer: Any, name: str) -> None:
        self.name, self.tokenizer = name, tokenizer
        if not isinstance(documents, Mapping):
            raise TwinlineError(
                f"The carrier {name} needs texts by name, {{name: text}}, not "
                f"{type(documents).__name__}."
            )
        prose = text_list(documents.values(), f"the carrier {name}")
        texts = [found for text in prose if (found := sentences(text))]
        if len(texts) == 1:  # its halves, so that a pair's sides have a document each
            middle = len(texts[0]) // 2
            texts = [half for half in (texts[0][:middle], texts[0][middle:]) if half]
        if not texts:
            raise TwinlineError(f"The carrier {name} holds no sentence: give running prose.")
        self.sentences = texts
        self.counts = [token_counts(tokenizer, document) for document in texts]
        self.ends = [list(accumulate(counts)) for counts in self.counts]

    def sides(self, draw: random.Random, tokens: int) -> list[int]:
        """Two distinct documents that hold ``tokens`` each.

        Raises: TwinlineError if fewer than two do.
        """
        fit = [place for place, ends in enumerate(self.ends) if ends[-1] >= tokens]
        if len(fit) < 2:
            longest = sorted((ends[-1] for ends in self.ends), reverse=True)
            raise TwinlineError(
                f"The carrier {self.name} is too short: each side of a pair needs a document of "
                f"its own with {tokens:,} tokens, and its longest have "
                f"{' and '.join(f'{count:,}' for count in longest[:2])}. Give more text, or a "
                "smaller length."
            )
        first = fit.pop(index(draw, len(fit)))
        return [first, fit[index(draw, len(fit))]]

    def stretch(
        self, draw: random.Random, document: int, tokens: int
    ) -> tuple[list[str], list[int]]:
        """Consecutive sentences of ``document`` from a drawn one on, and each one's tokens.

        They hold at least ``tokens``; the document does, which ``sides`` has seen to.
        """
        ends = self.ends[document]
        start = bisect_right(ends, draw.random() * (ends[-1] - tokens))
        before = ends[start - 1] if start else 0
        if ends[-1] - before < tokens:  # within a sentence of the last start that leaves enough
            start -= 1
            before = ends[start - 1] if start else 0
        stop = bisect_right(ends, before + tokens - 1) + 1
        return self.sentences[document][start:stop], self.counts[document][start:stop]


def index(draw: random.Random, count: int) -> int:
    """A number below ``count``; from ``random()``, whose stream Python promises to keep."""
    return int(draw.random() * count)


def token_counts(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, special ones not counted."""
    if not texts:
        return []
    made = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
        verbose=False,
    )  # fmt: skip
    return [len(ids) for ids in made["input_ids"]]


CARRIERS = (*DOCUMENTS, "qnli", "builtin")
"""Known by name; a file of documents is one too."""


def load_carrier(
    source: Source, split: str, tokenizer: Any, data: str | Path | None = None
) -> Carrier:
    """The part of a carrier that belongs to ``split`` (train, validation or test).

    Args:
        source: ``novels`` (split by author here), ``qmsum`` or ``squality`` (as they come split),
            ``qnli`` (its encyclopaedic sentences: train's for training, validation's halves for the
            rest), all below TWINLINE_DATA; ``builtin``, which the package makes itself; or a file
            of documents with a column ``text`` and perhaps ``id`` and ``author``, or one document
            as ``.txt``.
    Raises: TwinlineError if it cannot be read, or leaves nothing for the split.
    """
    if split not in SPLITS:
        raise TwinlineError(f"A carrier's split is {', '.join(SPLITS)}, not {split!r}.")
    if source == "builtin":
        return Carrier(builtin_prose(split), tokenizer, f"{source} {split}")
    folder = data_folder(data)
    if isinstance(source, str) and source in (*DOCUMENTS, "qnli"):
        if folder is None:
            raise TwinlineError(
                f"The carrier {source} is looked for below TWINLINE_DATA, which is not set: set "
                "it, take builtin, or give a file of running prose."
            )
        if source == "qnli":
            return Carrier(encyclopaedic(folder, split), tokenizer, f"{source} {split}")
        file = "train" if source == "novels" else f"{split}-documents"
        source = folder / source / f"{file}.parquet"
        if file != "train":
            table = read_table(source)
            names = [str(name) for name in table.columns["id"]]
            documents = dict(zip(names, table.texts("text"), strict=True))
            return Carrier(documents, tokenizer, str(source))
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".txt":
        documents, authors = paragraphs(Path(source)), None
    else:
        table = read_table(source)
        if "text" not in table.columns:
            raise TwinlineError(f"{table.source} has no column text: name the documents' so.")
        size = range(len(table))
        names = [str(name) for name in table.columns.get("id", size)]
        written = table.columns.get("author")
        authors = None if written is None else [str(author) for author in written]
        documents = dict(zip(names, table.texts("text"), strict=True))
    kept = of_split(list(documents), split, authors)
    if not kept:
        raise TwinlineError(
            f"{source} has too few documents to leave one for {split}: a carrier is split by "
            "author (or document), 60 % to train. Give more documents."
        )
    return Carrier({name: documents[name] for name in kept}, tokenizer, f"{source} ({split})")


def of_split(names: list[str], split: str, authors: list[str] | None = None) -> list[str]:
    """The documents whose authors belong to ``split``; the same on every machine.

    Authors stand in the order of the hashes of their names: the first 60 % are for training, the
    next 20 % to validate on, the last to test.
    """
    by = dict(zip(names, authors or [AUTHORS.get(name, name) for name in names], strict=True))
    order = sorted(set(by.values()), key=lambda a: hashlib.sha256(a.encode()).hexdigest())
    cuts = [0, *(round(share * len(order)) for share in SHARES), len(order)]
    place = SPLITS.index(split)
    own = set(order[cuts[place] : cuts[place + 1]])
    return [name for name in names if by[name] in own]


def paragraphs(path: Path) -> dict[str, str]:
    """A text file's twenty consecutive parts, cut at paragraphs, as documents."""
    from .tables import existing_file, unreadable

    path = existing_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    parts = text.split("\n\n")
    size = -(-len(parts) // 20)
    return {
        str(start): "\n\n".join(parts[start : start + size]) for start in range(0, len(parts), size)
    }


def encyclopaedic(folder: Path, split: str) -> dict[str, str]:
    """QNLI's distinct sentences, a thousand a document."""
    table = read_table(folder / "qnli" / f"{'train' if split == 'train' else 'validation'}.parquet")
    lines = list(dict.fromkeys(table.texts("sentence")))
    if split != "train":
        middle = len(lines) // 2
        lines = lines[:middle] if split == "validation" else lines[middle:]
    return {
        str(start): "\n\n".join(lines[start : start + QNLI_SENTENCES])
        for start in range(0, len(lines), QNLI_SENTENCES)
    }
