"""A tiny retrieval grid from end to end."""

import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from twinline.cli import main
from twinline.errors import TwinlineError
from twinline.study.report import search_part
from twinline.study.retrieval import run_search
from vocabulary import WORDS

GRID = """
name: tiny-search
base: {base}
collections: [squality]
texts: [builtin]
transfer: {{steps: 2, texts: 8}}
teacher: {base}
train: {{pairs: 4, epochs: {epochs}, listwise: 1.0, lengths: {{least: 16, greatest: [64]}}}}
arms:
  - {{name: softmax-windows512, model: {{attention: softmax, pooling: mean}}, windows: 16}}
  - {{name: linear, model: {{attention: linear, pooling: mean}}, similarity: stca}}
  - {{name: raw, model: {{attention: linear, pooling: mean}}, trained: false}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of eight documents in each split."""
    place = tmp_path_factory.mktemp("search")
    draw = np.random.default_rng(0)
    (place / "data" / "squality").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        names = [f"{split}-{i}" for i in range(8)]
        texts = [f"{split} {i} " + " ".join(draw.choice(WORDS, 80)) for i in range(8)]
        asked = [" ".join(draw.choice(WORDS, 4)) + f" {split} {i}" for i in range(16)]
        of = {"document_id": names * 2, "query": asked, "answer": [f"{a} so" for a in asked]}
        file = place / "data" / "squality" / split
        parquet.write_table(arrow.table({"id": names, "text": texts}), f"{file}-documents.parquet")
        parquet.write_table(arrow.table(of), f"{file}-queries.parquet")
    return place


def test_arms_are_trained_tested_and_compared(
    folder: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TWINLINE_DATA", str(folder / "data"))
    grid = folder / "grid.yaml"
    grid.write_text(GRID.format(base=tiny_bert, epochs=1))
    command = ["study", "retrieval", str(grid), "--results", str(folder / "r"),
               "--work", str(folder / "w")]  # fmt: skip
    main(command)
    told = capsys.readouterr().out
    assert "| linear, seed 0 | squality, answer |" in told
    rows = json.loads((folder / "r" / "long-retrieval-tiny-search.json").read_text())
    assert len(rows) == 4 * 3 * 2  # an arm with a head, and its vectors alone; also of both tasks
    assert {row["arm"] for row in rows if row["over_vectors"] is not None} == {"linear"}
    for row in rows:
        assert row["ci_low"] <= row["ndcg10"] <= row["ci_high"]
        assert (row["over_windows"] is None) == (row["arm"] == "softmax-windows512")
        assert row["documents"] == 24
        assert row["queries"] == 16 * (2 if row["asked"] == "both" else 1)
    kept = {f: f.stat().st_mtime_ns for f in (folder / "w").glob("teacher-*.npy")}
    assert len(kept) == 2  # for questions and for answers, by the first arm that needed them
    part = search_part(folder / "r", "study")
    assert part is None  # another grid's rows are not the published ones
    (folder / "r" / "long-retrieval.json").write_text(json.dumps(rows))
    part = search_part(folder / "r", "study")
    assert part is not None
    assert [len(table["rows"]) for table in part["tables"]] == [12, 12]
    before = {f: f.stat().st_mtime_ns for f in (folder / "r" / "tiny-search").iterdir()}
    main(command)  # nothing is done twice
    assert before == {f: f.stat().st_mtime_ns for f in (folder / "r" / "tiny-search").iterdir()}
    grid.write_text(GRID.format(base=tiny_bert, epochs=2))
    with pytest.raises(TwinlineError, match="another version of the grid"):
        run_search(grid, folder / "r", folder / "w")
    with pytest.raises(TwinlineError, match="has no arm 'hybrid'"):
        run_search(grid, folder / "r", folder / "w", ("hybrid",))


def test_an_arm_that_cannot_be_is_refused_before_the_first_is_trained(
    folder: Path, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLINE_DATA", str(folder / "data"))
    grid = tmp_path / "grid.yaml"
    text = GRID.format(base=tiny_bert, epochs=1)
    grid.write_text(text.replace("similarity: stca", "similarity: stca, windows: 16"))
    with pytest.raises(TwinlineError, match="windows"):
        run_search(grid, tmp_path / "r", tmp_path / "w")
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "w").exists()


def test_the_verb_leaves_its_student_alone(
    folder: Path, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLINE_DATA", str(folder / "data"))
    main(["retrieval", str(tmp_path / "out"), "--base", str(tiny_bert), "--collections", "squality",
          "--teacher", str(tiny_bert), "--train.listwise", "1", "--train.pairs", "4",
          "--train.epochs", "1", "--train.lengths.least", "16", "--train.lengths.greatest", "64",
          "--transfer.steps", "0"])  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arms: []", "one or more of distinct names"),
        ("arms: [{name: a}, {name: a}]", "one or more of distinct names"),
        ("arms: [{nmae: a}]", "arms, number 1 has no option 'nmae'"),
        ("train: {rule: middle}", "rule must be one of prefix, suffix, random, mixed"),
        ("arms: [{name: a, similarity: stac}]", "similarity must be one of cosine, stca, not"),
        ("arms: [{name: a, windows: -3}]", "windows must be at least 16, not -3"),
        ("arms: [{name: a/b}]", "a name must be letters, digits and hyphens, not 'a/b'"),
        ("{collections: [qmsun], arms: [{name: a}]}", "among qmsum, squality, not 'qmsun'"),
        ("{asked: [ask], arms: [{name: a}]}", "asked must be among question, answer, not 'ask'"),
        ("{texts: [novel], arms: [{name: a}]}", "texts must be among .*not 'novel'"),
        ("{seeds: [], arms: [{name: a}]}", "must name at least one each"),
        ("{train: {listwise: 1.0}, arms: [{name: a}]}", "train.listwise needs a teacher"),
    ],
)
def test_a_typo_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(TwinlineError, match=told):
        run_search(file, tmp_path, tmp_path)
