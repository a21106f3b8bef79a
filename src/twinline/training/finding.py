"""A pooling by the sentence learns alone which one of a text counts, from sentences read once.

What such a pooling (``bysentence``) weighs sentences by is their mean states alone, and with the
encoder left as it is these stay what they are. So a student reads short texts and stretches of
prose a single time, and thousands of long texts are then made of what it kept: a short text whose
gaps are filled with prose of the same document. A step runs no encoder.
What a sentence's states owe to the far rest of its text is that of the short one: an approximation,
of training alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batching import budget_batches, pad
from ..bysentence import SentenceAttention, SentencePooling
from ..data import Pairs
from ..data.long import Builder, TooLongError
from ..encoder import Encoder
from ..errors import TwinlineError
from ..hashing import fingerprint
from ..loop import Batch, Run, deciding, held, train
from ..options import FindOptions, LoopOptions
from ..progress import Progress
from ..statistics import UndefinedCorrelation, pearson
from ..stca import Sentences
from ..windows import averages, cut
from .lengths import Lengths
from .losses import overlooked

BATCH = 16_384
"""Tokens that are read at a time."""
BATCHED = 64
"""Sentences a step, where it is learned what counts within them."""
LEARNED = 600
"""Pairs whose texts that is learned from."""
RATE = 3e-3
"""Peak learning rate of that."""


Document = tuple[str, int]
"""A carrier's name and the number of one of its documents."""
Part = tuple[int, int]
"""Sentences of a text, from and to."""


@dataclass(frozen=True)
class Kept:
    """The sentences of a text as a student reads them."""

    looked: Tensor
    """Their mean states in the layer that is looked at, (sentences, hidden), bfloat16."""
    read: Tensor
    """Those in the last layer, likewise."""
    sizes: Tensor
    """Tokens of each, (sentences,)."""

    def __getitem__(self, part: slice) -> Kept:
        return Kept(self.looked[part], self.read[part], self.sizes[part])

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Library:
    """What a pooling learns from."""

    texts: list[tuple[Kept, Part, Document | None]]
    """Short texts, which sentences of each count, and the document that they stand in; none where
    there is no prose and a text is one sentence over and over."""
    prose: dict[Document, list[Kept]]
    """Stretches of each document."""
    tokens: int
    """All that was read for it."""
    seconds: float
    """What that took."""

    @property
    def fingerprint(self) -> str:
        """Of the sentences' sizes and places: another library's texts have others."""
        return fingerprint(
            kept.sizes.numpy().tobytes() + str((part, document)).encode()
            for kept, part, document in self.texts
        )

    def text(self, length: int, draw: np.random.Generator) -> tuple[Kept, Part]:
        """One of the texts, made as long as ``length`` tokens, and which sentences count."""
        kept, (first, end), document = self.texts[int(draw.integers(len(self.texts)))]
        if document is None:
            times = max(0, length - kept.tokens) // kept[:end].tokens
            return concatenated([kept[:end]] * times + [kept]), (0, end * (times + 1))
        stretches = self.prose.get(document, [])
        while stretches and (room := length - kept.tokens) > 0:
            stretch = stretches[int(draw.integers(len(stretches)))]
            sizes = stretch.sizes.numpy()
            begin = int(draw.integers(len(sizes)))
            many = int(np.searchsorted(np.cumsum(sizes[begin:]), room, side="right"))
            if not many:
                if sizes.min() > room:
                    break
                continue
            gap = int(draw.integers(len(kept.sizes) + 1))
            kept = concatenated([kept[:gap], stretch[begin : begin + many], kept[gap:]])
            before = many * (gap <= first)
            first, end = first + before, end + before
        return kept, (first, end)


def concatenated(parts: list[Kept]) -> Kept:
    return Kept(*(torch.cat([getattr(p, f) for p in parts]) for f in ("looked", "read", "sizes")))


