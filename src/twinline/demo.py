"""``twinline demo``: the whole path on real pairs in ten minutes, its table and its picture.

Teacher, attention transfer and distillation run with fewer epochs than the recipes of
``make quality``; finished parts in the output folder are kept, so a stopped demo goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .data import Pairs, load
from .encoder import Encoder
from .errors import TwinlineError, require
from .evaluate import against_labels, evaluate, predict
from .files import whole_file, writable_folder, write_whole
from .machine import describe
from .options import DistillOptions, ModelOptions, TeachOptions, TransferOptions
from .ownership import DEMO_FILES
from .recipes import DistillRecipe
from .sources import read_json
from .statistics import paired_difference
from .teacher import Teacher
from .training import student, teach

BASE = "all-MiniLM-L6-v2"
LENGTHS = (512, 4096, 16384)
CANDIDATES = 1000
PATIENCE = 2.0
"""Seconds a side of the speed table is measured for, at least one text."""


@dataclass(frozen=True)
class Budget:
    """How long each part trains; ``make quality`` trains more."""

    teacher_epochs: float
    student_epochs: float
    transfer_steps: int
    evaluate_every: int


BUDGETS = {
    "stsb": Budget(teacher_epochs=1.0, student_epochs=1.0, transfer_steps=150, evaluate_every=90),
    "builtin": Budget(
        teacher_epochs=4.0, student_epochs=4.0, transfer_steps=100, evaluate_every=10
    ),
}


def run_demo(output: str | Path, data: str | None = None) -> None:
    """Run what is not done yet, print the table, write ``table.md`` and ``convergence.png``.

    Raises: TwinlineError if the output cannot be written or holds a demo on other data.
    """
    started = time.perf_counter()
    require("matplotlib", "report")  # before the work, not after it
    folder = writable_folder(output, "output")
    name, told = chosen(data)
    print(told, flush=True)
    card = folder / "demo.json"
    found = read_json(card) if card.is_file() else None
    data_of = found.get("data") if isinstance(found, dict) else None
    if data_of is None and (
        others := [file for file in DEMO_FILES if os.path.lexists(folder / file)]
    ):
        raise TwinlineError(f"{folder / others[0]} is in the demo's way: name another --output.")
    if data_of not in (None, name):
        raise TwinlineError(f"{output} holds a demo on other data: name another --output.")
    write_whole(card, json.dumps({"data": name}) + "\n")
    budget = BUDGETS[name]
    teacher, softmax, linear = train_all(folder, name, budget)
    validation, test = load(name, "validation"), load(name, "test")
    print("measuring", flush=True)
    sides: list[tuple[str, Encoder | Teacher]] = [
        ("teacher", teacher),
        ("softmax student", softmax),
        ("linear student", linear),
    ]
    lines = [
        "| | validation Pearson | test Pearson | texts/s | rank 1 query, "
        f"{CANDIDATES:,} candidates |",
        "|---|---|---|---|---|",
    ]
    scores = {}
    for side, scorer in sides:
        on_validation = evaluate(scorer, validation)
        scores[side], seconds = timed(partial(predict, scorer, test))
        on_test = against_labels(scores[side], test)
        lines.append(
            f"| {side} | {on_validation.pearson} | {on_test.pearson} "
            f"| {2 * len(test) / seconds:,.0f} | {rank_seconds(scorer, test) * 1000:,.0f} ms |"
        )
    gold = test.score
    assert gold is not None
    difference = paired_difference(
        scores["linear student"], scores["softmax student"], gold, "pearson", 2000, 0
    )
    lines += ["", f"Linear minus softmax, test: {difference} (paired bootstrap).", ""]
    lines += speed_table(softmax, linear)
    lines += [
        "",
        f"Machine: {describe()}. Pearson with 95 % bootstrap intervals, one seed. The teacher is a "
        "cross-encoder averaged with the softmax student, which was trained on "
        "labels; students rank with their candidates' vectors stored. Trained on "
        f"{name}: cross-encoder {budget.teacher_epochs:g} epoch(s), students "
        f"{budget.student_epochs:g}, transfer {budget.transfer_steps} steps; make quality has 4, 2 "
        "and 400 on STS-B.",
    ]
    text = "\n".join(lines)
    write_whole(folder / "table.md", text + "\n")
    print("\n" + text)
    picture(folder)
    print(
        f"\nin {output}: table.md, convergence.png, and the models cross-encoder, softmax, linear"
    )
    print(f"{time.perf_counter() - started:.0f} s in all")


def chosen(data: str | None) -> tuple[str, str]:
    """Which data the demo runs on, and a sentence that says so."""
    if data not in (None, *BUDGETS):
        raise TwinlineError(f"data must be one of {', '.join(BUDGETS)}, not {data!r}.")
    if data == "builtin":
        return data, "data: the small built-in set"
    try:
        load("stsb", "train")
    except TwinlineError as error:
        if data == "stsb":
            raise
        return "builtin", (
            f"data: the small set that the package makes itself, since STS-B is not here ({error})"
        )
    return "stsb", "data: STS-B"


def train_all(folder: Path, name: str, budget: Budget) -> tuple[Teacher, Encoder, Encoder]:
    """Teacher, softmax student and linear student; what a folder already holds is read."""
    places = {side: folder / side for side in ("cross-encoder", "softmax", "linear")}

    def part(side: str, title: str, make: Callable[[Path], Any]) -> None:
        if (places[side] / "config.json").is_file():
            print(f"{title}: found in {places[side]}", flush=True)
            return
        print(title, flush=True)
        _, seconds = timed(lambda: make(folder / f"{side}.work"))
        print(f"  {seconds:.0f} s", flush=True)

    def make_teacher(work: Path) -> None:
        options = TeachOptions(epochs=budget.teacher_epochs, freeze_words=True)
        train = load(name, "train")
        teach(BASE, train, places["cross-encoder"], options=options, folder=work)

    def make_student(side: str, alpha: float, teacher: Teacher | None, work: Path) -> None:
        recipe = DistillRecipe(
            base=BASE,
            data=name,
            model=ModelOptions(attention=side),
            texts=(name,),
            transfer=TransferOptions(steps=budget.transfer_steps),
            train=DistillOptions(
                alpha=alpha,
                epochs=budget.student_epochs,
                freeze_words=True,
                evaluate_every=budget.evaluate_every,
            ),
        )
        encoder, run = student(recipe, work, teacher=teacher)
        log = [
            {"pairs": r.pairs, "validation": r.validation_pearson}
            for r in run.log
            if r.validation_pearson
        ]
        write_whole(folder / f"{side}-curve.json", json.dumps(log) + "\n")
        encoder.save(places[side])

    part("cross-encoder", "1/3 teacher: fine-tuning a cross-encoder", make_teacher)
    part("softmax", "2/3 softmax student, on labels", lambda w: make_student("softmax", 0, None, w))
    softmax = Encoder(places["softmax"])
    teacher = Teacher(
        places["cross-encoder"], softmax, both_orders=False, cache=folder / "scores.sqlite"
    )
    part(
        "linear",
        "3/3 linear student: attention transfer, the teacher's scores, distillation",
        lambda work: make_student("linear", 0.5, teacher, work),
    )
    # Timed and tested without what the cache remembers.
    fresh = Teacher(places["cross-encoder"], softmax, both_orders=False)
    return fresh, softmax, Encoder(places["linear"])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returned, and the seconds it took."""
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


