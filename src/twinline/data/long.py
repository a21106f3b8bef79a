"""Long pairs of exactly L tokens, built from short pairs and running prose.

Every text is a function of the seed, the construction, the length, the pair's number and the side,
drawn from a generator whose stream Python keeps, so it is the same on every machine. A text's
outermost sentence is cut at a word to come out at exactly L tokens; all others are whole.
``docs/long-pairs.md`` shows an example of each construction and says what it can show.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ahead import in_order
from ..arguments import one_of, whole_number
from ..batching import token_ids
from ..errors import TwinlineError
from ..files import whole_file
from ..progress import Progress
from .carriers import Carrier, index, token_counts
from .pairs import Pairs

CONSTRUCTIONS = ("context", "keyed", "shared", "repeat", "composite")
LEAST, MOST = 16, 1_000_000
NOTES = ("alpha", "bravo", "charlie", "delta")
"""Markers of ``keyed``: as many sentences a text, fewer where they do not fit."""
PARTS = 8
"""Pairs in a ``composite``, fewer where they do not fit; the mean of many more hardly varies."""
SPARE = 64
"""Tokens of prose beyond what is needed, for words that come out even."""
TRIES = 8


@dataclass(frozen=True)
class LongPair:
    """Two texts of exactly the length asked for."""

    text1: str
    text2: str
    score: float
    """On the pairs' own scale; nan where they have none."""
    place1: float
    """Tokens before the sentence that counts, as a share of the text; the mean of several."""
    place2: float
    spans: tuple[tuple[int, int], tuple[int, int]]
    """Of each text the first token of what counts, and the one behind its last, special tokens
    counted; of a composite the first sentence's, of ``repeat`` all copies that are whole."""


@dataclass(frozen=True, eq=False)
class LongPairs:
    """Long pairs in the order of the short ones they were made from."""

    pairs: Pairs
    rows: NDArray[np.int64]
    """The short pair of each (of a composite: the first), ``(pairs,)``."""
    places: NDArray[np.float64]
    """``place1`` and ``place2`` of each, ``(pairs, 2)``."""
    too_long: int
    """Short pairs left out because a sentence did not fit."""


