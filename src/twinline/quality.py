"""``make quality``: every arm's recipe over several seeds, and the table of what came out.

Each arm of each seed is a process of its own with one thread. Killed ones go on from their
checkpoint; the results of finished ones are lines of ``results/quality-runs.jsonl``, and an arm is
trained again only if its recipe has changed, or another arm needs weights that are not there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import TwinlineError
from .files import into_marks, write_whole
from .hashing import fingerprint
from .recipe import read_recipe
from .recipes import ConvertRecipe, DistillRecipe, TeachRecipe

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Arm:
    """One row of the table: a recipe, and the arms whose results it starts from."""

    name: str
    recipe: str | None = None
    """File in ``recipes/``; None: nothing is trained."""
    kind: Any = DistillRecipe
    base: str | None = None
    """Start from this arm's folder instead of the recipe's base."""
    teacher: tuple[str, ...] = ()
    twin: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(n for n in (self.base, self.twin, *self.teacher) if n)


BOTH = ("cross-encoder", "softmax-no-teacher")
ARMS = (
    Arm("cross-encoder", "stsb-cross-encoder.yaml", TeachRecipe),
    Arm("softmax-no-teacher", "stsb-softmax-no-teacher.yaml"),
    Arm("linear-transfer-only", "stsb-linear-transfer-only.yaml", ConvertRecipe),
    Arm("teacher", teacher=BOTH),
    Arm("softmax", "stsb-softmax.yaml", teacher=BOTH),
    Arm("linear", "stsb-linear.yaml", base="linear-transfer-only", teacher=BOTH, twin="softmax"),
    Arm("hybrid8-transfer-only", "stsb-hybrid8-transfer-only.yaml", ConvertRecipe),
    Arm("hybrid8", "stsb-hybrid8.yaml", base="hybrid8-transfer-only", teacher=BOTH, twin="softmax"),
    Arm("lightning-transfer-only", "stsb-lightning-transfer-only.yaml", ConvertRecipe),
    Arm(
        "lightning",
        "stsb-lightning.yaml",
        base="lightning-transfer-only",
        teacher=BOTH,
        twin="softmax",
    ),
    Arm("linear-no-teacher", "stsb-linear-no-teacher.yaml", base="linear-transfer-only"),
    Arm(
        "linear-crossencoder-only",
        "stsb-linear-crossencoder-only.yaml",
        base="linear-transfer-only",
        teacher=("cross-encoder",),
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}
REPORTED = tuple(
    name for name in BY_NAME if name not in ("hybrid8-transfer-only", "lightning-transfer-only")
)
"""The arms of the table; the others are steps on the way to one."""


@cache
def identity(arm: Arm, recipes: Path) -> str:
    """What an arm's result depends on: its recipe, and those of the arms it starts from."""
    own = (recipes / arm.recipe).read_bytes() if arm.recipe else b""
    return fingerprint([arm.name, own, *(identity(BY_NAME[n], recipes) for n in arm.needs)])[:8]


def work_folder(root: Path, seed: int, arm: Arm, recipes: Path) -> Path:
    """Where an arm of a seed works: a changed recipe is another folder."""
    return root / f"seed-{seed}" / f"{arm.name}-{identity(arm, recipes)}"