def read_once(
    student: Encoder,
    builders: tuple[Builder, ...],
    longest: int,
    *,
    options: FindOptions | None = None,
    seed: int = 0,
    precision: str = "fp32",
    folder: Path | None = None,
    show_progress: bool | None = None,
) -> Library:
    """What ``student``'s pooling learns from; what it weighs states by within a sentence is learned
    before, if it has not been.

    Args:
        builders: what the texts are made by: the constructions, their pairs and their prose.
        longest: tokens of the longest text that will be made of it.
        precision: fp32 or bf16, of reading.
        folder: a checkpoint of what is learned before; a run found there goes on.
    Raises: TwinlineError if the student's is no pooling by the sentence.
    """
    options = options or FindOptions()
    pooling_of(student)
    started = time.perf_counter()
    reader = Reader(student, precision, show_progress)
    texts, prose = what_is_read(builders, longest, options, seed, student.windows)
    before = learn_shares(reader, texts, options, seed, folder)
    every = [one.text for one in texts] + [text for text, _ in prose]
    short: dict[int, tuple[Kept, Part, Document | None]] = {}
    stretches: dict[int, Kept] = {}
    tokens = 0
    for i, count, kept, number in reader.kept(student.tokenize(every)[0]):
        tokens += count
        if i < len(texts):
            # The last token of what counts: a sentence before may go on into it, or it into prose.
            last, document = int(number[texts[i].span[1] - 1]), texts[i].document
            short[i] = kept, (0 if document is None else last, last + 1), document
        else:
            stretches[i] = kept
    of: dict[Document, list[Kept]] = defaultdict(list)
    for i in sorted(stretches):
        of[prose[i - len(texts)][1]].append(stretches[i])
    seconds = time.perf_counter() - started
    return Library([short[i] for i in range(len(texts))], of, before + tokens, seconds)