class Builder:
    """Makes a long pair of any length of any of the short ones.

    Args:
        pairs: the short pairs.
        construction: one of ``CONSTRUCTIONS``.
        tokenizer: what counts tokens, with the special tokens that it adds.
        carrier: prose; None only for ``repeat``.
        seed: another seed draws other prose and other places.
    Raises: TwinlineError for a construction that is not known, or that lacks its carrier, pairs or
        scores.
    """

    def __init__(
        self,
        pairs: Pairs,
        construction: str,
        tokenizer: Any,
        carrier: Carrier | None,
        seed: int = 0,
    ) -> None:
        one_of("construction", construction, CONSTRUCTIONS)
        seed = whole_number("seed", seed)
        if carrier is None and construction != "repeat":
            raise TwinlineError(f"The construction {construction} needs a carrier: give prose.")
        if construction in ("keyed", "composite") and len(pairs) < 2:
            raise TwinlineError(f"The construction {construction} needs at least two pairs.")
        if construction == "composite" and pairs.score is None:
            raise TwinlineError("A composite's score is the mean of its pairs': give scores.")
        self.pairs, self.construction, self.seed = pairs, construction, seed
        self.tokenizer, self.carrier = tokenizer, carrier
        self.special = len(token_ids(tokenizer, [""])[0])
        self.words: dict[str, int] = {}

    def pair(self, row: int, length: int, epoch: int = 0, document: int | None = None) -> LongPair:
        """Short pair number ``row`` as a long one of ``length`` tokens, special ones counted.

        Args:
            epoch: another number draws other prose and other places.
            document: the carrier's that both sides take their prose from; None: each draws its own.
        Raises: TwinlineError if a sentence, or what goes with it, is longer than that, or the
            carrier is too short.
        """
        length = whole_number("length", length)
        if not LEAST <= length <= MOST:
            raise TwinlineError(f"length must lie between {LEAST} and {MOST:,}, not {length}.")
        key = f"{self.seed} {self.construction} {length} {row} {epoch}"
        draw = random.Random(key)
        room = length - self.special
        pair = self.pairs
        score = float("nan") if pair.score is None else float(pair.score[row])
        sides = [pair.sentence1[row], pair.sentence2[row]]
        if self.construction == "repeat":
            (first, own1), (second, own2) = (self.fill(one, row, room) for one in sides)
            at = self.special // 2
            return LongPair(first, second, score, 0.0, 0.0, ((at, at + own1), (at, at + own2)))
        assert self.carrier is not None
        # Drawn by the pair, so that both sides share it where the construction says so.
        documents = self.carrier.sides(draw, room + SPARE)
        if document is not None:
            documents = [document] * 2
        blocks: list[list[str]] = [[sides[0]], [sides[1]]]
        shares = [[draw.random()], [draw.random()]]
        counting = [[0], [0]]
        if self.construction == "shared":
            documents, shares = [documents[0]] * 2, [shares[0]] * 2
        elif self.construction == "keyed":
            made = [self.keyed(sentence, row, room, draw) for sentence in sides]
            blocks, shares = [m[0] for m in made], [m[1] for m in made]
            counting = [[m[2]] for m in made]
        elif self.construction == "composite":
            rows, blocks = self.composite(row, room, draw)
            assert pair.score is not None
            score = float(np.mean(pair.score[rows]))
            shares = [sorted(draw.random() for _ in rows) for _ in blocks]
            counting = [list(range(len(rows)))] * 2
        texts, places, spans = [], [], []
        for side in (0, 1):
            # A stretch's own generator: ``shared`` draws the same one for both sides.
            stretch = random.Random(f"{key} {0 if self.construction == 'shared' else side}")
            text, starts, sizes = self.assemble(
                blocks[side], shares[side], documents[side], room, row, stretch
            )
            texts.append(text)
            places.append(float(np.mean([starts[i] for i in counting[side]])) / length)
            one = counting[side][0]
            spans.append((starts[one], starts[one] + sizes[one]))
        return LongPair(texts[0], texts[1], score, places[0], places[1], (spans[0], spans[1]))

    def document(self, length: int, epoch: int) -> int | None:
        """One of the carrier's documents with room for ``length`` tokens; None without a carrier.

        Raises: TwinlineError if the carrier is too short.
        """
        if self.carrier is None:
            return None
        draw = random.Random(f"{self.seed} document {length} {epoch}")
        return self.carrier.sides(draw, length - self.special + SPARE)[0]

    def prose(self, length: int, epoch: int, number: int, document: int | None = None) -> str:
        """A text of ``length`` tokens of prose alone: what long texts are made of beside sentences.

        Args:
            document: the carrier's that it is from; None: it draws its own.

        Raises: TwinlineError if there is no carrier, or it is too short.
        """
        if self.carrier is None:
            raise TwinlineError("There is no carrier to take prose from.")
        key = f"{self.seed} prose {length} {number} {epoch}"
        draw = random.Random(key)
        room = length - self.special
        drawn = self.carrier.sides(draw, room + SPARE)[0]
        document = drawn if document is None else document
        text, _, _ = self.assemble([], [], document, room, 0, random.Random(f"{key} 0"))
        return text

    def keyed(
        self, sentence: str, row: int, room: int, draw: random.Random
    ) -> tuple[list[str], list[float], int]:
        """Named sentences in one half of the text, and at its other end the name that counts.

        Returns: the blocks in order, each one's place as a share, and which of them counts.
        """
        names = list(NOTES)
        own = names.pop(index(draw, len(names)))
        others = [(name, self.other(row, draw)) for name in names]
        notes = [(own, sentence)]
        pointer = f"Only note {own} counts."
        for name, other in others:  # as many as fit
            trial = [f"Note {n}: {s}" for n, s in (*notes, (name, other))]
            if sum(token_counts(self.tokenizer, [pointer, *trial])) <= room:
                notes.append((name, other))
        if len(notes) < 2:
            raise TooLongError(
                f"Pair {row + 1}: two named sentences do not fit into {room + self.special} "
                "tokens; give a larger length."
            )
        order = sorted(notes, key=lambda _: draw.random())
        first = draw.random() < 0.5  # the pointer stands first, the notes in the second half
        shares = sorted(draw.random() / 2 + (0.5 if first else 0.0) for _ in order)
        blocks = [f"Note {name}: {text}" for name, text in order]
        place = [name for name, _ in order].index(own)
        if first:
            return [pointer, *blocks], [0.0, *shares], place + 1
        return [*blocks, pointer], [*shares, 1.0], place

    def other(self, row: int, draw: random.Random) -> str:
        """A sentence of another pair."""
        place = index(draw, len(self.pairs) - 1)
        place += place >= row
        return (self.pairs.sentence1 if draw.random() < 0.5 else self.pairs.sentence2)[place]

    def composite(
        self, row: int, room: int, draw: random.Random
    ) -> tuple[list[int], list[list[str]]]:
        """Pair ``row`` and others, as many as fit up to ``PARTS``: rows, and both sides' blocks."""
        rows = [row]
        while len(rows) < min(PARTS, len(self.pairs)):
            place = index(draw, len(self.pairs))
            if place not in rows:
                rows.append(place)
        columns = self.pairs.sentence1, self.pairs.sentence2
        counts = [token_counts(self.tokenizer, [column[r] for r in rows]) for column in columns]
        while len(rows) > 1 and max(sum(side[: len(rows)]) for side in counts) > room:
            rows.pop()
        return rows, [[column[r] for r in rows] for column in columns]

    def assemble(
        self, blocks: Sequence[str], shares: Sequence[float], document: int, room: int, row: int,
        draw: random.Random,
    ) -> tuple[str, list[int], list[int]]:  # fmt: skip
        """Blocks between sentences of a stretch, each near its share of the way; exact length.

        Returns: the text, the number of tokens before each block, special ones counted, and that of
            each block.
        """
        carrier = self.carrier
        assert carrier is not None
        sizes = token_counts(self.tokenizer, list(blocks))
        prose = room - sum(sizes)
        if prose < 0:
            raise self.too_long(row, sum(sizes), room)
        whole, counts = carrier.stretch(draw, document, room + SPARE)
        adjust = 0
        for _ in range(TRIES):
            pieces, filled = self.exactly(whole, counts, prose + adjust)
            ends = np.cumsum([0, *filled])
            # Nothing stands behind a sentence that is cut.
            gaps = ends if filled == counts[: len(filled)] else ends[:-1]
            text: list[str] = []
            starts, done, before = [], 0, self.special // 2
            for block, share, size in zip(blocks, shares, sizes, strict=True):
                stop = max(done, int(np.abs(gaps - share * prose).argmin()))
                text += pieces[done:stop]
                before += int(ends[stop] - ends[done])
                starts.append(before)
                text.append(block)
                before, done = before + size, stop
            joined = " ".join(part for part in [*text, *pieces[done:]] if part)
            got = len(token_ids(self.tokenizer, [joined])[0]) - self.special
            if got == room:
                return joined, starts, sizes
            adjust += room - got  # a tokenizer whose counts do not add up across words
        raise self.inexact(row, room)

    def exactly(
        self, sentences: Sequence[str], counts: Sequence[int], tokens: int
    ) -> tuple[list[str], list[int]]:
        """The first sentences of a stretch, the last cut at a word: ``tokens`` in all."""
        pieces: list[str] = []
        sizes: list[int] = []
        left = max(0, tokens)
        for sentence, count in zip(sentences, counts, strict=True):
            if count > left:
                break
            pieces.append(sentence)
            sizes.append(count)
            left -= count
        if left:
            rest = " ".join(sentences[len(pieces) :]).split()
            pieces.append(self.cut(rest, left))
            sizes.append(left)
        return pieces, sizes

    def cut(self, words: Sequence[str], tokens: int) -> str:
        """Words from the first on, those skipped that are too long for what is left; then dots."""
        taken: list[str] = []
        unknown = [
            word for word in dict.fromkeys(words[: tokens + SPARE]) if word not in self.words
        ]
        if unknown:
            self.words.update(zip(unknown, token_counts(self.tokenizer, unknown), strict=True))
        for word in words[: tokens + SPARE]:
            if self.words[word] <= tokens:
                taken.append(word)
                tokens -= self.words[word]
            if not tokens:
                break
        return " ".join([*taken, *["."] * tokens])

    def fill(self, sentence: str, row: int, room: int) -> tuple[str, int]:
        """The sentence over and over, the last time cut at a word, and the whole copies' tokens."""
        size = token_counts(self.tokenizer, [sentence])[0]
        if size > room:
            raise self.too_long(row, size, room)
        if not size:
            return " ".join(["."] * room), room
        adjust = 0
        for _ in range(TRIES):
            times, left = divmod(room + adjust, size)
            text = " ".join([sentence] * times)
            if left:
                text += " " + self.cut(sentence.split(), left)
            got = len(token_ids(self.tokenizer, [text])[0]) - self.special
            if got == room:
                return text, min(times * size, room)
            adjust += room - got
        raise self.inexact(row, room)

    def too_long(self, row: int, size: int, room: int) -> TooLongError:
        return TooLongError(
            f"Pair {row + 1}: its sentence and what goes with it have {size + self.special} "
            f"tokens, more than length {room + self.special}: raise length, or leave such pairs "
            "out (skip_longer)."
        )

    def inexact(self, row: int, room: int) -> TwinlineError:
        return TwinlineError(
            f"Pair {row + 1}: this tokenizer's counts change where texts are joined, and exactly "
            f"{room + self.special} tokens were not found in {TRIES} tries; try another seed."
        )