def rank_seconds(scorer: Encoder | Teacher, pairs: Pairs) -> float:
    """Seconds to rank one query against ``CANDIDATES`` texts; an encoder has their vectors."""
    texts = list(dict.fromkeys(pairs.sentence2))
    texts = (texts * (1 + CANDIDATES // len(texts)))[:CANDIDATES]
    query = pairs.sentence1[0]
    if isinstance(scorer, Teacher):
        return timed(lambda: scorer.rank(query, texts))[1]
    vectors = scorer.encode(texts, convert_to_tensor=True)

    def rank() -> Any:
        return torch.argsort(scorer.similarity(scorer.encode(query), vectors)[0], descending=True)

    rank()
    return min(timed(rank)[1] for _ in range(5))


def speed_table(softmax: Encoder, linear: Encoder) -> list[str]:
    """Tokens per second of one long text, best of what fits into ``PATIENCE`` seconds."""
    lines = [
        "| tokens/s at | " + " | ".join(f"{n:,} tokens" for n in LENGTHS) + " |",
        "|---" * (len(LENGTHS) + 1) + "|",
    ]
    words = softmax.tokenizer("distil", add_special_tokens=False)["input_ids"]
    for name, encoder in (("softmax", softmax), ("linear", linear)):
        cells = []
        for length in LENGTHS:
            ids = [(words * length)[:length]]
            spent, best = 0.0, float("inf")
            while spent < PATIENCE:
                seconds = timed(partial(encoder.encode_ids, ids))[1]
                spent, best = spent + seconds, min(best, seconds)
            cells.append(f"{length / best:,.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def picture(folder: Path) -> None:
    """Validation Pearson against training pairs, both students."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for side in ("softmax", "linear"):
        log = json.loads((folder / f"{side}-curve.json").read_text())
        axes.plot([r["pairs"] for r in log], [r["validation"] for r in log], "o-", label=side)
    axes.set(xlabel="training pairs", ylabel="validation Pearson", title="Convergence")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(folder / "convergence.png") as file:
        figure.savefig(file, dpi=120, format="png")
    pyplot.close(figure)
