"""Every option, declared once: the Python arguments, the recipes' YAML and the command line.

A recipe file (``recipe``) holds the same names; the command line overrides it. Nothing here imports
anything heavy, so that ``twinline --help`` is instant.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .arguments import check_fields, is_number, plain
from .errors import TwinlineError


def at_least(options: object, least: float, *names: str) -> None:
    """Refuse options that are no numbers, or below ``least``, by name."""
    for name in names:
        value = plain(getattr(options, name))
        if not is_number(value) or value < least:
            raise TwinlineError(f"{name} must be at least {least}, not {value!r:.60}.")


def above_zero(options: object, *names: str) -> None:
    """Refuse options that are not above 0, by name."""
    for name in names:
        if not getattr(options, name) > 0:
            raise TwinlineError(f"{name} must be above 0, not {getattr(options, name)}.")


def check_seed(seed: int) -> None:
    """Refuse a seed that leaves no room for the step's number beside it."""
    if seed >= 2**31:
        raise TwinlineError(f"seed must be below {2**31}, not {seed}.")


def share(options: object, *names: str) -> None:
    """Refuse options that are no share between 0 and 1, by name."""
    for name in names:
        value = plain(getattr(options, name))
        if not is_number(value) or not 0 <= value <= 1:
            raise TwinlineError(f"{name} is a share, 0 to 1, not {value!r:.60}.")


@dataclass(frozen=True)
class Options:
    """Options that are of their types: every class of them checks its own numbers after that."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class AttentionOptions(Options):
    """How tokens mix; options that a kind has no use for are ignored by it."""

    feature_map: str = "gated"
    """What stands for exp(q·k): hedgehog, gated, elu, relu or exp."""
    feature_dim: int | None = None
    """Learned directions a head; None means head_dim. Signed maps make two features of each."""
    sharpen: bool = False
    """gated: let the gains of keys grow with the logarithm of the text's length, as is learned;
    hybrid: let far keys weigh the less, likewise."""
    sentences: bool = False
    """linear and hybrid: keep sentences apart. A token's own sentence, or block_size tokens of a
    longer one, is read by itself, by softmax in hybrid; the rest of the text weighs what is
    learned."""
    anchors: bool = False
    """With sentences: each also reads the text's first and last token and counts its positions
    anew, as a text of one sentence would."""
    longest_sentence: int = 0
    """With sentences: tokens, punctuation that ends or closes one not counted, behind which another
    one begins where none has ended, as in a heading over and over; 0: none does."""
    block_size: int = 128
    """hybrid: tokens in a softmax block. With sentences: most tokens in one. lightning: tokens in a
    tile (speed only)."""
    far: bool = True
    """hybrid: whether the linear branch reads what lies outside a token's block; False: nothing
    does."""
    neighbours: int = 0
    """hybrid: how many blocks on each side are read by softmax too."""
    decay: float = 0.02
    """lightning: scale of the slopes at the start."""
    learn_decay: bool = True
    """lightning: whether slopes are trained; the slowest head keeps slope 0 either way."""
    normalisation: Literal["denominator", "rms"] = "denominator"
    """lightning: convex combinations, or RMS norm per head (for training from scratch)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "block_size")
        at_least(self, 0, "neighbours", "decay", "longest_sentence")
        if self.feature_dim is not None:
            at_least(self, 1, "feature_dim")
        if self.anchors and not self.sentences:
            raise TwinlineError(
                "anchors stand beside sentences that are kept apart: set sentences."
            )
        if self.longest_sentence and not self.sentences:
            raise TwinlineError(
                f"longest_sentence={self.longest_sentence} cuts sentences that are kept apart: set "
                "sentences."
            )
        if self.sentences and self.neighbours:
            raise TwinlineError(
                f"neighbours={self.neighbours} does not go with sentences, whose blocks are apart."
            )


