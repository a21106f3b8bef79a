"""The grid of a study: one YAML file, checked before anything starts, and the runs it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..data.carriers import CARRIERS
from ..data.long import CONSTRUCTIONS
from ..data.pairs import TASKS
from ..data.texts import DOCUMENTS
from ..errors import TwinlineError
from ..hashing import fingerprint
from ..options import (
    DistillOptions,
    FindOptions,
    LengthOptions,
    ModelOptions,
    TeachOptions,
    TransferOptions,
    at_least,
)
from ..recipe import chosen, read_recipe
from .arms import ARMS, Kind
from .checks import SHORTEST, choice, numbers, plain, rising, source

POOLINGS = ("latent", "sentence", "mean")
LATE = "late"
"""The similarity that reads sentences (``similarity.LateInteraction``)."""
TAUGHT = tuple(name for name in CONSTRUCTIONS if name != "composite")
"""What can be trained on: a composite's score is not its first pair's."""
STUDIED = ("stsb", "mrpc", "builtin")
"""Data with scores in all three splits."""
CELL = ("arm", "train_length", "split", "construction", "carrier", "eval_length")
"""What names a score within a run."""
NATIVE = "softmax-native"
"""The softmax student on the unmodified pairs: what retention is counted against."""


@dataclass(frozen=True)
class ArmOptions:
    """One arm of a study."""

    name: str = "linear"
    """softmax-full, softmax-windows512, linear, hybrid or lightning."""
    seeds: tuple[int, ...] = (0,)
    """Draws of data order, lengths and dropout, the same for every arm; of prose and places too,
    where arms really read the same length."""
    poolings: tuple[str, ...] = ("latent", "mean")
    """latent, sentence, mean."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Feature map, block size and so on; attention and pooling are the arm's."""
    label: str = ""
    """Its name in results, where it is a variant (an ablation) of the arm."""
    real: int = 256
    """Longest text that is really read in training; a longer one is virtual (where that can be)."""
    virtual: bool = True
    """False: every text of training is read whole."""
    equal: Literal["pairs", "tokens"] | None = None
    """What steps have in common, if not what the study's lengths say."""
    train_lengths: tuple[int, ...] = ()
    """Stages of this arm; none given: the study's."""
    steps: tuple[int, ...] = ()
    """Steps of each of its stages; none given: the study's. 0: the encoder stays as it is, and
    pooling by the sentence learns alone."""
    pooling_steps: tuple[int, ...] = ()
    """Likewise of its pooling alone."""

    def __post_init__(self) -> None:
        choice("an arm's name", (self.name,), ARMS)
        choice("poolings", self.poolings, POOLINGS)
        plain("an arm's label", self.label)
        if self.label in {*ARMS, *(name for kind in ARMS.values() for name in kind.also)}:
            raise TwinlineError(f"The label {self.label!r} is an arm's own name: give another.")
        if self.model.attention != ModelOptions().attention or self.model.pooling:
            raise TwinlineError("A model's attention and pooling are the arm's name and poolings.")
        at_least(self, SHORTEST, "real")
        rising("train_lengths", self.train_lengths)
        numbers("seeds", self.seeds, int)
        numbers("an arm's steps", self.steps, int)
        numbers("an arm's pooling_steps", self.pooling_steps, int)
        if 0 in self.steps and self.poolings != ("sentence",):
            raise TwinlineError(
                f"The arm {self.name} has a stage of 0 steps, and only pooling by the sentence "
                "learns without the encoder: give poolings [sentence]."
            )
        if self.model.words_only and ("mean" in self.poolings or not self.model.sentences):
            raise TwinlineError(
                f"The arm {self.name} has words_only, which is for pooling by the sentence: set "
                "its model's sentences to true, and give poolings latent or sentence."
            )
        if "sentence" in self.poolings and not self.model.sentences:
            raise TwinlineError(
                f"The arm {self.name} is pooled by the sentence: set its model's sentences to true."
            )
        if not self.seeds or not self.poolings:
            raise TwinlineError(f"The arm {self.name} needs at least one seed and one pooling.")

    @property
    def known(self) -> str:
        """What results call it."""
        return self.label or self.name

    @property
    def read_as(self) -> tuple[str, ...]:
        """Its name in results, and those of the other ways to read its weights."""
        return (self.known, *(() if self.label else ARMS[self.name].also))


