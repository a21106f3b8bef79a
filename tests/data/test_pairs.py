"""Pairs from tasks and from files, and what is said about bad ones."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from twinline.data import Pairs, builtin_pairs, load, load_pairs, load_task
from twinline.errors import TwinlineError

ROWS = [("a, b", 'say "x"', 0.5), ("", "two\nlines", 4.0), ("ü", "c", 5.0)]


def write(path: Path, first: str = "sentence1", second: str = "sentence2") -> Path:
    table = arrow.table(dict(zip((first, second, "score"), zip(*ROWS, strict=True), strict=True)))
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        table.to_pandas().to_csv(path, index=False)
    return path


def assert_rows(pairs: Pairs) -> None:
    assert list(zip(pairs.sentence1, pairs.sentence2, pairs.score, strict=True)) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    pairs = load_pairs(write(tmp_path / f"pairs{suffix}"), scale=(0, 5))
    assert_rows(pairs)
    assert (pairs.name, pairs.scale, pairs.score.dtype) == (f"pairs{suffix}", (0, 5), np.float64)


@pytest.mark.parametrize(
    "names", [("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis")]
)
def test_other_names_of_columns(tmp_path: Path, names: tuple[str, str]) -> None:
    assert_rows(load_pairs(write(tmp_path / "pairs.csv", *names), scale=(0, 5)))


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", "left", "right")
    assert_rows(load_pairs(path, scale=(0, 5), columns=("left", "right", "score")))
    assert load_pairs(path, columns=("left", "right"), need_score=False).score is None
    with pytest.raises(TwinlineError, match=r"lacks the column wrong; it has left, right, score"):
        load_pairs(path, scale=(0, 5), columns=("wrong", "right", "score"))
    with pytest.raises(TwinlineError, match="first text, second text and score, not left, right"):
        load_pairs(path, scale=(0, 5), columns=("left", "right"))


def test_a_dataset_object() -> None:
    columns = dict(zip(("text1", "text2", "label"), zip(*ROWS, strict=True), strict=True))
    data = datasets.Dataset.from_dict(columns)
    assert_rows(load_pairs(data, scale=(0, 5)))
    with pytest.raises(TwinlineError, match=r"one split of a data set, as in dataset\['train'\]"):
        load_pairs(datasets.DatasetDict({"train": data}), scale=(0, 5))


def test_long_texts_and_byte_order_mark_in_csv(tmp_path: Path) -> None:
    long = "word " * 100_000
    path = tmp_path / "pairs.csv"
    path.write_text(f"\ufeffsentence1,sentence2,score\n{long},b,0\nc,d\0,1\n", encoding="utf-8")
    pairs = load_pairs(path, scale=(0, 1))
    assert pairs.sentence1 == [long, "c"]
    assert pairs.sentence2 == ["b", "d\ufffd"]


def test_select_and_unit_score() -> None:
    pairs = Pairs(["a", "b", "c"], ["d", "e", "f"], np.array([-1.0, 0.0, 3.0]), (-1, 3), "n", "s")
    assert pairs.unit_score.tolist() == [0, 0.25, 1]
    chosen = pairs.select(np.array([2, 0]))
    assert (chosen.sentence1, chosen.sentence2) == (["c", "a"], ["f", "d"])
    assert (chosen.score.tolist(), chosen.scale, len(chosen)) == ([3, -1], (-1, 3), 2)
    assert len(pairs.select([])) == 0
    with pytest.raises(TwinlineError, match="n has no scores"):
        _ = Pairs(["a"], ["b"], None, None, "n", "s").unit_score
    with pytest.raises(TwinlineError, match="differ in length"):
        Pairs(["a"], [], None, None, "n", "s")


GOOD = b"sentence1,sentence2,score\na,b,1\n"


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("p.csv", None, r"There is no file .*p\.csv: check the path"),
        ("p.csv", b"", r"p\.csv is empty"),
        ("p.csv", b"sentence1,sentence2,score\n", r"p\.csv is empty"),
        ("p.jsonl", b"\n\n", r"p\.jsonl is empty"),
        ("p.xlsx", b"PK", r"extension '\.xlsx' is not known; give one of \.csv, \.tsv"),
        ("p.csv", b"\xff\xfes\x00", r"p\.csv is not UTF-8 text: save it as UTF-8"),
        ("p.parquet", b"PAR1 cut off", r"p\.parquet is not a sound Parquet file"),
        ("p.jsonl", b'{"sentence1": "a"', "line 1 is not a JSON object"),
        ("p.jsonl", b"[1, 2]\n", "line 1 is not a JSON object"),
        ("p.csv", GOOD + b'"open,b,2\n', "line 3: unexpected end of data"),
        ("p.csv", GOOD + b"a,b,c,2\n", "line 3: 4 cells but 3 columns"),
        ("p.csv", b"sentence1,sentence1,score\na,b,1\n", "two columns of one name"),
        ("p.csv", b"first,second,score\na,b,1\n", r"lacks the two text columns \(one of sentence1"),
        ("p.csv", b"text1,text2,grade\na,b,1\n", "lacks a column score or label; it has text1, "),
        ("p.csv", GOOD + b"a,b,high\n", "line 3: the score is 'high', not a number; give"),
        ("p.csv", GOOD + b"a,b,\n", "line 3: the score is missing"),
        ("p.csv", GOOD + b"a\n", "line 3: the score is missing"),
        ("p.csv", b'sentence1,sentence2,score\n"a\na",b,1\na,b,x\n', "line 4: the score is 'x'"),
        ("p.csv", GOOD + b"a,b,nan\n", "line 3: the score is nan; give a finite number"),
        ("p.csv", GOOD + b"a,b,-inf\n", "line 3: the score is -inf"),
        ("p.csv", GOOD + b"a,b,5.5\n", "line 3: the score 5.5 lies outside the scale 0 to 5"),
        ("p.csv", GOOD + b"a,c,1\n", r"all 2 scores are 1 \(one class only\)"),
        ("p.jsonl", b'{"text1": null, "text2": "", "label": 1}', "line 1: text1 is missing"),
        ("p.jsonl", b'{"text1": "", "text2": 7, "label": 1}', "line 1: text2 is 7, which is not"),
        ("p.jsonl", b'{"text1": "", "text2": "", "label": [1]}', r"label is \[1\], not a number"),
    ],
)
def test_bad_pairs(tmp_path: Path, name: str, content: bytes | None, fragment: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TwinlineError, match=fragment) as caught:
        load_pairs(tmp_path / name, scale=(0, 5))
    assert name in str(caught.value)


def test_bad_rows_of_parquet_are_counted_from_one(tmp_path: Path) -> None:
    table = {"sentence1": ["a", None], "sentence2": ["b", "c"], "score": [1.0, 2.0]}
    parquet.write_table(arrow.table(table), tmp_path / "p.parquet")
    with pytest.raises(TwinlineError, match=r"p\.parquet, row 2: sentence1 is missing"):
        load_pairs(tmp_path / "p.parquet", scale=(0, 5))


def test_a_scale_is_declared_and_never_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv")
    with pytest.raises(TwinlineError, match=r"scores from 0\.5 to 5 .* give --scale LOW HIGH"):
        load_pairs(path)
    with pytest.raises(TwinlineError, match="from a lower number to a higher, not 5 to 0"):
        load_pairs(path, scale=(5, 0))


def test_load_takes_names_and_paths(tmp_path: Path) -> None:
    assert load("builtin").sentence1 == builtin_pairs("validation").sentence1
    assert load("builtin", split="test").split == "test"
    assert_rows(load(str(write(tmp_path / "pairs.csv")), split="train", scale=(0, 5)))
    with pytest.raises(TwinlineError, match=r"'stsbb' is neither a file nor a name.*builtin, stsb"):
        load("stsbb")
    with pytest.raises(TwinlineError, match="builtin declares its own scale"):
        load("builtin", scale=(0, 5))


class Columns(dict[str, list[Any]]):
    """As much of a data set as the loader needs."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


