"""Long pairs: exact lengths, the same on every machine, and what each construction promises."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from twinline.batching import token_ids
from twinline.cli import main
from twinline.data import builtin_pairs
from twinline.data.carriers import SPLITS, Carrier, load_carrier, of_split
from twinline.data.long import CONSTRUCTIONS, NOTES, Builder, long_pairs
from twinline.errors import TwinlineError
from twinline.sources import find_model
from twinline.tokenization import load_tokenizer

LINES = ("The rain in the hills fell slowly over dark pines", "Nobody had seen the old ferry since",
         "We ought to leave before noon", "It was, however, quite another matter",
         "Unquestionably she preferred otherwise")  # fmt: skip


def prose(name: str, count: int) -> str:
    """``count`` sentences that no other document has."""
    return " ".join(f"{LINES[i % 5]} {name} {i}." for i in range(count))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(find_model("all-MiniLM-L6-v2"))


@pytest.fixture(scope="module")
def carrier(tokenizer: Any) -> Carrier:
    return Carrier({name: prose(name, 400) for name in ("Ada", "Bea", "Cor")}, tokenizer, "test")


PAIRS = builtin_pairs("train").select(range(40))


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
@pytest.mark.parametrize("length", [64, 127, 1000])
def test_every_text_has_exactly_the_tokens_asked_for(
    construction: str, length: int, tokenizer: Any, carrier: Carrier
) -> None:
    made = long_pairs(PAIRS, construction, length, tokenizer, carrier, skip_longer=True)
    assert len(made.pairs) + made.too_long == len(PAIRS)
    assert len(made.pairs) > 30
    for texts in (made.pairs.sentence1, made.pairs.sentence2):
        assert {len(ids) for ids in token_ids(tokenizer, texts)} == {length}
    assert ((made.places >= 0) & (made.places < 1)).all()
    if construction != "composite":
        np.testing.assert_array_equal(made.pairs.score, PAIRS.select(made.rows).score)


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_some_rows_are_made_as_among_all(
    construction: str, tokenizer: Any, carrier: Carrier
) -> None:
    every = long_pairs(PAIRS, construction, 127, tokenizer, carrier, skip_longer=True)
    ahead = long_pairs(PAIRS, construction, 127, tokenizer, carrier, skip_longer=True, workers=2)
    assert ahead.pairs.sentence1 == every.pairs.sentence1
    assert ahead.too_long == every.too_long
    some = long_pairs(PAIRS, construction, 127, tokenizer, carrier, rows=every.rows[3:9:2].tolist())
    assert some.rows.tolist() == every.rows[3:9:2].tolist()
    assert some.pairs.sentence2 == [every.pairs.sentence2[i] for i in (3, 5, 7)]
    np.testing.assert_array_equal(some.places, every.places[3:9:2])


def test_texts_are_the_same_on_every_machine(tokenizer: Any, carrier: Carrier) -> None:
    """Python promises the stream that draws it."""
    builder = Builder(PAIRS, "context", tokenizer, carrier, seed=3)
    made = builder.pair(5, 40)
    assert (
        made == builder.pair(5, 40) == Builder(PAIRS, "context", tokenizer, carrier, 3).pair(5, 40)
    )
    assert made != builder.pair(5, 40, epoch=1)
    assert made != Builder(PAIRS, "context", tokenizer, carrier, seed=4).pair(5, 40)
    assert random.Random("3 context 40 5 0").random() == 0.9632037667505875


def test_context_keeps_the_sentence_whole_between_prose_of_its_own(
    tokenizer: Any, carrier: Carrier
) -> None:
    builder = Builder(PAIRS, "context", tokenizer, carrier)
    before = []
    for row in range(40):
        made = builder.pair(row, 300)
        for text, sentence, place in (
            (made.text1, PAIRS.sentence1[row], made.place1),
            (made.text2, PAIRS.sentence2[row], made.place2),
        ):
            head, found, _ = text.partition(sentence)
            assert found
            assert not head or head.endswith(". ")  # whole sentences; only the last is cut
            assert len(token_ids(tokenizer, [head])[0]) - 1 == pytest.approx(300 * place, abs=1)
            before.append(place)
        names = [{n for n in ("Ada", "Bea", "Cor") if n in t} for t in (made.text1, made.text2)]
        assert len(names[0]) == len(names[1]) == 1
        assert names[0] != names[1]  # the sides' prose never overlaps
    assert min(before) < 0.1
    assert max(before) > 0.8


def test_shared_gives_both_sides_the_same_prose_and_place(tokenizer: Any, carrier: Carrier) -> None:
    made = Builder(PAIRS, "shared", tokenizer, carrier).pair(3, 400)
    heads = [text.partition(sentence)[0] for text, sentence in (
        (made.text1, PAIRS.sentence1[3]), (made.text2, PAIRS.sentence2[3]))]  # fmt: skip
    assert heads[0][:200] == heads[1][:200] != ""
    assert abs(made.place1 - made.place2) < 0.1


def test_keyed_names_the_sentence_that_counts_from_far_away(
    tokenizer: Any, carrier: Carrier
) -> None:
    builder = Builder(PAIRS, "keyed", tokenizer, carrier)
    ends = set()
    for row in range(30):
        made = builder.pair(row, 600)
        for text, sentence, place in (
            (made.text1, PAIRS.sentence1[row], made.place1),
            (made.text2, PAIRS.sentence2[row], made.place2),
        ):
            name = next(n for n in NOTES if f"Only note {n} counts." in text)
            assert f"Note {name}: {sentence}" in text
            assert sum(f"Note {n}: " in text for n in NOTES) == len(NOTES)
            # Blocks stand between whole sentences: only the text's own last may be cut.
            for block in ("Only note ", *(f"Note {n}: " for n in NOTES)):
                before = text.partition(block)[0]
                assert not before or before[:-1].endswith((".", "!", "?"))
            starts = text.startswith("Only note")
            ends.add(starts)
            assert (place > 0.4) if starts else (place < 0.6)
    assert ends == {True, False}


def test_repeat_and_composite(tokenizer: Any, carrier: Carrier) -> None:
    made = Builder(PAIRS, "repeat", tokenizer, None).pair(0, 200)
    assert made.text1.count(PAIRS.sentence1[0]) >= 5
    assert set(made.text1.split()) <= {*PAIRS.sentence1[0].split(), "."}
    start, end = made.spans[0]  # what counts are the whole copies
    size = len(token_ids(tokenizer, [PAIRS.sentence1[0]])[0]) - 2
    assert start == 1
    assert 0 < 199 - end < size
    assert (end - start) % size == 0
    builder = Builder(PAIRS, "composite", tokenizer, carrier)
    whole = builder.pair(0, 600)
    rows = [r for r in range(40) if PAIRS.sentence1[r] in whole.text1]
    assert 0 in rows
    assert len(rows) >= 8
    assert PAIRS.score is not None
    assert whole.score != PAIRS.score[0]
    assert min(PAIRS.score) <= whole.score <= max(PAIRS.score)


def test_carriers_are_split_by_author(tmp_path: Path, tokenizer: Any) -> None:
    names = [f"book {i}" for i in range(20)]
    authors = [f"author {i // 2}" for i in range(20)]
    parts = {split: of_split(names, split, authors) for split in SPLITS}
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert [len(parts[split]) for split in SPLITS] == [12, 4, 4]
    by = dict(zip(names, authors, strict=True))
    seen = [{by[name] for name in part} for part in parts.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 10
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(prose(f"P{i}", 30) for i in range(40)))
    train, test = (load_carrier(file, split, tokenizer) for split in ("train", "test"))
    assert not {s for d in train.sentences for s in d} & {s for d in test.sentences for s in d}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda t, c: Builder(PAIRS, "contxt", t, c), "construction must be one of context"),
        (lambda t, c: Builder(PAIRS, "context", t, None), "needs a carrier"),
        (lambda t, c: Builder(PAIRS, "context", t, c).pair(0, 8), "length must lie between"),
        (lambda t, c: Builder(PAIRS, "context", t, c).pair(0, 9_000), "its own with 9,0"),
        (lambda t, c: long_pairs(
            replace(PAIRS, sentence1=["word " * 99] * 40), "shared", 64, t, c), "raise length"),
        (lambda t, c: Carrier({"a": " "}, t, "empty.txt"), "empty.txt holds no sentence"),
        (lambda t, c: load_carrier("novels", "trian", t), "split is train, validation, test"),
        (lambda t, c: load_carrier("missing.txt", "train", t), "no file missing.txt"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(
    call: Any, told: str, tokenizer: Any, carrier: Carrier
) -> None:
    with pytest.raises(TwinlineError, match=told):
        call(tokenizer, carrier)


def test_the_command_writes_them_as_parquet(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(prose(f"P{i}", 60) for i in range(40)))
    out = tmp_path / "long.parquet"
    main(["long-pairs", str(out), "--data", "builtin", "--carrier", str(file), "--length", "200",
          "--limit", "20"])  # fmt: skip
    rows = parquet.read_table(out).to_pylist()
    assert len(rows) == 20
    assert set(rows[0]) == {"sentence1", "sentence2", "score", "row", "place1", "place2"}
    assert len(token_ids(tokenizer, [rows[7]["sentence2"]])[0]) == 200


def test_real_carriers(stsb_data: Path, tokenizer: Any) -> None:
    """Novels by the same author serve one split; meetings and encyclopaedic prose load."""
    novels = {split: load_carrier("novels", split, tokenizer, stsb_data) for split in SPLITS[1:]}
    made = Builder(PAIRS, "context", tokenizer, novels["test"]).pair(1, 16_384)
    assert [len(ids) for ids in token_ids(tokenizer, [made.text1, made.text2])] == [16_384] * 2
    for source in ("qmsum", "qnli"):
        other = load_carrier(source, "validation", tokenizer, stsb_data)
        made = Builder(PAIRS, "context", tokenizer, other).pair(1, 512)
        assert len(token_ids(tokenizer, [made.text1])[0]) == 512


def test_the_packages_own_prose_is_split_and_long_enough(tokenizer: Any) -> None:
    parts = {split: load_carrier("builtin", split, tokenizer) for split in SPLITS}
    for carrier in parts.values():
        assert min(ends[-1] for ends in carrier.ends) > 20_000
    own = {split: {s for d in c.sentences for s in d} for split, c in parts.items()}
    assert not own["train"] & (own["validation"] | own["test"])
    builder = Builder(PAIRS, "context", tokenizer, parts["train"])
    assert builder.pair(0, 100) == Builder(PAIRS, "context", tokenizer, parts["train"]).pair(0, 100)
    prose = builder.prose(200, 3, 1)
    assert len(token_ids(tokenizer, [prose])[0]) == 200
    assert prose != builder.prose(200, 3, 2)