def run_arm(arm: Arm, seed: int, root: Path, recipes: Path) -> None:
    """Train and evaluate one arm of one seed; its folder holds ``result.json`` when it is done."""
    from .data import load_task
    from .encoder import Encoder
    from .evaluate import evaluate
    from .machine import describe
    from .teacher import Teacher
    from .training import converted, student, teach, training_pairs

    work = work_folder(root, seed, arm, recipes)
    model = work / "model"

    def model_of(name: str) -> Path:
        return work_folder(root, seed, BY_NAME[name], recipes) / "model"

    def teacher_of(names: tuple[str, ...]) -> Teacher:
        return Teacher(*map(model_of, names), cache=root / f"seed-{seed}" / "scores.sqlite")

    scorer: Encoder | Teacher
    if arm.recipe is None:
        scorer = teacher_of(arm.teacher)
    elif arm.kind is TeachRecipe:
        taught: TeachRecipe = read_recipe(TeachRecipe, recipes / arm.recipe)
        pairs, validation = training_pairs(taught)
        teach(
            taught.base, pairs, model, validation=validation,
            options=replace(taught.train, seed=seed), folder=work,
        )  # fmt: skip
        scorer = Teacher(model)
    elif arm.kind is ConvertRecipe:
        turned: ConvertRecipe = read_recipe(ConvertRecipe, recipes / arm.recipe)
        turned = replace(turned, transfer=replace(turned.transfer, seed=seed))
        scorer = converted(turned, work)
        scorer.save(model)
    else:
        recipe: DistillRecipe = read_recipe(DistillRecipe, recipes / arm.recipe)
        recipe = replace(recipe, train=replace(recipe.train, seed=seed))
        if arm.base:
            none = replace(recipe.transfer, steps=0)  # the base arm has done it
            recipe = replace(recipe, base=str(model_of(arm.base)), transfer=none)
        scorer, _ = student(
            recipe, work, teacher=teacher_of(arm.teacher) if arm.teacher else None,
            twin=Encoder(model_of(arm.twin)) if arm.twin and recipe.train.match else None,
        )  # fmt: skip
        scorer.save(model)
    result: dict[str, Any] = {
        "arm": arm.name,
        "seed": seed,
        "identity": identity(arm, recipes),
        "machine": describe(),
        "date": date.today().isoformat(),
    }
    for split in SPLITS:
        found = evaluate(scorer, load_task("stsb", split))
        result[split] = {
            "pearson": round(found.pearson.value, 6),
            "spearman": round(found.spearman.value, 6),
        }
    write_whole(work / "result.json", json.dumps(result) + "\n")


class Runs:
    """The finished runs, one line of JSON each: committed, so that nothing is trained twice."""

    def __init__(self, file: Path, recipes: Path) -> None:
        self.file, self.recipes = file, recipes
        lines = file.read_text().splitlines() if file.is_file() else []
        self.found = {(r["seed"], r["arm"], r["identity"]): r for r in map(json.loads, lines)}

    def get(self, seed: int, arm: Arm) -> dict[str, Any] | None:
        """The result of an arm with its recipe as it is now."""
        return self.found.get((seed, arm.name, identity(arm, self.recipes)))

    def add(self, result: dict[str, Any]) -> None:
        self.found = Runs(self.file, self.recipes).found  # another runner may have added
        self.found[result["seed"], result["arm"], result["identity"]] = result
        lines = [json.dumps(r) for _, r in sorted(self.found.items())]
        write_whole(self.file, "\n".join(lines) + "\n")


def plan(arms: tuple[Arm, ...], seeds: list[int], root: Path, runs: Runs) -> list[tuple[int, Arm]]:
    """What is to run, needs first: arms without a result, and needs whose weights are gone.

    Arm by arm rather than seed by seed, so that a run that is stopped has some of every seed.
    """
    wanted: set[tuple[int, str]] = set()

    def want(seed: int, arm: Arm) -> None:
        wanted.add((seed, arm.name))
        for need in (BY_NAME[name] for name in arm.needs):
            if not (work_folder(root, seed, need, runs.recipes) / "result.json").is_file():
                want(seed, need)

    for arm in arms:
        for seed in seeds:
            if runs.get(seed, arm) is None:
                want(seed, arm)
    return [(seed, arm) for arm in ARMS for seed in seeds if (seed, arm.name) in wanted]