@dataclass(frozen=True)
class FinishOptions:
    """What follows the last stage of pooling by the sentence: it learns while the encoder stays as
    it is, and then both settle."""

    steps: int = 0
    """In which the pooling learns alone once more; 0: nothing follows."""
    find: FindOptions = field(default_factory=FindOptions)
    """How."""
    constructions: tuple[str, ...] = ()
    """From which; none given: the study's."""
    sources: tuple[str, ...] = ()
    """Data whose texts (the second of each training pair) are hidden in prose too: what is looked
    for is told by more than the study's own sentences."""
    planted: int = 2000
    """Pairs that are made of each of them; their scores are never known."""
    keep: float = 0.0
    """Share of the pooling's weights that is taken from before (arXiv 2109.01903)."""
    soften: tuple[float, ...] = ()
    """Factors of the pooling's sharpness, of which every run takes the best on validation
    (temperature scaling, arXiv 1706.04599); none given: it stays."""
    pairs: int = 200
    """Validation pairs of ``context``, at the last stage's length, on which that is chosen; and as
    many others on which late interaction learns its numbers."""
    settle: int = 0
    """Steps behind all this in which the whole student learns once more, as in the last stage but
    from these constructions; 0: none."""

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")
        at_least(self, 0, "settle")
        at_least(self, 1, "planted")
        at_least(self, 2, "pairs")
        if not 0 <= self.keep < 1:
            raise TwinlineError(f"keep must be at least 0 and below 1, not {self.keep}.")
        numbers("soften", self.soften, float)
        choice("constructions that finish a run", tuple(set(self.constructions)), TAUGHT)
        for name in self.sources:
            source("sources", name, (*TASKS, "builtin"))
        given = self.constructions or self.sources or self.soften or self.keep or self.settle
        if given and not self.steps:
            raise TwinlineError("What finishes a run needs steps, in which the pooling learns.")


@dataclass(frozen=True)
class EvalOptions:
    """One set of long pairs that every finished stage, or only the last, is scored on."""

    construction: str = "context"
    """context, keyed, shared, repeat, composite, or native: the pairs as they are."""
    lengths: tuple[int, ...] = (0,)
    """Tokens of each text; 0 for native."""
    carrier: str | None = None
    """Prose, if not the study's: novels, qmsum, squality, qnli, or a file."""
    pairs: int | None = None
    """So many fixed pairs of the split; None: all."""
    last: bool = True
    """Only after the last stage."""
    train_lengths: tuple[int, ...] = ()
    """Instead only after the stages that train up to these lengths: what a student reads that has
    seen no longer text."""
    arms: tuple[str, ...] = ()
    """Only these arms; none given: all."""
    seeds: tuple[int, ...] = ()
    """Only runs with these seeds; none given: all."""
    poolings: tuple[str, ...] = ()
    """Only runs with these poolings; none given: all."""
    similarity: Literal["cosine", "late"] = "cosine"
    """How two texts make a score; late is scored beside cosine, with one reading for both, and only
    of runs with pooling by the sentence."""

    def __post_init__(self) -> None:
        choice("construction", (self.construction,), (*CONSTRUCTIONS, "native"))
        least = 0 if self.construction == "native" else SHORTEST
        numbers("a test's lengths", self.lengths, int, least)
        rising("a test's train_lengths", self.train_lengths)
        numbers("a test's pairs", (2 if self.pairs is None else self.pairs,), int, 2)
        if self.construction == "native" and self.lengths != (0,):
            raise TwinlineError("native pairs have lengths [0]: leave lengths out.")