class TooLongError(TwinlineError):
    """A sentence is longer than the length asked for."""


def long_pairs(
    pairs: Pairs,
    construction: str,
    length: int,
    tokenizer: Any,
    carrier: Carrier | None = None,
    *,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    skip_longer: bool = False,
    workers: int = 0,
    show_progress: bool | None = None,
) -> LongPairs:
    """Every pair as a long one of exactly ``length`` tokens.

    Args:
        rows: only these pairs, which are made as they would be among all.
        skip_longer: leave out pairs that do not fit, and count them, instead of raising.
        workers: processes that make them; 0: this one.
    Raises: TwinlineError as ``Builder``; or if no pair fits.
    """
    length, workers = whole_number("length", length), whole_number("workers", workers, 0)
    builder = Builder(pairs, construction, tokenizer, carrier, seed)
    made: list[LongPair] = []
    fit: list[int] = []
    wanted = range(len(pairs)) if rows is None else [row_of(pairs, row) for row in rows]

    def make(row: int) -> LongPair | None:
        try:
            return builder.pair(row, length)
        except TooLongError:
            if not skip_longer:
                raise
            return None

    with (
        Progress(
            f"{construction} of {length:,}", total=len(wanted), show=show_progress
        ) as progress,
        closing(in_order(make, wanted, workers)) as every,
    ):
        for row, pair in zip(wanted, every, strict=True):
            if pair is not None:
                made.append(pair)
                fit.append(row)
            progress.advance()
    if not made:
        raise TwinlineError(f"No pair of {pairs.name} fits into {length} tokens: raise length.")
    longer = replace(
        pairs.select(fit),
        sentence1=[pair.text1 for pair in made],
        sentence2=[pair.text2 for pair in made],
        score=None if pairs.score is None else np.array([pair.score for pair in made]),
        name=f"{pairs.name} {construction} {length}",
    )
    places = np.array([[pair.place1, pair.place2] for pair in made])
    return LongPairs(longer, np.array(fit, dtype=np.int64), places, len(wanted) - len(made))


def row_of(pairs: Pairs, row: int) -> int:
    """The number of a pair, counted from 0.

    Raises: TwinlineError if there is none.
    """
    number: int = whole_number("rows", row, 0)
    if number >= len(pairs):
        raise TwinlineError(f"rows are below {len(pairs)}, the pairs of {pairs.name}, not {row}.")
    return number


def write_parquet(made: LongPairs, path: str | Path) -> None:
    """Columns sentence1, sentence2, score, row, place1, place2.

    Raises: TwinlineError if the file cannot be written.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "sentence1": made.pairs.sentence1,
        "sentence2": made.pairs.sentence2,
        "score": made.pairs.score,
        "row": made.rows,
        "place1": made.places[:, 0],
        "place2": made.places[:, 1],
    }
    with whole_file(path) as file:
        parquet.write_table(arrow.table({k: v for k, v in columns.items() if v is not None}), file)
