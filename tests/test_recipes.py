"""Every shipped recipe runs: its own options, on a tiny model and few steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.quality import ARMS, Arm
from twinline.recipe import read_recipe
from twinline.recipes import ConvertRecipe, DistillRecipe, TeachRecipe
from twinline.study.grid import read_grid
from twinline.study.retrieval import YARDSTICK, SearchGrid
from twinline.teacher import Teacher
from twinline.training import converted, student, teach, training_pairs

RECIPES = Path(__file__).parent.parent / "recipes"

GRIDS = {
    "study-gpu.yaml": 4,
    "study-sentence.yaml": 3,
    "study.yaml": 24,
    "study-small.yaml": 2,
}
"""Grids of the length study, and how many runs each has."""


def test_every_recipe_belongs_to_an_arm() -> None:
    files = {file.name for file in RECIPES.iterdir()}
    arms = {arm.recipe for arm in ARMS if arm.recipe}
    assert files == {*arms, *GRIDS, "retrieval.yaml"}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_read_and_has_its_runs(name: str) -> None:
    grid = read_grid(RECIPES / name)
    assert len(list(grid.runs())) == GRIDS[name]
    assert Path(RECIPES / name).stem == grid.name  # what the page's commands name


def test_the_retrieval_grid_has_its_yardstick() -> None:
    grid = read_recipe(SearchGrid, RECIPES / "retrieval.yaml")
    assert YARDSTICK in [arm.name for arm in grid.arms]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.recipe], ids=lambda arm: arm.name)
def test_recipe(arm: Arm, tiny_bert: Path, tiny_pairs: Path, tmp_path: Path) -> None:
    recipe = read_recipe(arm.kind, RECIPES / str(arm.recipe))
    file = str(tiny_pairs)
    if isinstance(recipe, ConvertRecipe):
        transfer = replace(recipe.transfer, steps=2)
        tiny = replace(recipe, base=str(tiny_bert), texts=(file,), transfer=transfer)
        assert converted(tiny).model.config.attention == recipe.attention
        return
    data = {"base": str(tiny_bert), "data": file, "validation": file, "scale": (0, 1)}
    short = replace(recipe.train, epochs=0.5, evaluate_every=1)
    if isinstance(recipe, TeachRecipe):
        tiny_teach = replace(recipe, train=short, **data)
        pairs, validation = training_pairs(tiny_teach)
        teach(tiny_bert, pairs, tmp_path / "ce", validation=validation, options=short)
        assert np.isfinite(Teacher(tmp_path / "ce").predict([("a man", "rain")])).all()
        return
    assert isinstance(recipe, DistillRecipe)
    transfer = replace(recipe.transfer, steps=2)
    made, run = student(
        replace(recipe, texts=(file,), transfer=transfer, train=short, **data),
        teacher=Teacher(Encoder(tiny_bert)) if recipe.train.alpha else None,
        twin=Encoder(tiny_bert) if recipe.train.match else None,
    )
    assert made.model.config.attention == recipe.model.attention
    assert run.best is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: {alpa: 1}", "alpa.*known: .*alpha"),
        ("train: 3", "train must hold options"),
        ("model: {block_size: 0}", "block_size must be at least 1"),
        ("- a", "holds no options"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_broken_recipe_says_where(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(TwinlineError, match=message) as error:
        read_recipe(DistillRecipe, tmp_path / "r.yaml")
    assert "r.yaml" in str(error.value)
