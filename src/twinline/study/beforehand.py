"""What runs would fail on after hours, found before anything starts."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import product

from ..conversion import convert
from ..data import load, load_texts
from ..data.long import SPARE
from ..errors import TwinlineError
from .grid import RunPlan
from .run import CALIBRATED, dtype_of, lengths_of
from .workshop import SEED, Workshop


def look_ahead(plans: Sequence[RunPlan], shop: Workshop) -> None:
    """Refuse runs that cannot end: what their texts are made of is read, which later costs nothing
    more, their models are made, and their steps' lengths drawn.

    Raises: TwinlineError if something is not there, a carrier is too short, or a model, a stage or
        a text contradicts the rest.
    """
    grid = shop.grid
    for options in dict.fromkeys(plan.model for plan in plans):
        convert(grid.base, **options.given())
    for plan in plans:
        for stage in range(len(plan.stages)):
            lengths_of(plan, stage)
            if plan.kind.windows and longest_read(plan, stage) > plan.kind.windows:
                raise TwinlineError(
                    f"The arm {plan.arm.known} trains on texts of {longest_read(plan, stage):,} "
                    f"tokens that are really read, and its windows have {plan.kind.windows}: set "
                    f"real to at most {plan.kind.windows}, and leave virtual on."
                )
    if grid.transfer.steps and any(plan.kind.attention != "softmax" for plan in plans):
        load_texts(list(grid.transfer_texts))
    if any(plan.finishes(len(plan.stages) - 1) for plan in plans):
        for name in grid.finish.sources:
            load(name, "train", need_score=False)
    special = shop.tokenizer.num_special_tokens_to_add()
    for (carrier, split), tokens in prose_of(plans, shop).items():
        shop.carrier(carrier, split).sides(random.Random(SEED), max(0, tokens - special + SPARE))


def longest_read(plan: RunPlan, stage: int) -> int:
    """Tokens of a stage's longest text that is really read."""
    length = plan.stages[stage]
    return min(plan.arm.real, length) if plan.virtual else length


def prose_of(plans: Sequence[RunPlan], shop: Workshop) -> dict[tuple[str, str], int]:
    """The prose that runs ask for, by carrier and split, and the longest text made of it."""
    grid = shop.grid
    found: dict[tuple[str, str], int] = defaultdict(int)

    def ask(carrier: str, split: str, tokens: int) -> None:
        found[carrier, split] = max(found[carrier, split], tokens)

    if dtype_of(grid) == "int8":
        ask(grid.carrier, "train", CALIBRATED)
    for plan in plans:
        for stage, length in enumerate(plan.stages):
            alone = plan.learns_alone(stage) or plan.finishes(stage)
            read = length if alone else longest_read(plan, stage)
            for name, construction in product(grid.train_carriers or (grid.carrier,),
                                              grid.constructions):  # fmt: skip
                ask(name, "train", 0 if construction == "repeat" else read)
            ask(grid.carrier, "validation", 0 if grid.constructions[0] == "repeat" else length)
            for _, _, key in plan.wanted(stage):
                shop.pairs(key["split"])
                if key["carrier"]:
                    made = key["construction"] != "repeat"
                    ask(key["carrier"], key["split"], key["eval_length"] if made else 0)
    return found