class Hub:
    """Stands in for the ``datasets`` module, so that no test waits for a network."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] | None = None
        self.asked: list[tuple[str, ...]] = []

    def load_dataset(self, *name: str, split: str) -> Columns:
        self.asked.append((*name, split))
        if self.columns is None:
            raise ConnectionError("no network")
        return Columns(self.columns)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.delenv("TWINLINE_DATA", raising=False)
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.load_dataset))
    return hub


def test_a_folder_comes_before_the_hub(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "stsb").mkdir()
    write(tmp_path / "stsb" / "test.parquet")
    pairs = load_task("stsb", "test", data=tmp_path)
    assert_rows(pairs)
    assert (pairs.name, pairs.split, pairs.scale, hub.asked) == ("stsb", "test", (0, 5), [])


def test_the_hubs_stsb_comes_onto_its_scale(hub: Hub) -> None:
    hub.columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [1.0, 0.5]}
    assert load_task("stsb", "test").score.tolist() == [5, 2.5]
    assert hub.asked == [("sentence-transformers/stsb", "test")]


def test_qnli_is_turned_round_and_mnli_keeps_its_classes(hub: Hub) -> None:
    hub.columns = {"question": ["a", "b"], "sentence": ["c", "d"], "label": [0, 1]}
    assert load("qnli").score.tolist() == [1, 0]
    hub.columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 1]}
    mnli = load("mnli")
    assert (mnli.score.tolist(), mnli.scale) == ([2, 1], None)
    with pytest.raises(TwinlineError, match="mnli has class numbers"):
        _ = mnli.unit_score
    assert hub.asked == [
        ("nyu-mll/glue", "qnli", "validation"),
        ("nyu-mll/glue", "mnli", "validation_matched"),
    ]


def test_when_nothing_has_the_data(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TwinlineError, match=r"not TWINLINE_DATA, which is not set;.*or use 'bui"):
        load_task("stsb", "test")
    monkeypatch.setenv("TWINLINE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TwinlineError, match=r"stsb/test\.parquet \(.*since HF_HUB_OFFLINE is set"):
        load_task("stsb", "test")


def test_a_data_folder_that_does_not_exist_is_an_error(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLINE_DATA", str(tmp_path / "gone"))
    with pytest.raises(TwinlineError, match=r"TWINLINE_DATA is .*gone, which is not a folder"):
        load_task("stsb", "test")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "split", "fragment"),
    [
        ("sst2", "train", "no task 'sst2': give one of stsb, mrpc"),
        ("qqp", "test", "qqp has no split 'test' with public labels: give one of train, val"),
    ],
)
def test_unknown_tasks_and_splits(name: str, split: str, fragment: str) -> None:
    with pytest.raises(TwinlineError, match=fragment):
        load_task(name, split)


@pytest.mark.parametrize(("split", "rows"), [("train", 5749), ("validation", 1500), ("test", 1379)])
def test_the_real_stsb(stsb_data: Path, split: str, rows: int) -> None:
    pairs = load_task("stsb", split, data=stsb_data)
    assert len(pairs) == rows
    assert pairs.unit_score.min() == 0
    assert pairs.unit_score.max() == 1
    assert 0.4 < pairs.unit_score.mean() < 0.6