@dataclass(frozen=True)
class ModelOptions(AttentionOptions):
    """What a converted model is, beside its pretrained weights."""

    attention: str = "linear"
    """softmax, linear, lightning or hybrid."""
    local: int = 0
    """Tokens, an odd number, over which depthwise convolutions before and beside the attention mix
    neighbours; they start without effect. 0: none."""
    position_rule: Literal["tiled", "interpolated"] = "tiled"
    """Beyond the position table: start over, or squeeze the text into it."""
    position_period: int | None = None
    """Positions used of the table; None: all."""
    pooling: str | None = None
    """mean, cls, top4, latent, or sentence (with sentences: true); None: as the base model does,
    else mean."""
    words_only: bool = False
    """Pooling latent or sentence, with sentences: special tokens have no part in it. Only a text's
    first and last sentence have any."""

    def given(self) -> dict[str, Any]:
        """The options as keyword arguments of ``convert``."""
        chosen = {option.name: getattr(self, option.name) for option in fields(ModelOptions)}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class LoopOptions(Options):
    """How a training loop runs; what it learns is the caller's."""

    steps: int = 1000
    """Optimiser steps in all."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["linear", "constant"] = "linear"
    """What the rate does after the warm-up: fall to 0, or stay until the cooldown."""
    cooldown: float = 0.0
    """Share of the steps, at the end, over which a constant rate falls to 0."""
    weight_decay: float = 0.01
    """AdamW's decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """tf32: fp32 whose products a GPU makes in TF32. bf16 is autocast: weights and optimiser stay
    fp32."""
    workers: int = 0
    """Processes that make batches ahead, while a GPU computes; 0: none. No weight depends on it."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only after the last."""
    patience: int = 0
    """Stop after so many evaluations without a new best; 0: never."""
    keep_best: bool = True
    """End with the weights of the best evaluation rather than the last."""
    checkpoint_every: int = 100
    """Steps between checkpoints, when the run has a folder; slow steps have one every two minutes
    too."""
    seed: int = 0
    """Draws the order of the data and the dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "steps", "accumulate", "checkpoint_every")
        at_least(self, 0, "evaluate_every", "patience", "weight_decay", "seed", "workers")
        check_seed(self.seed)
        share(self, "warmup", "cooldown")
        above_zero(self, "learning_rate", "max_grad_norm")
        if self.patience and not self.evaluate_every:
            raise TwinlineError("patience needs evaluate_every: without evaluations nothing stops.")


@dataclass(frozen=True)
class TransferOptions(Options):
    """How attention transfer runs."""

    steps: int = 600
    """Optimiser steps; 0: no transfer."""
    texts: int = 64
    """Texts a step."""
    learning_rate: float = 1e-2
    """Peak learning rate of the new parameters."""
    stretches: float | None = None
    """Share of the steps that read texts joined to stretch_tokens; None: half for a hybrid whose
    texts are mostly shorter than two blocks, which teach its linear branch nothing; else none."""
    stretch_tokens: int = 512
    """Tokens in a joined text; never above the position table."""
    alone: float = 0.3
    """hybrid: share of the steps, at the start, that train the linear branch by itself."""
    mass: float = 0.1
    """hybrid: weight of the squared error of the log-odds of attending outside the block."""
    checkpoint_every: int = 100
    """Steps between checkpoints, when a folder is given; slow steps have one every two minutes
    too."""
    seed: int = 0
    """Draws the order of the texts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "steps", "mass", "seed")
        check_seed(self.seed)
        at_least(self, 1, "texts", "stretch_tokens", "checkpoint_every")
        share(self, "alone")
        if self.stretches is not None:
            share(self, "stretches")


