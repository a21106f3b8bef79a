"""One run of a study: all stages of one arm, pooling and seed, and every test of its weights."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import date
from itertools import groupby
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch.nn import functional as F

from ..data import Pairs
from ..data.long import Builder, LongPairs
from ..encoder import Encoder
from ..errors import TwinlineError
from ..evaluate import far_off
from ..files import read_lines, write_whole
from ..hashing import fingerprint
from ..loop import multiplied
from ..machine import describe
from ..recipe import chosen
from ..statistics import correlation
from ..training import distill
from ..training.lengths import Lengths, LongSteps
from ..training.matching import late_of, learn_to_match
from .alone import find_stage, finish, found_lengths_of
from .arms import WINDOW
from .checks import other_version
from .grid import LATE, NATIVE, EvalOptions, Grid, RunPlan
from .measure import Curve, check_end, flops, joined, point
from .workshop import SEED, Workshop

CALIBRATION, CALIBRATED = 24, 256
"""Training texts on which int8 finds its ranges, and their tokens."""


def lengths_of(plan: RunPlan, stage: int) -> Lengths:
    """The lengths of a stage's steps: the same draws for every arm of a seed (what is virtual is
    not)."""
    length, grid = plan.stages[stage], plan.grid
    options = replace(
        grid.lengths,
        least=min(grid.lengths.least, length),
        greatest=(length,),
        shares=(),
        real=min(plan.arm.real, length) if plan.virtual else None,
        equal=plan.equal,
    )
    return Lengths(options, plan.steps(stage), 1000 * plan.seed + stage)


def steps_of(
    plan: RunPlan, lengths: Lengths, shop: Workshop, constructions: Sequence[str] = ()
) -> LongSteps:
    """The texts of a stage's steps: from the same order of pairs for every arm of a seed, in other
    prose where arms really read another length; by the study's constructions, if not by others."""
    builders = shop.builders(shop.train, lengths.seed, constructions)
    return LongSteps(builders, lengths, apart=plan.kind.windows is not None and plan.virtual)


def train_stage(
    plan: RunPlan,
    stage: int,
    student: Encoder,
    shop: Workshop,
    work: Path,
    rate: float,
    steps: int | None = None,
) -> Curve:
    """Train one stage in place. Returns: the curve, costs counted from its start.

    Args:
        steps: of a pilot; it reads what the stage's first steps would.
    """
    lengths = lengths_of(plan, stage)
    longer = steps_of(plan, lengths, shop)
    points = plan.grid.curve_points[stage]
    return distilled(plan, stage, student, shop, work, rate, longer, steps or lengths.steps, points)


def settle(plan: RunPlan, student: Encoder, shop: Workshop, work: Path, rate: float) -> Curve:
    """Let encoder and pooling learn once more, in place, at the last stage's lengths, from what
    ``finish`` names. Returns: the curve, as ``train_stage``'s.

    What only the pooling has met by then the encoder meets too: a sentence over and over is to be
    what it is alone.
    """
    options, stages = plan.grid.finish, len(plan.stages)
    lengths = replace(
        lengths_of(plan, stages - 1), steps=options.settle, seed=1000 * plan.seed + stages
    )
    longer = steps_of(plan, lengths, shop, options.constructions)
    return distilled(plan, stages - 1, student, shop, work, rate, longer, options.settle, 1)


