"""Unlabelled texts, sentences and stretches."""

import json
from pathlib import Path

import datasets
import pyarrow as arrow
import pytest
from pyarrow import parquet

from twinline.data import builtin_pairs, load_texts, sentences, stretches
from twinline.data.carriers import of_split
from twinline.errors import TwinlineError
from twinline.text import clean_text


def test_novels_are_those_of_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "novels").mkdir()
    names = [f"novel {number}" for number in range(10)]
    table = arrow.table({"id": names, "text": [f"The text of {name}." for name in names]})
    parquet.write_table(table, tmp_path / "novels/train.parquet")
    monkeypatch.setenv("TWINLINE_DATA", str(tmp_path))
    own = {split: of_split(names, split) for split in ("train", "validation", "test")}
    assert all(own.values())
    assert load_texts("novels") == [f"The text of {name}." for name in own["train"]]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain ünïcode \U0001f600", "plain ünïcode \U0001f600"),
        ("a\0b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("end\ud83d", "end\ufffd"),
        ("\ud83d\ude00 is a pair", "\U0001f600 is a pair"),
        ("", ""),
    ],
)
def test_clean_text(text: str, clean: str) -> None:
    assert clean_text(text) == clean
    clean_text(text).encode()


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\ufefftwo\n\n one \r\n  \ntwo\nthree\0", encoding="utf-8")
    assert load_texts(path) == ["two", "one", "three\ufffd"]
    assert load_texts(str(path), limit=2) == ["two", "one"]


def test_tables_with_texts_and_with_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800"}\n\n{"text": "y", "other": 1}\n')
    (tmp_path / "b.csv").write_text('premise,hypothesis\n"a, b",c\nd,c\n')
    parquet.write_table(arrow.table({"text": ["p", ""]}), tmp_path / "c.parquet")
    data = datasets.Dataset.from_dict({"text": ["y", "z"]})
    assert load_texts(tmp_path / "a.jsonl") == ["x\ufffd", "y"]
    assert load_texts(tmp_path / "b.csv") == ["a, b", "c", "d"]
    assert load_texts([tmp_path / "a.jsonl", data, tmp_path / "c.parquet"]) == [
        *("x\ufffd", "y", "z", "p")
    ]


def test_a_name_gives_its_training_sentences() -> None:
    train = builtin_pairs("train")
    assert load_texts("builtin", limit=3) == [
        *(train.sentence1[0], train.sentence2[0], train.sentence1[1])
    ]
    assert len(load_texts("builtin")) == 800


def test_documents_come_from_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "novels").mkdir()
    parquet.write_table(
        arrow.table({"id": ["1"], "text": ["Call me Ishmael."]}), tmp_path / "novels/train.parquet"
    )
    monkeypatch.setenv("TWINLINE_DATA", str(tmp_path))
    assert load_texts("novels") == ["Call me Ishmael."]
    with pytest.raises(TwinlineError, match=r"no file .*qmsum/train-documents\.parquet"):
        load_texts("qmsum")
    monkeypatch.delenv("TWINLINE_DATA")
    with pytest.raises(TwinlineError, match="set it to a folder with novels/train"):
        load_texts("novels")


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.txt", b" \n\n", "a.txt holds no text"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", b"title,body\n1,2\n", "has the columns title, body: name one of them text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2: text is 3, which is not a text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"texts": "y"}\n', "line 3: text is missing"),
        ("a.pdf", b"%PDF", r"'\.pdf' is not known; give one of \.csv"),
    ],
)
def test_bad_texts(tmp_path: Path, name: str, content: bytes, fragment: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TwinlineError, match=fragment):
        load_texts(tmp_path / name)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(TwinlineError, match="limit must be at least 1"):
        load_texts("builtin", limit=0)


def test_sentences_of_prose() -> None:
    prose = (
        "CHAPTER I\n\nMr. and Mrs. J. Bennet\nwere at home. \"Who is it?\" he said. 'Nobody.' "
        '"It was I." She left... at 3.30 p.m. or so!\n\n\nDr. No came in'
    )
    assert sentences(prose) == [
        "CHAPTER I",
        "Mr. and Mrs. J. Bennet were at home.",
        '"Who is it?" he said.',
        "'Nobody.'",
        '"It was I."',
        "She left... at 3.30 p.m. or so!",
        "Dr. No came in",
    ]
    assert sentences(" \n\n ") == []


def test_sentences_lose_no_word() -> None:
    document = json.dumps(builtin_pairs("test").sentence1) + "\n\nMr. X. left. \n \n No!"
    assert " ".join(sentences(document)).split() == document.split()


def test_stretches() -> None:
    document = " ".join(f"Sentence {n} has five words." for n in range(1000))
    found = list(stretches(document, 48, seed=1))
    assert {len(stretch.split()) for stretch in found} == {50}
    assert all(stretch.startswith("Sentence") for stretch in found)
    # Consecutive, and nothing but the ends left out.
    assert " ".join(found) in document
    assert len(found) in (98, 99, 100)
    assert found == list(stretches(document, 48, seed=1))
    assert len({next(stretches(document, 48, seed=s)) for s in range(20)}) > 5
    assert list(stretches("Too short.", 48, seed=0)) == []
    with pytest.raises(TwinlineError, match="words must be at least 1"):
        next(stretches(document, 0, seed=0))
