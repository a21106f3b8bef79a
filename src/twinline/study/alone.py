"""What a pooling by the sentence learns alone in a study: before a stage, and after the last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..data.long import Builder
from ..encoder import Encoder
from ..options import FindOptions, LengthOptions
from ..statistics import pearson
from ..training.finding import learn_to_find, pooling_of, read_once, soften
from ..training.lengths import Lengths
from .grid import RunPlan
from .measure import Curve, check_end, flops, point
from .workshop import Workshop


def found_lengths_of(plan: RunPlan, stage: int) -> Lengths:
    """The lengths of the texts from which a stage's pooling learns alone, at most a window each."""
    return drawn(plan, stage, plan.grid.find, plan.pooling_steps(stage))


def drawn(plan: RunPlan, stage: int, find: FindOptions, steps: int) -> Lengths:
    """The lengths of ``steps`` steps in which a pooling learns alone at a stage's length."""
    longest = min(plan.stages[stage], plan.kind.windows or plan.stages[stage])
    options = LengthOptions(
        least=min(plan.grid.lengths.least, longest), greatest=(longest,),
        mean=find.mean, edge=find.edge,
    )  # fmt: skip
    return Lengths(options, steps, 1000 * plan.seed + stage)


def find_stage(plan: RunPlan, stage: int, student: Encoder, shop: Workshop, work: Path) -> Curve:
    """Let a stage's pooling learn alone, in place. Returns: the curve, costs counted from its start
    and those of what was read once among them."""
    points = 1 if plan.steps(stage) else plan.grid.curve_points[stage]
    lengths = found_lengths_of(plan, stage)
    builders = shop.builders(shop.train, lengths.seed)
    return learned(plan, stage, student, shop, work, builders, plan.grid.find, lengths, points)


def finish(
    plan: RunPlan, student: Encoder, shop: Workshop, work: Path
) -> tuple[Curve, float | None]:
    """Let the pooling learn alone once more, from more than training's sentences; take it part of
    the way back to what it was; and soften it.

    Returns: the curve, as ``find_stage``'s (its last point is of what comes out), and by what
    factor it was softened.
    """
    stage, options = len(plan.stages) - 1, plan.grid.finish
    pool = pooling_of(student)
    before = {name: weight.clone() for name, weight in pool.state_dict().items()}
    pairs = shop.planted(options)
    find = replace(options.find, pairs=len(pairs))
    lengths = drawn(plan, stage, find, options.steps)
    builders = shop.builders(pairs, lengths.seed, options.constructions)
    curve = learned(plan, stage, student, shop, work, builders, find, lengths, 1)
    after = pool.state_dict()
    pool.load_state_dict({name: after[name].lerp(before[name], options.keep) for name in after})
    factor = None
    if options.soften:
        chosen_on = shop.long(
            "context", plan.stages[-1], plan.grid.carrier, "validation", options.pairs
        ).pairs
        factor = soften(
            student, chosen_on, options.soften, precision=plan.grid.train.precision,
            show_progress=shop.show,
        )  # fmt: skip
    curve[-1]["pearson"] = round(validated(plan, stage, student, shop), 5)
    return curve, factor


def learned(
    plan: RunPlan, stage: int, student: Encoder, shop: Workshop, work: Path,
    builders: tuple[Builder, ...], find: FindOptions, lengths: Lengths, points: int,
) -> Curve:  # fmt: skip
    """Read what the pooling learns from, and train it; ``points`` evaluations after the first."""
    library = read_once(
        student, builders, lengths.options.greatest[-1], options=find,
        seed=1000 * plan.seed, precision=plan.grid.train.precision, folder=work,
        show_progress=shop.show,
    )  # fmt: skip
    run = learn_to_find(
        student, library, lengths, options=find,
        evaluate=lambda: validated(plan, stage, student, shop),
        evaluate_every=-(-lengths.steps // points), folder=work, show_progress=shop.show,
    )  # fmt: skip
    check_end(run, f"The pooling of {plan.key}")
    cost = flops(student.model.config, library.tokens, find.greatest)
    return [
        point(
            line, library.tokens * started, line.seconds + library.seconds * started, cost * started
        )
        for line in run.log
        if line.validation_pearson is not None
        for started in [line.step > 0]
    ]


def validated(plan: RunPlan, stage: int, student: Encoder, shop: Workshop) -> float:
    """Pearson of a stage's curve."""
    pairs, half = shop.curve_pairs(plan, stage), plan.grid.train.precision == "bf16"
    with torch.autocast(student.device.type, torch.bfloat16, enabled=half):
        return pearson(student.score(pairs.sentence1, pairs.sentence2), pairs.unit_score)
