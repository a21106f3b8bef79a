"""What a run would fail on is told before a teacher is trained."""

from pathlib import Path

import pytest
from tiny import grid_of

from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.study.grid import read_grid
from twinline.study.plan import run_grid
from twinline.study.run import add_pairs
from twinline.study.workshop import Workshop

LAST = "context, lengths: [64, 200, 600], pairs: 30"
SHORT = "It rained. We slept.\n\n" * 400
FULL = " ".join(f"In year {i} the river rose." for i in range(900))


@pytest.fixture
def grid(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny grid, without data beside what the package makes."""
    monkeypatch.delenv("TWINLINE_DATA", raising=False)
    return grid_of(tmp_path, tiny_bert)


def change(grid: Path, old: str, new: str) -> None:
    text = grid.read_text()
    assert old in text
    grid.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (LAST, f"{LAST}, carrier: short.txt", "short.txt .* is too short"),
        (LAST, f"{LAST}, carrier: novels", "TWINLINE_DATA, which is not set"),
        ("train_carriers: [builtin,", "train_carriers: [short.txt,", "short.txt .* is too short"),
        ("transfer_texts: [builtin]", "transfer_texts: [stsb]", "No data for stsb/train"),
        ("sources: [builtin]", "sources: [qqp]", "No data for qqp/train"),
        ("softmax-windows512, poolings: [mean], real: 64", "softmax-windows512, poolings: [mean], "
         "real: 900, train_lengths: [900], steps: [1], pooling_steps: [0]",
         "texts of 900 tokens .* set real to at most 512"),
        ("real: 64, seeds: [0, 1]", "real: 16, seeds: [0, 1]", "real must be"),
        ("block_size: 16, sentences", "feature_map: gatd, sentences", "feature_map must be"),
    ],
)  # fmt: skip
def test_it_is_told_first(grid: Path, tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "short.txt").write_text(SHORT)
    change(grid, old, new.replace("short.txt", str(tmp_path / "short.txt")))
    with pytest.raises(TwinlineError, match=told):
        run_grid(grid, tmp_path / "results", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_document_must_have_more_than_a_text_of_it(grid: Path, tmp_path: Path) -> None:
    """A builder starts anywhere in it, and cuts at a sentence: a few tokens more are not enough."""
    shop = Workshop(read_grid(grid), tmp_path / "work")
    tight = tmp_path / "tight.jsonl"
    tight.write_text("".join(f'{{"id": "{i}", "text": "{FULL}"}}\n' for i in range(20)))
    most = shop.carrier(str(tight), "test").ends[0][-1]
    change(grid, LAST, f"context, lengths: [{most - 10}], carrier: {tight}, pairs: 3")
    with pytest.raises(TwinlineError, match="is too short"):
        run_grid(grid, tmp_path / "results", tmp_path / "work")


def test_what_no_run_reads_is_not_asked_for(grid: Path, tmp_path: Path) -> None:
    only = grid.read_text().split("arms:")[0]
    only = only.replace("transfer_texts: [builtin]", "transfer_texts: [stsb]")
    only = only.replace("sources: [builtin]", "sources: [qqp]")
    grid.write_text(only + "arms:\n  - {name: softmax-full, poolings: [mean]}\n")
    assert run_grid(grid, tmp_path / "results", tmp_path / "work") == ["softmax-full-mean-0"]


def test_arms_run_that_few_grids_have(grid: Path, tmp_path: Path) -> None:
    """Nothing but repeated sentences, states drawn to a twin's without vectors, a far branch that
    was never there."""
    text = grid.read_text().replace("train: {match: 1.0, ", "train: {")
    text = text.replace("constructions: [context, repeat]", "constructions: [repeat]")
    head = text.split("arms:")[0]
    arm = ("{name: hybrid, label: near, poolings: [sentence], real: 64, "
           "model: {block_size: 16, sentences: true, far: false}}")  # fmt: skip
    late = "- {construction: context, lengths: [64], pairs: 12, similarity: late}"
    grid.write_text(f"constructions: [repeat]\n{head}arms: [{arm}]\nvalidation:\n  {late}\n")
    assert run_grid(grid, tmp_path / "results", tmp_path / "work") == ["near-sentence-0"]
    (folder,) = (tmp_path / "work").glob("near-sentence-0-*/late-near-128")
    assert not Encoder(folder).model.config.far


def test_other_pairs_of_the_same_name_are_refused(tmp_path: Path) -> None:
    line = {"construction": "context", "carrier": "novels", "eval_length": 64, "split": "test",
            "pairs": 2, "rows": "AAABAA=="}  # fmt: skip
    add_pairs(tmp_path / "pairs.jsonl", line)
    add_pairs(tmp_path / "pairs.jsonl", line)
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 1
    with pytest.raises(TwinlineError, match="has other 2 pairs of context"):
        add_pairs(tmp_path / "pairs.jsonl", {**line, "rows": "AAACAA=="})


def test_a_log_that_is_gone_is_named(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(TwinlineError, match=r"metrics.jsonl is gone"):
        Workshop(read_grid(grid), tmp_path / "work").softmax_costs()