@dataclass(frozen=True)
class Grid:
    """A study: kind x training length x evaluation length x construction x pooling x seed."""

    name: str = "study"
    """Names its results."""
    base: str = "all-MiniLM-L6-v2"
    """The encoder that every arm starts from."""
    data: str = "stsb"
    """The pairs: stsb, mrpc or builtin, which have scores in all three splits."""
    carrier: str = "novels"
    """The prose that long pairs are made of."""
    train_carriers: tuple[str, ...] = ()
    """What prose is trained on: every step draws one of them; none given: the carrier. Curves and
    tests are on the carrier's own splits."""
    constructions: tuple[str, ...] = ("context",)
    """What is trained on: every step draws one of them. Curves are of the first."""
    teach: TeachOptions = field(default_factory=TeachOptions)
    """The teacher's cross-encoder."""
    twin: DistillOptions = field(default_factory=DistillOptions)
    """The softmax twin on the labels: the teacher's other half."""
    softmax: DistillOptions = field(default_factory=DistillOptions)
    """The softmax student of both: the native yardstick, and what match draws vectors to."""
    transfer: TransferOptions = field(default_factory=TransferOptions)
    """Attention transfer of every kind that has any."""
    transfer_texts: tuple[str, ...] = ("stsb",)
    """What it reads."""
    train: DistillOptions = field(default_factory=DistillOptions)
    """Every stage's training; its epochs and evaluate_every are not used."""
    lengths: LengthOptions = field(default_factory=LengthOptions)
    """How lengths are drawn; greatest and real are set by stage and arm."""
    train_lengths: tuple[int, ...] = (128, 512, 2048)
    """The longest texts of the stages, each warm-started from the one before."""
    steps: tuple[int, ...] = (300, 300, 300)
    """Steps of each stage."""
    find: FindOptions = field(default_factory=FindOptions)
    """How a pooling by the sentence learns alone to find the one that counts."""
    pooling_steps: tuple[int, ...] = ()
    """Steps before those of each stage in which it does; none given: none."""
    finish: FinishOptions = field(default_factory=FinishOptions)
    """What follows the last stage of a pooling by the sentence."""
    rates: tuple[float, ...] = ()
    """Learning rates of which each arm's first run, of its first seed and pooling, takes the best
    for all of them; none given: that of train."""
    pilot: int = 0
    """Steps of the first stage after which it is chosen, on validation."""
    curve_points: tuple[int, ...] = (8, 5, 3)
    """Evaluations of each stage's curve, beside the one at its start."""
    curve_pairs: int = 100
    """Fixed validation pairs of the longest length of a stage, for its curve."""
    dtype: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    """Numbers that tests are scored with (for int8 a GPU takes float32 multiplied in TF32); what is
    scored already is not scored again in others."""
    arms: tuple[ArmOptions, ...] = (ArmOptions(),)
    """What is compared."""
    validation: tuple[EvalOptions, ...] = ()
    """What things are chosen on."""
    test: tuple[EvalOptions, ...] = ()
    """What is reported."""

    def __post_init__(self) -> None:
        plain("name", self.name)
        choice("constructions", tuple(set(self.constructions)), TAUGHT)
        if not self.constructions:
            raise TwinlineError(f"constructions must name one of {', '.join(TAUGHT)}.")
        at_least(self, 2, "curve_pairs")
        if not self.arms:
            raise TwinlineError("arms must name at least one arm.")
        rising("train_lengths", self.train_lengths)
        numbers("rates", self.rates, float)
        for arm in self.arms:
            if len(arm.train_lengths) > len(self.train_lengths):
                raise TwinlineError(
                    f"The arm {arm.known} has more train_lengths than the study's "
                    f"{len(self.train_lengths)}, whose steps its stages take."
                )
        for name, least in (("steps", 1), ("curve_points", 1), ("pooling_steps", 0)):
            given = getattr(self, name)
            numbers(name, given, int, least)
            if (given or least) and len(given) != len(self.train_lengths):
                raise TwinlineError(
                    f"{name} must be one number for each of {len(self.train_lengths)} "
                    f"train_lengths, not {given}."
                )
        replace(self.lengths, greatest=self.train_lengths)  # refuses what does not rise
        for run in self.runs():
            for name in ("steps", "pooling_steps"):
                if (given := getattr(run.arm, name)) and len(given) != len(run.stages):
                    raise TwinlineError(
                        f"The arm {run.arm.known} needs one number of {name} for each of "
                        f"{len(run.stages)} train_lengths, not {given}."
                    )
            for stage, length in enumerate(run.stages):
                if not run.steps(stage) and not run.learns_alone(stage):
                    raise TwinlineError(
                        f"The arm {run.arm.known} has neither steps nor pooling_steps in its stage "
                        f"of {length} tokens, and learns nothing there."
                    )
        keys = [run.key for run in self.runs()]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise TwinlineError(f"arms name the run {twice[0]} twice: give one a label.")
        known = tuple(dict.fromkeys(name for arm in self.arms for name in arm.read_as))
        seeds = tuple(dict.fromkeys(seed for arm in self.arms for seed in arm.seeds))
        poolings = tuple(dict.fromkeys(pooling for arm in self.arms for pooling in arm.poolings))
        choice("data", (self.data,), STUDIED)
        if self.train.accumulate != 1:
            raise TwinlineError("train.accumulate must be 1: steps are what stages are made of.")
        source("carrier", self.carrier, CARRIERS)
        for carrier in self.train_carriers:
            source("train_carriers", carrier, CARRIERS)
        for texts in self.transfer_texts:
            source("transfer_texts", texts, (*TASKS, *DOCUMENTS, "builtin"))
        trained = tuple(dict.fromkeys(n for run in self.runs() for n in run.stages))
        for test in (*self.validation, *self.test):
            choice("a test's arms", test.arms, known)
            choice("a test's seeds", test.seeds, seeds)
            choice("a test's poolings", test.poolings, poolings)
            choice("a test's train_lengths", test.train_lengths, trained)
            if test.carrier is not None:
                source("a test's carrier", test.carrier, CARRIERS)
        for plan in self.runs():
            asked: dict[tuple[Any, ...], int | None] = {}
            wanted = [one for stage in range(len(plan.stages)) for one in plan.wanted(stage)]
            for name, test, key in wanted:
                before = asked.setdefault(tuple(key[k] for k in CELL), test.pairs)
                if before != test.pairs:
                    raise TwinlineError(
                        f"{name}, seed {plan.seed}, is asked twice for {key['construction']} of "
                        f"{key['eval_length']:,} tokens in {key['split']}, of {before or 'all'} "
                        f"and of {test.pairs or 'all'} pairs: give one number."
                    )
        at_least(self, 0, "pilot")
        if self.rates and not self.pilot:
            raise TwinlineError("rates are chosen from by pilots: set pilot to their steps.")
        if 0 in self.rates:
            raise TwinlineError("rates must be above 0.")

    def runs(self) -> Iterator[RunPlan]:
        """Every run, first seeds of all arms first, so that a stopped study compares something."""
        most = max(len(arm.seeds) for arm in self.arms)
        for place in range(most):
            for pooling in POOLINGS:
                for arm in self.arms:
                    if pooling in arm.poolings and place < len(arm.seeds):
                        yield RunPlan(self, arm, pooling, arm.seeds[place])

    @property
    def teacher_identity(self) -> str:
        """What the teacher and the softmax student depend on."""
        trained = [sorted(chosen(o).items()) for o in (self.teach, self.twin, self.softmax)]
        return fingerprint(map(str, (self.base, self.data, *trained)))[:8]