def run_all(todo: list[tuple[int, Arm]], root: Path, runs: Runs, jobs: int) -> None:
    """Run what is to do, ``jobs`` at a time, each in a process of its own.

    Raises: TwinlineError with the last line of its log if one fails; the others are stopped, and
        go on from their checkpoints the next time.
    """

    def result_file(seed: int, arm: Arm) -> Path:
        return work_folder(root, seed, arm, runs.recipes) / "result.json"

    def ready(seed: int, arm: Arm) -> bool:
        return all(result_file(seed, BY_NAME[name]).is_file() for name in arm.needs)

    waiting = list(todo)
    running: dict[tuple[int, str], subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            for seed, arm in [(s, a) for s, a in waiting if ready(s, a)][: jobs - len(running)]:
                waiting.remove((seed, arm))
                running[seed, arm.name] = start(arm, seed, root, runs.recipes)
            time.sleep(0.5)
            for (seed, name), process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[seed, name]
                if process.returncode:
                    log = root / f"seed-{seed}" / f"{name}.log"
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise TwinlineError(f"{name} of seed {seed} failed, see {log}: {''.join(last)}")
                result = json.loads(result_file(seed, BY_NAME[name]).read_text())
                runs.add(result)
                scores = [f"{split} {result[split]['pearson']:.4f}" for split in SPLITS]
                print(f"seed {seed} {name}: {', '.join(scores)}", flush=True)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def start(arm: Arm, seed: int, root: Path, recipes: Path) -> subprocess.Popen[bytes]:
    """One arm of one seed in a process with one thread, its output in a log."""
    command = [sys.executable, "-m", "twinline.quality", "--output", str(root)]
    command += ["--recipes", str(recipes), "--run", arm.name, str(seed)]
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = root / f"seed-{seed}" / f"{arm.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | threads)


def rows(seeds: list[int], runs: Runs) -> list[dict[str, Any]]:
    """The table: one flat row for each arm and split, means over the seeds that are done."""
    made = []
    for arm in (BY_NAME[name] for name in REPORTED):
        results = [r for seed in seeds if (r := runs.get(seed, arm)) is not None]
        many = len(results) > 1
        for split in SPLITS if results else ():
            pearson = np.array([result[split]["pearson"] for result in results])
            spearman = np.array([result[split]["spearman"] for result in results])
            made.append(
                {
                    "arm": arm.name,
                    "split": split,
                    "pearson": round(float(pearson.mean()), 5),
                    "pearson_sd": round(float(pearson.std(ddof=1)), 5) if many else None,
                    "spearman": round(float(spearman.mean()), 5),
                    "seeds": len(results),
                    "recipe": f"recipes/{arm.recipe}" if arm.recipe else " + ".join(arm.teacher),
                    "machine": results[-1]["machine"],
                    "date": max(result["date"] for result in results),
                }
            )
    return made


def table(made: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table: Pearson, mean ± standard deviation over seeds."""
    lines = ["| arm | validation Pearson | test Pearson | seeds |", "|---|---|---|---|"]
    names = dict.fromkeys(row["arm"] for row in made)
    for name in names:
        cells = {}
        for row in (r for r in made if r["arm"] == name):
            spread = "" if row["pearson_sd"] is None else f" ± {row['pearson_sd']:.4f}"
            cells[row["split"]] = f"{row['pearson']:.4f}{spread}"
        seeds = next(r["seeds"] for r in made if r["arm"] == name)
        lines.append(f"| {name} | {cells['validation']} | {cells['test']} | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/quality"), help="work folder")
    parser.add_argument("--recipes", type=Path, default=Path("recipes"))
    parser.add_argument("--results", type=Path, default=Path("results/quality.json"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(BY_NAME), default=list(BY_NAME))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--run", nargs=2, metavar=("ARM", "SEED"), help="only this one, here")
    options = parser.parse_args()
    try:
        if options.run:
            name, seed = options.run
            run_arm(BY_NAME[name], int(seed), options.output, options.recipes)
            return
        arms = tuple(arm for arm in ARMS if arm.name in options.arms)
        runs = Runs(options.results.with_name("quality-runs.jsonl"), options.recipes)
        todo = plan(arms, options.seeds, options.output, runs)
        print(f"{len(todo)} runs to do, {options.jobs} at a time", flush=True)
        run_all(todo, options.output, runs, options.jobs)
        made = rows(options.seeds, runs)
        write_whole(options.results, json.dumps(made, indent=1) + "\n")
        print(table(made))
        into_marks(options.readme, "quality", table(made))
    except TwinlineError as error:
        print(f"twinline: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