@dataclass(frozen=True)
class TrainOptions(Options):
    """What fine-tuning a teacher and distilling a student have in common."""

    epochs: float = 2.0
    """Passes over the training pairs (labelled and extra ones together)."""
    pairs: int = 32
    """Pairs a step, before accumulate."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    freeze_words: bool = False
    """Leave the word embeddings as they are: half of a small model, and most of its optimiser."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["linear", "constant"] = "linear"
    """What the rate does after the warm-up: fall to 0, or stay until the cooldown."""
    cooldown: float = 0.0
    """Share of the steps, at the end, over which a constant rate falls to 0."""
    weight_decay: float = 0.01
    """AdamW's decay, on matrices only."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """tf32: fp32 whose products a GPU makes in TF32. bf16 is autocast."""
    workers: int = 0
    """Processes that make batches ahead, while a GPU computes; 0: none. No weight depends on it."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only at the end."""
    patience: int = 0
    """Stop after so many evaluations without a new best; 0: never."""
    keep_best: bool = True
    """End with the weights of the best evaluation rather than the last."""
    checkpoint_every: int = 100
    """Steps between checkpoints; slow steps have one every two minutes too."""
    seed: int = 0
    """Draws the order of the data, dropout and new weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "pairs")
        above_zero(self, "epochs")
        self.loop(1)  # refuses what the loop would

    def loop(self, steps: int) -> LoopOptions:
        """The loop's options: what both have under the same name."""
        names = {f.name for f in fields(LoopOptions)} & {f.name for f in fields(self)}
        return LoopOptions(steps=steps, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class TeachOptions(TrainOptions):
    """How a cross-encoder is fine-tuned."""

    epochs: float = 4.0
    """Passes over the training pairs."""
    learning_rate: float = 1e-4
    """Peak learning rate."""


@dataclass(frozen=True)
class DistillOptions(TrainOptions):
    """How a student is trained."""

    alpha: float = 0.5
    """Weight of the teacher's scores against the labels: 0 is no teacher, 1 no labels."""
    match: float = 0.0
    """Weight of the squared distance between the student's unit vectors and a twin's."""
    attend: float = 0.0
    """Long pairs, a learned pooling: weight of the negative log of the share of its last layer's
    weights that lies on the sentence that counts."""
    states: float = 0.0
    """Long pairs: weight of the relative squared distance between the states of the sentence's
    tokens in the long text and the twin's of the sentence alone."""
    gather: float = 0.0
    """Long pairs, linear and hybrid with gated maps: weight of the negative log of the share of the
    keys' gains, in the upper half of the layers, that lies on the sentence that counts."""
    added_rate: float = 1.0
    """Learning rate of what conversion added, and of a learned head, as a multiple."""
    group: bool | None = None
    """Put pairs with the same first text into one batch, where it is read once; None: if they have
    two pairs or more on average, as a query with its candidates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "alpha")
        at_least(self, 0, "match", "attend", "states", "gather")
        above_zero(self, "added_rate")


@dataclass(frozen=True)
class FindOptions(Options):
    """How a pooling by the sentence learns alone which one of a text counts."""

    pairs: int = 2000
    """Training pairs, whose texts the student reads once with some prose about them."""
    least: int = 64
    """Tokens of the shortest of these texts."""
    greatest: int = 256
    """Tokens of the longest; what is longer is made of kept sentences."""
    prose: int = 400_000
    """Tokens of prose that it reads once, to make texts longer."""
    texts: int = 48
    """Texts a step."""
    inside: int = 1200
    """Steps before, in which it learns what counts within a sentence."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    mean: float = 0.6
    """Mean length of its texts, between a stage's least (0) and greatest (1)."""
    edge: float = 0.4
    """Alpha of the Beta by which they are drawn (see ``LengthOptions``)."""
    workers: int = 0
    """Processes that make batches ahead, while a GPU computes; 0: none. No weight depends on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "pairs", "texts")
        at_least(self, 16, "least")
        at_least(self, 0, "prose", "inside", "workers")
        if self.greatest < self.least:
            raise TwinlineError(
                f"greatest must be at least least ({self.least}), not {self.greatest}."
            )
        above_zero(self, "learning_rate")
        LengthOptions(mean=self.mean, edge=self.edge)  # refuses what makes no U


@dataclass(frozen=True)
class LengthOptions(Options):
    """Which lengths long pairs have in training: short ones mostly, longer ones by stages.

    A step of a stage draws ``L = least + s (greatest - least)`` with ``s`` from a U-shaped Beta
    (arXiv 2511.06077, sec. 3.4): mostly one of the two ends.
    """

    least: int = 64
    """Shortest text, in tokens."""
    greatest: tuple[int, ...] = (128, 512, 2048)
    """Longest text of each stage; every stage starts from the weights of the one before."""
    shares: tuple[float, ...] = ()
    """Share of the steps that each stage takes; none given: equal ones."""
    mean: float = 0.3
    """Mean length of a stage's texts, between least (0) and greatest (1)."""
    edge: float = 0.2
    """Alpha of the Beta; the smaller, the fewer lengths in between."""
    equal: Literal["pairs", "tokens"] = "pairs"
    """What steps have in common: their pairs, or their tokens (the longer, the fewer pairs: as many
    as there are tokens in that many pairs of the shortest texts)."""
    real: int | None = None
    """Longest text that is really read. A longer one is virtual: the texts of a step lend one
    another their prose (attention.Lent). None: every text is real."""
    native: float = 0.0
    """Share of the steps that read the short pairs as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 16, "least")
        rising = [self.least, *self.greatest]
        if not self.greatest or rising != sorted(rising):
            raise TwinlineError(
                f"greatest must rise from least ({self.least}) stage by stage, not {self.greatest}."
            )
        if self.shares and (
            len(self.shares) != len(self.greatest)
            or min(self.shares) <= 0
            or abs(sum(self.shares) - 1) > 1e-6
        ):
            raise TwinlineError(
                f"shares must be one positive share for each of {len(self.greatest)} stages, 1 in "
                f"all, not {self.shares}."
            )
        if not 0 < self.mean < 1:
            raise TwinlineError(f"mean must lie between 0 and 1, not {self.mean}.")
        other = self.edge * (1 - self.mean) / self.mean
        if not 0 < self.edge < 1 or other >= 1:
            raise TwinlineError(
                f"edge={self.edge} with mean={self.mean} makes no U-shaped Beta (alpha "
                f"{self.edge:g}, beta {other:g}, both must lie between 0 and 1): lower edge."
            )
        share(self, "native")
        if self.real is not None and self.real < self.least:
            raise TwinlineError(f"real must be at least least ({self.least}), not {self.real}.")


@dataclass(frozen=True)
class RetrievalOptions(TrainOptions):
    """How a student learns which long document a query is about."""

    pairs: int = 8
    """Queries a step, each with its own document: the others' are its negatives."""
    epochs: float = 4.0
    """Passes over the documents, each time with another of their queries."""
    lengths: LengthOptions = field(
        default_factory=lambda: LengthOptions(least=256, greatest=(2048,), mean=0.4, edge=0.3)
    )
    """Tokens of the window of a document that is read; a stage ends where its share does."""
    rule: Literal["prefix", "suffix", "random", "mixed"] = "mixed"
    """Where the window lies (arXiv 2511.06077, sec. 3.4): mixed draws one of the three a step."""
    temperature: float = 0.05
    """What scores are divided by before the softmax over a batch."""
    listwise: float = 0.0
    """Weight of the teacher's ranking of the batch's documents."""
    added_rate: float = 1.0
    """Learning rate of what conversion added, and of a learned head, as a multiple."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "pairs")
        at_least(self, 0, "listwise")
        above_zero(self, "temperature", "added_rate")
