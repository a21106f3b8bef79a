"""``make quality``: every arm's recipe over several seeds, and the table of what came out.

Each arm of each seed is a process of its own with one thread; finished ones are kept, killed ones
go on from their checkpoint.
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
from pathlib import Path
from typing import Any

import numpy as np

from .errors import TwinlineError
from .files import write_whole
from .options import ConvertRecipe, DistillRecipe, TeachRecipe, read_recipe

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


def run_arm(arm: Arm, seed: int, root: Path, recipes: Path) -> None:
    """Train and evaluate one arm of one seed; its folder holds ``result.json`` when it is done."""
    from .data import load_task
    from .encoder import Encoder
    from .evaluate import evaluate
    from .teacher import Teacher
    from .training import converted, student, teach, training_pairs

    place = root / f"seed-{seed}"
    work = place / arm.name
    model = work / "model"

    def teacher_of(names: tuple[str, ...]) -> Teacher:
        folders = [place / name / "model" for name in names]
        return Teacher(*folders, cache=place / f"scores-{'+'.join(names)}.sqlite")

    started = time.perf_counter()
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
            recipe = replace(recipe, base=str(place / arm.base / "model"), transfer=none)
        scorer, _ = student(
            recipe, work, teacher=teacher_of(arm.teacher) if arm.teacher else None,
            twin=Encoder(place / arm.twin / "model") if arm.twin and recipe.train.match else None,
        )  # fmt: skip
        scorer.save(model)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {"arm": arm.name, "seed": seed, "seconds": seconds}
    for split in SPLITS:
        found = evaluate(scorer, load_task("stsb", split))
        result[split] = {"pearson": found.pearson.value, "spearman": found.spearman.value}
        result[f"{split}_interval"] = [found.pearson.low, found.pearson.high]
    write_whole(work / "result.json", json.dumps(result, indent=1) + "\n")


def run_all(arms: tuple[Arm, ...], seeds: list[int], root: Path, recipes: Path, jobs: int) -> None:
    """Every arm of every seed that has no result yet, ``jobs`` at a time, needs first."""
    # Arm by arm, so that a run that is stopped early has some of every seed.
    waiting = [(seed, arm) for arm in arms for seed in seeds]
    running: dict[tuple[int, str], tuple[subprocess.Popen[bytes], Any]] = {}

    def done(seed: int, name: str) -> bool:
        return (root / f"seed-{seed}" / name / "result.json").is_file()

    waiting = [(seed, arm) for seed, arm in waiting if not done(seed, arm.name)]
    print(f"{len(waiting)} of {len(seeds) * len(arms)} runs to do, {jobs} at a time", flush=True)
    try:
        while waiting or running:
            for seed, arm in list(waiting):
                if len(running) < jobs and all(done(seed, need) for need in arm.needs):
                    waiting.remove((seed, arm))
                    log = root / f"seed-{seed}" / f"{arm.name}.log"
                    log.parent.mkdir(parents=True, exist_ok=True)
                    file = log.open("ab")
                    command = [sys.executable, "-m", "twinline.quality", "--output", str(root)]
                    command += ["--recipes", str(recipes), "--run", arm.name, str(seed)]
                    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
                    process = subprocess.Popen(
                        command, stdout=file, stderr=file, env=os.environ | threads
                    )
                    running[seed, arm.name] = (process, file)
            time.sleep(0.5)
            for (seed, name), (process, file) in list(running.items()):
                if process.poll() is None:
                    continue
                file.close()
                del running[seed, name]
                if process.returncode:
                    log = root / f"seed-{seed}" / f"{name}.log"
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise TwinlineError(f"{name} of seed {seed} failed, see {log}: {''.join(last)}")
                result = json.loads((root / f"seed-{seed}" / name / "result.json").read_text())
                print(
                    f"seed {seed} {name}: validation {result['validation']['pearson']:.4f}, "
                    f"test {result['test']['pearson']:.4f}, {result['seconds']:.0f} s",
                    flush=True,
                )
            if (
                not running
                and waiting
                and not any(all(done(s, need) for need in arm.needs) for s, arm in waiting)
            ):
                names = sorted({arm.name for _, arm in waiting})
                raise TwinlineError(f"{', '.join(names)} need arms that were left out.")
    finally:
        for process, file in running.values():
            process.terminate()
            process.wait()
            file.close()


def rows(arms: tuple[Arm, ...], seeds: list[int], root: Path) -> list[dict[str, Any]]:
    """The table: one flat row for each arm and split, means over the seeds that are done."""
    from .machine import describe

    made = []
    for arm in (arm for arm in arms if arm.name in REPORTED):
        files = [root / f"seed-{seed}" / arm.name / "result.json" for seed in seeds]
        results = [json.loads(file.read_text()) for file in files if file.is_file()]
        for split in SPLITS if results else ():
            pearson = np.array([result[split]["pearson"] for result in results])
            spearman = np.array([result[split]["spearman"] for result in results])
            made.append(
                {
                    "arm": arm.name,
                    "split": split,
                    "pearson": round(float(pearson.mean()), 5),
                    "pearson_sd": round(float(pearson.std(ddof=1)), 5)
                    if len(results) > 1
                    else None,
                    "spearman": round(float(spearman.mean()), 5),
                    "seeds": len(results),
                    "recipe": f"recipes/{arm.recipe}" if arm.recipe else " + ".join(arm.teacher),
                    "machine": describe(),
                    "date": date.today().isoformat(),
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


def into_readme(file: Path, text: str) -> None:
    """Put the table between README's marks, where there is a README with marks."""
    if not file.is_file():
        return
    before, begin, rest = file.read_text().partition("<!-- quality -->\n")
    _, end, after = rest.partition("<!-- /quality -->")
    if begin and end:
        write_whole(file, before + begin + text + "\n" + end + after)


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
        run_all(arms, options.seeds, options.output, options.recipes, options.jobs)
        made = rows(ARMS, options.seeds, options.output)
        write_whole(options.results, json.dumps(made, indent=1) + "\n")
        print(table(made))
        into_readme(options.readme, table(made))
    except TwinlineError as error:
        print(f"twinline: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