@dataclass(frozen=True)
class RunPlan:
    """One run: an arm with a pooling and a seed, through all stages, and all its tests."""

    grid: Grid
    arm: ArmOptions
    pooling: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.arm.known}-{self.pooling}-{self.seed}"

    @property
    def first(self) -> RunPlan:
        """The arm's run that chooses the learning rate for all of them."""
        pooling = next(p for p in POOLINGS if p in self.arm.poolings)
        return replace(self, pooling=pooling, seed=self.arm.seeds[0])

    @property
    def is_first(self) -> bool:
        return self.key == self.first.key

    @property
    def kind(self) -> Kind:
        return ARMS[self.arm.name]

    @property
    def virtual(self) -> bool:
        """Whether long texts of training may be virtual."""
        return self.kind.virtual and self.arm.virtual

    @property
    def stages(self) -> tuple[int, ...]:
        return self.arm.train_lengths or self.grid.train_lengths

    @property
    def model(self) -> ModelOptions:
        return replace(self.arm.model, attention=self.kind.attention, pooling=self.pooling)

    @property
    def equal(self) -> Literal["pairs", "tokens"]:
        """What the steps of a stage have in common."""
        return self.arm.equal or self.grid.lengths.equal

    def steps(self, stage: int) -> int:
        """Steps of a stage in which the whole encoder learns."""
        return (self.arm.steps or self.grid.steps)[stage]

    def pooling_steps(self, stage: int) -> int:
        """Steps before those in which its pooling learns alone."""
        steps = self.arm.pooling_steps or self.grid.pooling_steps
        return steps[stage] if steps and self.pooling == "sentence" else 0

    def learns_alone(self, stage: int) -> bool:
        return self.pooling_steps(stage) > 0

    def finishes(self, stage: int) -> bool:
        """Whether something follows the stage."""
        last = stage == len(self.stages) - 1
        return last and self.pooling == "sentence" and self.grid.finish.steps > 0

    def settles(self, stage: int) -> bool:
        """Whether its encoder learns once more behind that: one that has never learned stays."""
        return self.finishes(stage) and self.grid.finish.settle > 0 and self.steps(stage) > 0

    @property
    def identity(self) -> str:
        """What the run's weights depend on; results of another are refused, not mixed.

        Tests are not in it: one that is added is scored, and what is known stays known.
        """
        grid, arm = chosen(self.grid), chosen(self.arm)
        for name in ("name", "arms", "validation", "test", "dtype"):
            grid.pop(name, None)
        for name in ("seeds", "poolings", "label"):
            arm.pop(name, None)
        if self.pooling != "sentence":
            for name in ("find", "pooling_steps", "finish"):
                grid.pop(name, None)
        own = (sorted(grid.items()), sorted(arm.items()), self.pooling, self.seed)
        return fingerprint(map(str, own))[:12]

    @property
    def folder(self) -> str:
        """Of what it trains, below the work folder."""
        return f"{self.key}-{self.identity}"

    def tests(self, stage: int) -> Iterator[tuple[str, str, EvalOptions]]:
        """Split, arm (its own, or one that reads its weights otherwise) and test after a stage."""
        length, last = self.stages[stage], stage == len(self.stages) - 1
        for split, tests in (("validation", self.grid.validation), ("test", self.grid.test)):
            for test in tests:
                others = (test.seeds and self.seed not in test.seeds) or (
                    test.poolings and self.pooling not in test.poolings
                )
                others = others or (test.similarity == LATE and self.pooling != "sentence")
                now = length in test.train_lengths if test.train_lengths else last or not test.last
                if not now or others:
                    continue
                for name in self.arm.read_as:
                    if not test.arms or name in test.arms:
                        yield split, name, test

    def wanted(self, stage: int) -> list[tuple[str, EvalOptions, dict[str, Any]]]:
        """Every single score after a stage: arm, test, and what names its line of results."""
        return [
            (
                name,
                test,
                {
                    "what": "test",
                    "arm": name,
                    "train_length": self.stages[stage],
                    "split": split,
                    "construction": test.construction,
                    "carrier": (test.carrier or self.grid.carrier) if length else None,
                    "eval_length": length,
                    "asked": test.pairs,
                    # None is cosine: as results tell it that were made before there was another.
                    "similarity": LATE if test.similarity == LATE else None,
                },
            )
            for split, name, test in self.tests(stage)
            for length in test.lengths
        ]


def read_grid(path: str | Path) -> Grid:
    """The grid in a YAML file.

    Raises: TwinlineError naming the key and what is allowed.
    """
    return read_recipe(Grid, path)