def learn_to_find(
    student: Encoder,
    library: Library,
    lengths: Lengths,
    *,
    options: FindOptions | None = None,
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int = 0,
    folder: Path | None = None,
    show_progress: bool | None = None,
) -> Run:
    """Train what ``student``'s pooling weighs sentences by; all else of it stays as it is.

    The loss is the negative log of the share of weights that lies on the sentence that counts.

    Args:
        library: read with the student as it is.
        lengths: of the steps' texts, and how many steps there are.
        evaluate: logged every ``evaluate_every`` steps, at the start and at the end.
        folder: checkpoints and ``metrics.jsonl``; a run found there goes on.
    Returns: the run; its tokens are those of the texts that were made, not read.
    Raises: TwinlineError if the student's is no pooling by the sentence.
    """
    options = options or FindOptions()
    pool = pooling_of(student)

    def batch_at(step: int) -> Batch:
        draw = np.random.default_rng((lengths.seed, step, 2))
        made = [library.text(lengths[step], draw) for _ in range(options.texts)]
        inputs = {
            name: nn.utils.rnn.pad_sequence([getattr(kept, name) for kept, _ in made], True)
            for name in ("looked", "read", "sizes")
        }
        inputs["parts"] = torch.tensor([part for _, part in made])
        return Batch(inputs, options.texts // 2, sum(kept.tokens for kept, _ in made))

    def loss(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        held = {name: one.to(student.device) for name, one in inputs.items()}
        sizes = held["sizes"]
        sentences = Sentences.kept(held["looked"].float(), sizes)
        _, weights = module((held["read"].float(),), sizes, sentences)
        return overlooked(weights[-1:], held["parts"], sizes.shape[1])

    with only(student, pool):
        run = train(
            pool, batch_at, loss, loop(options.learning_rate, lengths.steps, lengths.seed,
                                       options.workers, evaluate_every),
            folder=folder,
            identity={
                "find": deciding(options), "lengths": asdict(lengths.options),
                "library": library.fingerprint,
            },
            evaluate=evaluate, title="learning to find", show_progress=show_progress,
        )  # fmt: skip
    student.eval()
    return run


def soften(
    student: Encoder,
    pairs: Pairs,
    factors: Sequence[float],
    *,
    precision: str = "fp32",
    show_progress: bool | None = None,
) -> float:
    """Scale the sharpness of the last look for a sentence by the factor that reads pairs best.

    Of sentences and prose that it never saw a pooling is too sure: a text's vector is then another
    sentence's, where a share of the right one would say something (temperature scaling, arXiv
    1706.04599; chosen here by Pearson correlation and not by likelihood).

    Args:
        pairs: long ones with scores, read once; other than those that it learned from.
        factors: what is tried.
    Returns: the best of the factors.
    Raises: TwinlineError if the student's is no pooling by the sentence.
    """
    pool = pooling_of(student)
    ids = student.tokenize([*pairs.sentence1, *pairs.sentence2])[0]
    most = student.windows or max(map(len, ids))
    windows = cut(ids, most, set(student.tokenizer.all_special_ids))
    reader = Reader(student, precision, show_progress)
    kept = {i: one for i, _, one, _ in reader.kept(windows.ids)}
    last = pool.layers[-1]
    assert isinstance(last, SentenceAttention)
    sharpness = last.sharpness
    own, found = sharpness.detach().clone(), {}
    with torch.no_grad():
        for factor in factors:
            sharpness.copy_(own * factor)
            vectors = torch.cat([vector_of(pool, kept[i]) for i in range(len(kept))])
            u, v = averages(vectors, windows).unflatten(0, (2, -1))
            with suppress(UndefinedCorrelation):  # another factor may tell the pairs apart
                found[factor] = pearson(F.cosine_similarity(u, v).numpy(), pairs.unit_score)
        best = max(found, key=lambda factor: found[factor], default=1.0)
        sharpness.copy_(own * best)
    if not found:
        raise UndefinedCorrelation(
            f"No sharpness can be chosen on {pairs.name}: all scores, or all labels, are the same "
            "but for rounding; give pairs of different texts."
        )
    return best


def vector_of(pool: SentencePooling, kept: Kept) -> Tensor:
    """(1, width), of a text by its sentences."""
    device = pool.target.device
    looked, read, sizes = (x[None].to(device) for x in (kept.looked, kept.read, kept.sizes))
    made: Tensor = pool((read.float(),), sizes, Sentences.kept(looked.float(), sizes))[0].cpu()
    return made


def loop(rate: float, steps: int, seed: int, workers: int, evaluate_every: int = 0) -> LoopOptions:
    """A constant rate with a cooldown, as a study's other steps have it."""
    return LoopOptions(
        steps=steps, learning_rate=rate, schedule="constant", cooldown=0.25, warmup=0.0,
        weight_decay=0.0, evaluate_every=evaluate_every, keep_best=False, seed=seed,
        workers=workers,
    )  # fmt: skip


@dataclass(frozen=True)
class Short:
    """A short text."""

    text: str
    span: tuple[int, int]
    """Its tokens that count, from and to."""
    document: Document | None
    """The carrier's that its prose is from; none where it has none (``repeat``)."""


def what_is_read(
    builders: tuple[Builder, ...], longest: int, options: FindOptions, seed: int,
    windows: int | None,
) -> tuple[list[Short], list[tuple[str, Document]]]:  # fmt: skip
    """Short texts of the training pairs, and stretches of prose with the documents they are of.

    Raises: TwinlineError if no pair fits.
    """
    stretch = min(longest, windows or longest)
    draw = np.random.default_rng((seed, 3))
    carriers = {b.carrier.name: b for b in builders if b.carrier is not None}
    documents: dict[str, list[int]] = defaultdict(list)
    prose = []
    longer = bool(carriers) and longest > options.least
    many = -(-options.prose // (stretch * len(carriers))) if longer else 0
    for name, builder in carriers.items():
        for number in range(max(1, many)):
            document = builder.document(longest, number)
            assert document is not None
            documents[name].append(document)
            if many:
                text = builder.prose(stretch, number, number, document)
                prose.append((text, (name, document)))
    made: list[Short] = []
    for number, row in enumerate(draw.permutation(len(builders[0].pairs))[: options.pairs]):
        builder = builders[number % len(builders)]
        whence = None
        if builder.construction != "repeat":
            assert builder.carrier is not None
            among = documents[builder.carrier.name]
            whence = builder.carrier.name, among[int(draw.integers(len(among)))]
        most = min(options.greatest, longest)
        size = int(draw.integers(min(options.least, most), most + 1))
        try:
            pair = builder.pair(int(row), size, number, whence and whence[1])
        except TooLongError:
            continue
        for text, span in zip((pair.text1, pair.text2), pair.spans, strict=True):
            made.append(Short(text, span, whence))
    if not made:
        raise TwinlineError("No training pair fits into the texts: raise find.greatest.")
    return made, prose


@dataclass(frozen=True)
class Reader:
    """Reads texts with a student as it is."""

    student: Encoder
    precision: str
    show: bool | None

    def kept(self, ids: list[list[int]]) -> Iterator[tuple[int, int, Kept, Tensor]]:
        """Of each text its number, its tokens, its sentences, and which one each token is of."""
        for i, count, (row, states, real, looked) in self(ids, ""):
            part = slice(row, row + 1), slice(count)
            number = looked.number[part]
            begins = torch.diff(number, dim=1, prepend=number[:, :1] - 1) > 0
            read = Sentences.of(states[-1][part], begins, real[part], looked.emphasis[part])
            sizes = torch.bincount(number[0], weights=real[part][0].float()).long()
            means = looked.means[row, : len(sizes)].bfloat16().cpu()
            yield i, count, Kept(means, read.means[0].bfloat16().cpu(), sizes.cpu()), number[0]

    def __call__(
        self, ids: list[list[int]], part: str
    ) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        """Of each text its number, how many tokens it has, and what the pooling (``part`` "") or
        that part of it was given, batch by batch in any order."""
        model = self.student.model
        heard: list[Any] = []
        module = pooling_of(self.student).get_submodule(part)
        # A copy: a layer may write over what the one before it made.
        hook = module.register_forward_pre_hook(
            lambda _, given: heard.append(
                tuple(x.clone() if isinstance(x, Tensor) else x for x in given)
            )
        )
        reduced = torch.autocast(model.device.type, torch.bfloat16, self.precision == "bf16")
        self.student.eval()
        try:
            with Progress("reading once", total=len(ids), show=self.show) as progress:
                for batch in budget_batches([len(row) for row in ids], BATCH):
                    padded, mask = pad([ids[i] for i in batch], model.config.pad_token_id)
                    with torch.no_grad(), reduced:
                        model(padded.to(model.device), mask.to(model.device))
                    given = heard.pop()
                    for row, i in enumerate(batch):
                        yield i, len(ids[i]), (row, *given)
                    progress.advance(len(batch))
        finally:
            hook.remove()


def learn_shares(
    reader: Reader, texts: list[Short], options: FindOptions, seed: int, folder: Path | None
) -> int:
    """Train what states weigh within their sentence: those that count, and of a sentence of prose
    all alike. The loss is the cross-entropy to that.

    Returns: the tokens that were read for it.
    """
    chosen = [one for one in texts if one.document is not None][: 2 * LEARNED]
    within = pooling_of(reader.student).within
    if not options.inside or not chosen or bool(within.out.any()):
        return 0
    tokens = 0
    kept: list[tuple[Tensor, Tensor]] = []
    draw = np.random.default_rng((seed, 4))
    ids = reader.student.tokenize([one.text for one in chosen])[0]
    for i, count, (row, states, starts, real) in reader(ids, "within"):
        tokens += count
        number = starts[row, :count].long().cumsum(0)
        start, end = chosen[i].span
        counting = torch.zeros(count, dtype=torch.bool, device=number.device)
        counting[start:end] = True
        counting[[0, -1]] = True  # special tokens, if they are read, with the sentence of theirs
        read = real[row, :count]
        own = (number == number[end - 1]) & read
        kept.append((states[row, :count][own].bfloat16().cpu(), counting[own].cpu()))
        other = (number == int(draw.integers(1, int(number[-1]) + 1))) & read
        if not bool((other & own).any()):
            kept.append((states[row, :count][other].bfloat16().cpu(), torch.ones(int(other.sum()))))

    def batch_at(step: int) -> Batch:
        drawn = np.random.default_rng((seed, step, 5)).integers(len(kept), size=BATCHED)
        rows = [kept[i] for i in drawn]
        return Batch(rows, len(rows), sum(len(goal) for _, goal in rows))

    def loss(module: nn.Module, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
        device = reader.student.device
        states, goal, real = (
            nn.utils.rnn.pad_sequence(list(each), batch_first=True).float().to(device)
            for each in zip(*((x, y, torch.ones(len(y))) for x, y in rows), strict=True)
        )
        starts = torch.zeros_like(real, dtype=torch.bool)
        starts[:, 0] = True
        marks = module(states, starts, real.bool()).masked_fill(real == 0, -1e9)
        shares = marks.log_softmax(dim=1)
        lost: Tensor = -((goal * shares).sum(dim=1) / goal.sum(dim=1)).mean()
        return lost

    with only(reader.student, within):
        train(
            within, batch_at, loss, loop(RATE, options.inside, seed, options.workers),
            folder=folder and folder / "inside", identity={"find": deciding(options)},
            title="learning what counts within", show_progress=reader.show,
        )  # fmt: skip
    return tokens


def pooling_of(student: Encoder) -> SentencePooling:
    """Raises: TwinlineError if the student's is no pooling by the sentence."""
    pool = student.model.pool
    if not isinstance(pool, SentencePooling):
        raise TwinlineError(
            f"The pooling {student.model.config.pooling} cannot learn alone to find sentences: "
            "convert with pooling sentence."
        )
    return pool


def only(student: Encoder, part: nn.Module) -> AbstractContextManager[None]:
    """Inside the block, nothing of the student is trained but ``part``."""
    learned = {id(p) for p in part.parameters()}
    return held(p for p in student.model.parameters() if id(p) not in learned)
