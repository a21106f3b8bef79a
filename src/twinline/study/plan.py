"""What a grid would take, said before anything starts, and the runs one after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conversion import convert
from ..data import load
from ..encoder import Encoder
from ..errors import TwinlineError
from ..files import read_lines
from ..machine import keep_memory
from ..options import FindOptions
from ..training.lengths import Lengths
from .arms import WINDOW
from .beforehand import look_ahead
from .grid import CELL, LATE, Grid, RunPlan, read_grid
from .run import complete, dtype_of, lengths_of, missing, pilots_of, run_one, run_yardstick
from .workshop import Workshop

Keys = list[dict[str, Any]]
"""What names each of some lines of results."""
NAMED = 3
"""How many of the scores that a run lacks the plan names."""
TRIAL = 4096
"""Tokens that the machine's speed is measured with."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second on this machine."""

    training: float
    encoding: float


def measure(grid: Grid) -> Speed:
    """A training step and an encoding pass of the base with linear attention, timed."""
    keep_memory()
    encoder = Encoder(convert(grid.base, attention="linear"), dtype="float32")
    vocabulary = encoder.model.config.vocab_size
    drawn = torch.randint(
        vocabulary, (TRIAL // 256, 256), generator=torch.Generator().manual_seed(0)
    )
    ids: list[list[int]] = drawn.tolist()
    half = grid.train.precision == "bf16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = encoder.embed(ids).square().mean()
        loss.backward()
        nn.Module.zero_grad(encoder.model)

    quick = Encoder(encoder.model, encoder.tokenizer, dtype=dtype_of(grid))
    seconds = []
    for work in (step, lambda: quick.encode_ids(ids)):
        work()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return Speed(TRIAL / seconds[0], TRIAL / seconds[1])


@dataclass(frozen=True)
class Estimate:
    """What a run will read, and how long that takes."""

    training: int
    """Tokens."""
    testing: int
    seconds: float


def estimate(
    plan: RunPlan, speed: Speed, pairs: dict[str, int], lacks: Keys | None = None
) -> Estimate:
    """From lengths and steps alone; softmax over whole long texts is slower than said here.

    Args:
        pairs: how many the data have in each split.
        lacks: what a run that is begun has not (``run.missing``): of tests these alone count, but
            training whole, as its weights may be gone.
    """
    training = testing = 0
    for stage, length in enumerate(plan.stages):
        if plan.steps(stage):
            training += tokens_of(plan, lengths_of(plan, stage))
        # Without a way back through the encoder.
        if plan.learns_alone(stage):
            training += read_once(plan.grid.find) // 3
        if plan.finishes(stage):
            last = plan.grid.finish
            if plan.settles(stage):
                training += tokens_of(plan, replace(lengths_of(plan, stage), steps=last.settle))
            other = last.planted * len(last.sources)
            training += read_once(replace(last.find, pairs=last.find.pairs + other)) // 3
            testing += 2 * last.pairs * length * bool(last.soften)
        # Late interaction and cosine are scored by one reading.
        cells = {
            tuple(key[k] for k in CELL): test.pairs
            for _, test, key in plan.wanted(stage)
            if not lacks or key in lacks
        }
        for (name, _, split, _, _, tokens), asked in cells.items():
            count = min(asked or pairs[split], pairs[split])
            read = min(tokens, WINDOW) if name == "softmax-cut512" else tokens
            testing += 2 * count * (read or 20)
        matched = {name for _, name, test in plan.tests(stage) if test.similarity == LATE}
        testing += 2 * plan.grid.finish.pairs * length * len(matched)
        evaluations = 1 + plan.grid.curve_points[stage]
        training += 2 * plan.grid.curve_pairs * length * evaluations // 3
    steps = sum(map(plan.steps, range(len(plan.stages))))
    if plan.grid.rates and plan.is_first and steps:
        first = training * plan.grid.pilot // steps
        training += len(plan.grid.rates) * first
    return Estimate(training, testing, training / speed.training + testing / speed.encoding)


def read_once(find: FindOptions) -> int:
    """Tokens that a pooling learns alone from."""
    return find.pairs * (find.least + find.greatest) + find.prose


def tokens_of(plan: RunPlan, lengths: Lengths) -> int:
    """Tokens that all steps read."""
    each = [lengths.real(step) if lengths[step] else 20 for step in range(lengths.steps)]
    pairs = [lengths.pairs(step, plan.grid.train.pairs) for step in range(lengths.steps)]
    return sum(2 * count * tokens for count, tokens in zip(pairs, each, strict=True))


def results_folder(grid: Grid, results: Path) -> Path:
    """Where a grid's finished runs lie."""
    return results / grid.name


def said(lacks: Keys | None) -> str:
    """Of what a run still lacks, None before it is begun."""
    if not lacks:
        return "" if lacks is None else "done"
    some = "; ".join(map(named, lacks[:NAMED]))
    return f"lacks {some}" + (f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else "")


def named(key: dict[str, Any]) -> str:
    """A line of results that is not there, in words."""
    if key["what"] == "curve":
        return f"training to {key['train_length']:,} tokens"
    words = (key[k] for k in ("arm", "split", "construction", "carrier"))
    length = f"{key['eval_length']:,}"
    return " ".join(word for word in (*words, length, key["similarity"]) if word)


def plan_text(path: Path, results: Path) -> str:
    """The runs of a grid as a table, with what each reads and takes on this machine; of one that
    lacks scores, with what those take and, as weights are not kept, its training."""
    grid = read_grid(path)
    folder = results_folder(grid, results)
    speed = measure(grid)
    pairs = {split: len(load(grid.data, split)) for split in ("validation", "test")}
    lines = ["| run | training tokens | test tokens | hours | |", "|---|---|---|---|---|"]
    left = 0.0
    for plan in grid.runs():
        lacks = missing(plan, folder / f"{plan.key}.jsonl")
        made = estimate(plan, speed, pairs, lacks)
        left += made.seconds if lacks is None or lacks else 0.0
        lines.append(
            f"| {plan.key} | {made.training:,} | {made.testing:,} | {made.seconds / 3600:.2f} | "
            f"{said(lacks)} |"
        )
    lines.append("")
    lines.append(
        f"{left / 3600:.1f} hours to go, at {speed.training:,.0f} tokens a second in training and "
        f"{speed.encoding:,.0f} in tests as measured just now; besides, once, the teacher and the "
        "softmax student, each arm's attention transfer, and a pooling's steps alone, which run "
        "no encoder."
    )
    return "\n".join(lines)


def run_grid(path: Path, results: Path, work: Path, only: tuple[str, ...] = ()) -> list[str]:
    """Run what is not finished. Returns: the keys of the runs that this call finished.

    Args:
        only: keys of runs, if not all.
    Raises: TwinlineError as ``read_grid`` and ``Results``, or for a key that is no run's.
    """
    grid = read_grid(path)
    folder = results_folder(grid, results)
    plans = list(grid.runs())
    known = [plan.key for plan in plans]
    for key in only:
        if key not in known:
            raise TwinlineError(f"{path} has no run {key!r}; it has {', '.join(known)}.")
    read_lines(folder / "pairs.jsonl")
    for plan in plans:
        if plan.key in only and grid.rates and any(map(plan.steps, range(len(plan.stages)))):
            needed = plan.first.key
            if needed not in only and not pilots_of(plan.first, folder):
                raise TwinlineError(
                    f"{plan.key} takes the learning rate that {needed} chooses: name that run too."
                )
    left = [plan for plan in plans if not complete(plan, folder / f"{plan.key}.jsonl")]
    todo = [plan for plan in left if not only or plan.key in only]
    print(f"{len(todo)} of {len(plans)} runs to do", flush=True)
    shop = Workshop(grid, work)
    if todo:
        look_ahead(todo, shop)
    run_yardstick(grid, shop, folder)
    for plan in todo:
        run_one(plan, shop, folder)
    return [plan.key for plan in todo]