def distilled(
    plan: RunPlan, stage: int, student: Encoder, shop: Workshop, work: Path, rate: float,
    longer: LongSteps, steps: int, points: int,
) -> Curve:  # fmt: skip
    """Train, in place, the first ``steps`` of what ``longer`` builds. Returns: the curve, with
    ``points`` evaluations on the stage's pairs over all of its steps."""
    grid, lengths = plan.grid, longer.lengths
    per_epoch = -(-len(shop.train) // grid.train.pairs)
    options = replace(
        grid.train, seed=lengths.seed, epochs=steps / per_epoch,
        learning_rate=rate, evaluate_every=-(-lengths.steps // points),
        attend=grid.train.attend if plan.pooling != "mean" else 0.0,
    )  # fmt: skip
    run = distill(
        student, shop.train, teacher_scores=shop.teacher_scores() if options.alpha else None,
        twin=shop.softmax() if options.match or options.states else None,
        goals=shop.goals() if options.match else None,
        validation=shop.curve_pairs(plan, stage), options=options,
        longer=longer, folder=work, show_progress=shop.show,
    )  # fmt: skip
    check_end(run, f"{plan.key} with learning rate {rate:g}")
    config = student.model.config
    greatest = lengths.options.greatest[-1]
    length = min(plan.arm.real, greatest) if plan.virtual else greatest
    return [
        point(line, line.tokens, line.seconds, 3 * flops(config, line.tokens, length))
        for line in run.log
        if line.validation_pearson is not None
    ]


def dtype_of(grid: Grid) -> str:
    """The numbers that tests are scored with on this machine: a GPU has no int8."""
    return "float32" if grid.dtype == "int8" and torch.cuda.is_available() else grid.dtype


@contextmanager
def reading(
    plan: RunPlan, name: str, similarity: str, folder: Path, shop: Workshop
) -> Iterator[Encoder]:
    """The weights in ``folder`` as the arm ``name`` reads them."""
    dtype = dtype_of(plan.grid)
    given: dict[str, Any] = {
        "windows": plan.kind.windows, "dtype": dtype, "similarity": similarity,
    }  # fmt: skip
    if name == "softmax-cut512":
        given |= {"max_tokens": WINDOW, "on_overflow": "truncate"}
    if dtype == "int8":
        given["calibration"] = calibration(shop)
    encoder = Encoder(folder, **given)
    off = far_off(encoder.model) if name == "hybrid-off" else nullcontext()
    with off, multiplied("fp32" if dtype == plan.grid.dtype else "tf32"):
        yield encoder


def packed(values: Any, kind: str) -> str:
    """Numbers as text: a few bytes each, so that a run's results stay small."""
    return b64encode(np.asarray(values).astype(kind).tobytes()).decode()


def score(
    encoder: Encoder, shop: Workshop, test: EvalOptions, key: dict[str, Any]
) -> tuple[list[dict[str, Any]], LongPairs]:
    """One score: its line of results, ``key`` among it, and what was scored. Where late interaction
    is asked for, behind it the line of the same vectors' cosine."""
    made = shop.long(
        key["construction"], key["eval_length"], key["carrier"], key["split"], test.pairs
    )
    started = time.perf_counter()
    texts = [*made.pairs.sentence1, *made.pairs.sentence2]
    read = encoder.store if encoder.reads_states else encoder.encode
    known = read(texts, show_progress_bar=shop.show)
    first, second = known[: len(made.pairs)], known[len(made.pairs) :]
    every = [(key, encoder.similarity_pairwise(first, second))]
    if encoder.reads_states:
        every.append(
            ({**key, "similarity": None}, F.cosine_similarity(first.vectors, second.vectors))
        )
    seconds = time.perf_counter() - started
    lines = []
    for named, scored in every:
        scores = scored.double().cpu().numpy()
        found = correlation(scores, made.pairs.unit_score, "pearson")
        lines.append({
            **named,
            "dtype": encoder.dtype,
            "pairs": len(made.pairs),
            "left_out": made.too_long,
            "pearson": round(found.value, 5),
            "ci_low": round(found.low, 5),
            "ci_high": round(found.high, 5),
            "seconds": round(seconds, 1),
            "memory": memory_of(encoder, key["eval_length"]),
            "machine": describe(),  # a run may be tested on another than it was trained on
            # Standardised, which no correlation sees: two bytes are then enough.
            "scores": packed((scores - scores.mean()) / max(scores.std(), 1e-12), "<f2"),
        })  # fmt: skip
    return lines, made


def match(plan: RunPlan, stage: int, name: str, encoder: Encoder, shop: Workshop,
          lines: Results) -> None:  # fmt: skip
    """Let late interaction learn its numbers, on validation pairs that are scored last if at all,
    or take what it has learned; and leave the arm beside its stages as it is scored so."""
    grid, length = plan.grid, plan.stages[stage]
    known = {"what": "match", "arm": name, "train_length": length}
    if not lines.has(known):
        pairs = shop.long(
            "context", length, grid.carrier, "validation", grid.finish.pairs, others=True
        ).pairs
        lines.add({**known, **learn_to_match(encoder, pairs, show_progress=shop.show)})
    learned = next(one for one in lines.lines if known.items() <= one.items())
    late_of(encoder).set(learned["prior"], learned["sharpness"], learned["discount"])
    work = shop.work / plan.folder
    if not (work / f"late-{name}-{length}").is_dir():
        whole = Encoder(work / f"stage-{length}", similarity=LATE)
        whole.head.load_state_dict(encoder.head.state_dict())
        if name == "hybrid-off":
            whole.model.config.far = False
        whole.save(work / f"late-{name}-{length}")


def memory_of(encoder: Encoder, length: int) -> int | None:
    """Bytes that reading a text takes beside the weights, as estimated; None for native pairs."""
    if not length:
        return None
    read = min(length, encoder.max_tokens or length)
    if encoder.windows is None or read <= encoder.windows:
        return encoder.model.memory_for(read)
    special = encoder.tokenizer.num_special_tokens_to_add()
    count: int = -(-(read - special) // (encoder.windows - special))
    return count * encoder.model.memory_for(encoder.windows)  # a text's are read together


def describe_pairs(line: dict[str, Any], made: LongPairs, train: Pairs) -> dict[str, Any]:
    """What the report must know of the pairs of a test, beside their scores."""
    seen = {*train.sentence1, *train.sentence2}
    native = line["construction"] == "native"
    both = zip(made.pairs.sentence1, made.pairs.sentence2, strict=True)
    shared = [a in seen or b in seen for a, b in both] if native else []
    return {
        **{k: line[k] for k in ("construction", "carrier", "eval_length", "split", "pairs")},
        "rows": packed(made.rows, "<u2"),
        "gold": packed(made.pairs.unit_score, "<f2"),
        "places": packed(np.round(made.places * 255), "u1"),
        "shared": packed(shared, "u1"),
    }


class Results:
    """A run's lines, each written when it is known.

    Raises: TwinlineError if the file there is of another version of the grid.
    """

    def __init__(self, file: Path, plan: RunPlan) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = read_lines(file)
        head = {
            "what": "run", "run": plan.key, "identity": plan.identity, "arm": plan.arm.known,
            "kind": plan.arm.name, "pooling": plan.pooling, "seed": plan.seed,
            "equal": plan.equal, "real": plan.arm.real if plan.virtual else None,
            "model": chosen(plan.arm.model), "machine": describe(),
            "date": date.today().isoformat(),
        }  # fmt: skip
        if not self.lines:
            self.lines = [head]
        elif self.lines[0].get("identity") != plan.identity:
            raise other_version(file)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        write_whole(self.file, "".join(json.dumps(one) + "\n" for one in self.lines))

    def has(self, wanted: dict[str, Any]) -> bool:
        """Whether there is a line with these values."""
        return any(all(one.get(k) == v for k, v in wanted.items()) for one in self.lines)


def run_one(plan: RunPlan, shop: Workshop, results: Path) -> None:
    """Train and test one run; a stopped one goes on where it was.

    Every line of its results is written when it is known. The weights of each stage stay under the
    work folder; where they are gone, a stage whose tests are not all there is trained again.
    Raises: TwinlineError if the results there are of another version of the grid, or the run that
        chooses the learning rate is not there.
    """
    work = shop.work / plan.folder
    lines = Results(results / f"{plan.key}.jsonl", plan)
    for stage, length in enumerate(plan.stages):
        folder = work / f"stage-{length}"
        if not (folder / "config.json").is_file():
            student, cost = start_of(plan, stage, shop, work)
            curve: Curve = []
            told: dict[str, float] = {}
            if plan.learns_alone(stage):
                found = work / f"pooling-{length}.work"
                curve = find_stage(plan, stage, student, shop, found)
                if not stage and plan.grid.rates and plan.is_first:  # what the pilots start from
                    student.save(found / "model")
            if plan.steps(stage):
                rate = chosen_rate(plan, shop, work, results, lines)
                trained = work / f"stage-{length}.work"
                own = train_stage(plan, stage, student, shop, trained, rate)
                curve = joined(curve, own)
                told["rate"] = rate
            if plan.finishes(stage):
                own, softened = finish(plan, student, shop, work / "finish.work")
                curve = joined(curve, own)
                if softened is not None:
                    told["softened"] = softened
                if plan.settles(stage):
                    own = settle(plan, student, shop, work / "settle.work", rate)
                    curve = joined(curve, own)
            if not stage and not lines.has({"what": "transfer"}):
                lines.add({"what": "transfer", **cost})
            if not lines.has({"what": "curve", "train_length": length}):
                drawn = (
                    lengths_of(plan, stage) if plan.steps(stage) else found_lengths_of(plan, stage)
                )
                mean = round(drawn.mean)
                lines.add(
                    {"what": "curve", "train_length": length, "mean_length": mean, **told,
                     "points": curve}
                )  # fmt: skip
            student.save(folder)
        left = [one for one in plan.wanted(stage) if not lines.has(one[2])]
        left.sort(key=lambda one: one[1].similarity != LATE)  # which scores cosine, too
        for (name, how), group in groupby(left, key=lambda one: (one[0], one[1].similarity)):
            with reading(plan, name, how, folder, shop) as encoder:
                if how == LATE:
                    match(plan, stage, name, encoder, shop, lines)
                for _, test, key in group:
                    if lines.has(key):
                        continue
                    made, pairs = score(encoder, shop, test, key)
                    add_pairs(results / "pairs.jsonl", describe_pairs(made[0], pairs, shop.train))
                    for line in made:
                        if not lines.has({k: line[k] for k in key}):
                            lines.add(line)
                    print(
                        f"{plan.key} after {length}: {name} {key['split']} {key['construction']} "
                        f"{key['eval_length']} {key['carrier'] or ''} "
                        f"{' '.join(format(line['pearson'], '.4f') for line in made)} "
                        f"({made[0]['seconds']} s)",
                        flush=True,
                    )


def chosen_rate(plan: RunPlan, shop: Workshop, work: Path, results: Path, lines: Results) -> float:
    """The learning rate that is best on validation after a pilot of the arm's first run.

    Raises: TwinlineError if that run is not there.
    """
    grid = plan.grid
    if not grid.rates:
        return grid.train.learning_rate
    if not plan.is_first:
        tried = pilots_of(plan.first, results)
        if not tried:
            raise TwinlineError(
                f"{plan.key} takes the learning rate that {plan.first.key} chooses: run that "
                "before it."
            )
    else:
        for rate in grid.rates:
            if not lines.has({"what": "pilot", "rate": rate}):
                student, _ = start_of(plan, 0, shop, work)
                if plan.learns_alone(0):
                    found = work / f"pooling-{plan.stages[0]}.work" / "model"
                    student = Encoder(found, windows=plan.kind.windows)
                folder = work / f"pilot-{rate:g}.work"
                curve = train_stage(plan, 0, student, shop, folder, rate, steps=grid.pilot)
                lines.add({"what": "pilot", "rate": rate, "pearson": curve[-1]["pearson"]})
        tried = [line for line in lines.lines if line["what"] == "pilot"]
    return float(max(tried, key=lambda line: line["pearson"])["rate"])


def pilots_of(plan: RunPlan, results: Path) -> list[dict[str, Any]]:
    """The pilots in a run's results; none unless every rate has been tried.

    Raises: TwinlineError if its results are of another version of the grid.
    """
    lines = Results(results / f"{plan.key}.jsonl", plan).lines
    tried = [line for line in lines if line["what"] == "pilot"]
    return tried if len(tried) == len(plan.grid.rates) else []


def start_of(
    plan: RunPlan, stage: int, shop: Workshop, work: Path
) -> tuple[Encoder, dict[str, float]]:
    """What a stage starts from: the stage before, or the transferred model with its costs."""
    if stage:
        before = work / f"stage-{plan.stages[stage - 1]}"
        return Encoder(before, windows=plan.kind.windows), {}
    return shop.start(plan)


def missing(plan: RunPlan, file: Path) -> list[dict[str, Any]] | None:
    """What names each line that the grid asks of a run and its results have not, in the order in
    which they are made; None if it is not begun.

    Raises: TwinlineError if its results are of another version of the grid.
    """
    if not file.is_file():
        return None
    lines, asked = Results(file, plan), []
    for stage, length in enumerate(plan.stages):
        asked.append({"what": "curve", "train_length": length})
        asked.extend(key for _, _, key in plan.wanted(stage))
    return [key for key in asked if not lines.has(key)]


def complete(plan: RunPlan, file: Path) -> bool:
    """Whether a run has all that the grid asks of it; raises as ``missing``."""
    return missing(plan, file) == []


def run_yardstick(grid: Grid, shop: Workshop, results: Path) -> None:
    """The softmax student on the unmodified pairs: what retention is counted against.

    Raises: TwinlineError if the results there are of another teacher.
    """
    file = results / "softmax-native.jsonl"
    lines = read_lines(file)
    if lines and lines[0].get("identity") != grid.teacher_identity:
        raise other_version(file)
    if lines:
        return
    head = {
        "what": "run", "run": "softmax-native", "identity": grid.teacher_identity,
        "arm": NATIVE, "pooling": "mean", "seed": 0, "machine": describe(),
        "date": date.today().isoformat(),
    }  # fmt: skip
    made = [head]
    encoder, test = shop.softmax(), EvalOptions("native")
    for split in ("validation", "test"):
        key = {
            "what": "test", "arm": NATIVE, "train_length": 0, "split": split,
            "construction": "native", "carrier": None, "eval_length": 0,
        }  # fmt: skip
        lines, pairs = score(encoder, shop, test, key)
        add_pairs(results / "pairs.jsonl", describe_pairs(lines[0], pairs, shop.train))
        made += lines
    write_whole(file, "".join(json.dumps(one) + "\n" for one in made))


def calibration(shop: Workshop) -> list[str]:
    """Long texts of the training split, for int8."""
    carrier = shop.carrier(shop.grid.carrier, "train")
    builder = Builder(shop.train, "context", shop.tokenizer, carrier, SEED)
    rows = range(min(CALIBRATION, len(shop.train)))
    return [builder.pair(row, CALIBRATED).text1 for row in rows]


def add_pairs(file: Path, line: dict[str, Any]) -> None:
    """Describe a test's pairs, once; several runs at a time may do so.

    Raises: TwinlineError if other pairs are described there by the same names.
    """
    keys = ("construction", "carrier", "eval_length", "split", "pairs")
    lock = fingerprint([str(file.resolve())])
    with FileLock(Path(gettempdir()) / f"twinline-{lock}.lock"):
        lines = read_lines(file)
        known = next((one for one in lines if all(one[k] == line[k] for k in keys)), None)
        if known is None:
            lines.append(line)
            write_whole(file, "".join(json.dumps(one) + "\n" for one in lines))
        elif known["rows"] != line["rows"]:
            raise TwinlineError(
                f"{file} has other {line['pairs']} pairs of {line['construction']}: give the test "
                "another number of pairs."
            )
