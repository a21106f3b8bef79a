"""The quality table: rows from finished runs, and the committed files that are made of it."""

import json
from pathlib import Path

import pytest

from twinline.quality import ARMS, REPORTED, rows, table

ROOT = Path(__file__).parent.parent
FIELDS = {
    "arm", "split", "pearson", "pearson_sd", "spearman", "seeds", "recipe", "machine", "date",
}  # fmt: skip


def test_needs_come_first() -> None:
    done: set[str] = set()
    for arm in ARMS:
        assert set(arm.needs) <= done, f"{arm.name} would wait for ever"
        done.add(arm.name)


def test_rows_are_means_over_finished_seeds(tmp_path: Path) -> None:
    for seed, value in ((0, 0.8), (1, 0.9)):
        folder = tmp_path / f"seed-{seed}" / "linear"
        folder.mkdir(parents=True)
        found = {"pearson": value, "spearman": value - 0.1}
        (folder / "result.json").write_text(json.dumps({"validation": found, "test": found}))
    made = rows(ARMS, [0, 1, 2], tmp_path)
    assert [row["split"] for row in made] == ["validation", "test"]
    assert set(made[0]) == FIELDS
    assert made[0]["pearson"] == pytest.approx(0.85)
    assert made[0]["pearson_sd"] == pytest.approx(0.0707, abs=1e-4)
    assert made[0]["spearman"] == pytest.approx(0.75)
    assert made[0]["seeds"] == 2
    assert "| linear | 0.8500 ± 0.0707 | 0.8500 ± 0.0707 | 2 |" in table(made)


def test_the_readme_shows_the_committed_results() -> None:
    committed = json.loads((ROOT / "results" / "quality.json").read_text())
    assert committed
    assert {row["arm"] for row in committed} <= set(REPORTED)
    assert all(set(row) == FIELDS for row in committed)
    assert table(committed) in (ROOT / "README.md").read_text()
