"""The quality table: rows from finished runs, and the committed files that are made of it."""

import json
import shutil
from pathlib import Path

import pytest

from twinline.errors import TwinlineError
from twinline.quality import (
    ARMS,
    BY_NAME,
    REPORTED,
    Runs,
    identity,
    plan,
    rows,
    run_all,
    table,
    work_folder,
)

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
FIELDS = {
    "arm", "split", "pearson", "pearson_sd", "spearman", "seeds", "recipe", "machine", "date",
}  # fmt: skip


def test_needs_come_first() -> None:
    done: set[str] = set()
    for arm in ARMS:
        assert set(arm.needs) <= done, f"{arm.name} would wait for ever"
        done.add(arm.name)


def runs(tmp_path: Path, *results: tuple[int, str, float]) -> Runs:
    made = Runs(tmp_path / "runs.jsonl", RECIPES)
    for seed, name, value in results:
        found = {"pearson": value, "spearman": value - 0.1}
        what = {"arm": name, "seed": seed, "identity": identity(BY_NAME[name], RECIPES)}
        more = {"machine": "m", "date": "2026-01-01"}
        made.add({**what, **more, "validation": found, "test": found})
    return made


def test_rows_are_means_over_finished_seeds(tmp_path: Path) -> None:
    runs(tmp_path, (0, "linear", 0.8), (1, "linear", 0.9))
    made = rows([0, 1, 2], Runs(tmp_path / "runs.jsonl", RECIPES))
    assert [row["split"] for row in made] == ["validation", "test"]
    assert set(made[0]) == FIELDS
    assert made[0]["pearson"] == pytest.approx(0.85)
    assert made[0]["pearson_sd"] == pytest.approx(0.0707, abs=1e-4)
    assert made[0]["spearman"] == pytest.approx(0.75)
    assert made[0]["seeds"] == 2
    assert "| linear | 0.8500 ± 0.0707 | 0.8500 ± 0.0707 | 2 |" in table(made)


def test_only_what_is_missing_is_planned(tmp_path: Path) -> None:
    done = runs(tmp_path, *((0, arm.name, 0.9) for arm in ARMS))
    assert plan(ARMS, [0], tmp_path, done) == []
    names = [arm.name for _, arm in plan((BY_NAME["linear-no-teacher"],), [1], tmp_path, done)]
    assert names == ["linear-transfer-only", "linear-no-teacher"], "a need without weights"
    folder = work_folder(tmp_path, 1, BY_NAME["linear-transfer-only"], RECIPES)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    names = [arm.name for _, arm in plan((BY_NAME["linear-no-teacher"],), [1], tmp_path, done)]
    assert names == ["linear-no-teacher"]


def test_a_changed_recipe_is_another_run(tmp_path: Path) -> None:
    shutil.copytree(RECIPES, tmp_path / "recipes")
    assert identity(BY_NAME["linear"], tmp_path / "recipes") == identity(BY_NAME["linear"], RECIPES)
    with (tmp_path / "recipes" / "stsb-cross-encoder.yaml").open("a") as file:
        file.write("# changed\n")
    identity.cache_clear()
    for name, changed in (("linear", True), ("teacher", True), ("softmax-no-teacher", False)):
        one, other = (identity(BY_NAME[name], r) for r in (RECIPES, tmp_path / "recipes"))
        assert (one != other) == changed


def test_a_failed_run_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TWINLINE_DATA", str(tmp_path / "nowhere"))
    empty = Runs(tmp_path / "runs.jsonl", RECIPES)
    todo = plan((BY_NAME["cross-encoder"],), [0], tmp_path, empty)
    with pytest.raises(TwinlineError, match=r"cross-encoder of seed 0 failed.*TWINLINE_DATA"):
        run_all(todo, tmp_path, empty, 1)


def test_the_readme_shows_the_committed_results() -> None:
    committed = json.loads((ROOT / "results" / "quality.json").read_text())
    assert committed
    assert {row["arm"] for row in committed} <= set(REPORTED)
    assert all(set(row) == FIELDS for row in committed)
    assert table(committed) in (ROOT / "README.md").read_text()
    finished = Runs(ROOT / "results" / "quality-runs.jsonl", RECIPES)
    assert rows([0, 1, 2], finished) == committed, "a recipe changed, and make quality did not run"
