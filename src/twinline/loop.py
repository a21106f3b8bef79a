"""The one training loop: attention transfer, teachers and students all run through it.

What a step reads is a function of its number (``batch_at(step)``), and its random draws (dropout)
are seeded by its number, so a run that was killed and resumed from its last checkpoint goes on to
exactly the same weights as one that never stopped. It runs on ``accelerate``'s device; what is
tested is one process.
"""

from __future__ import annotations

import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .ahead import in_order
from .errors import TwinlineError
from .files import writable_folder, write_whole
from .fingerprints import weights_print
from .machine import keep_memory
from .options import LoopOptions
from .ownership import LOG, is_log
from .progress import Progress
from .randomness import fork_generators
from .statistics import UndefinedCorrelation

Weights = dict[str, Tensor]
LOST = 120.0
"""Seconds of steps that a kill may cost: checkpoints come as often, however slow the machine."""


@dataclass(frozen=True)
class Batch:
    """What one call of the loss reads, and what it costs."""

    inputs: Any
    pairs: int
    """Pairs (or texts, where no pairs are read) in it."""
    tokens: int
    """Real tokens in it."""
    spared: int = 0
    """Tokens of texts that it names more than once and reads once."""


@dataclass
class Record:
    """One line of the metrics log."""

    step: int
    pairs: int
    tokens: int
    seconds: float
    loss: float | None
    """None before the first step."""
    learning_rate: float
    validation_pearson: float | None = None
    """What ``evaluate`` returned; None where it was not called, or undefined."""


@dataclass
class Run:
    """Where a loop stands: what a checkpoint keeps beside weights and optimiser state."""

    step: int = 0
    pairs: int = 0
    tokens: int = 0
    spared: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best."""
    stopped: bool = False
    log: list[Record] = field(default_factory=list)


def learning_rate(options: LoopOptions, step: int) -> float:
    """The rate of step number ``step`` (from 0): a linear rise, and a fall to 0 at the end."""
    rise = max(1, round(options.warmup * options.steps))
    if step < rise:
        return options.learning_rate * (step + 1) / rise
    fall = options.steps - rise
    if options.schedule == "constant":
        fall = min(fall, round(options.cooldown * options.steps))
    return options.learning_rate * min(1.0, (options.steps - step) / max(1, fall))


def optimiser(
    module: nn.Module, options: LoopOptions, factors: dict[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors and scalars are not decayed.

    ``factors`` multiply the learning rate of parameters in whose name their key stands.
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trained(module):
        factor = next((f for part, f in (factors or {}).items() if part in name), 1.0)
        found.setdefault((factor, options.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    groups = [
        {"params": params, "weight_decay": decay, "factor": factor}
        for (factor, decay), params in found.items()
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


@fork_generators()
def train(
    module: nn.Module,
    batch_at: Callable[[int], Batch],
    loss: Callable[[nn.Module, Any], Tensor],
    options: LoopOptions,
    *,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    evaluate: Callable[[], float] | None = None,
    factors: dict[str, float] | None = None,
    title: str = "training",
    show_progress: bool | None = None,
) -> Run:
    """Train ``module``'s trainable parameters in place.

    torch's global generators are left as they were. Two things stay changed in the process:
    ``accelerate`` has a state, which refuses an ``Accelerator`` with mixed precision later on; and
    on a processor freed memory is kept (``machine.keep_memory``).

    Args:
        batch_at: the batch of micro-step ``step * accumulate + i``; must depend on nothing else.
        loss: a scalar from the (wrapped) module and a batch's inputs.
        folder: keeps ``checkpoint.pt`` and ``metrics.jsonl``; a run found there goes on.
        identity: what makes this run this run; a checkpoint with another identity is refused.
        evaluate: higher is better; called on the module in eval mode, without gradients. Where it
            is undefined (``UndefinedCorrelation``, or not a finite number) the log has None, the
            step is not the best, and one warning says why.
        factors: of the learning rate, by a part of a parameter's name.
    Returns: the finished run, with the metrics log.
    Raises: TwinlineError if ``folder`` holds another run's checkpoint or the loss is not finite.
    """
    # Not Accelerator's own mixed precision: it is fixed for the life of the process.
    try:
        accelerator = Accelerator(mixed_precision="no")
    except ValueError as error:
        raise TwinlineError(
            "This process has an Accelerator with mixed precision already, which would be this "
            "training's too: train in a process of its own, or make that one without."
        ) from error
    reduced = partial(
        torch.autocast, accelerator.device.type, torch.bfloat16, options.precision == "bf16"
    )
    if accelerator.device.type == "cpu":
        keep_memory()
    wrapped, optim = accelerator.prepare(module, optimiser(module, options, factors))
    kept = time.monotonic()
    identity = {"options": deciding(options), "start": weights_print(module), **(identity or {})}
    keeper = Keeper(folder, module, optim, identity) if folder else None
    run, best = keeper.resume() if keeper else (Run(), None)
    parameters = [p for p in module.parameters() if p.requires_grad]
    undefined: list[str] = []

    def validated() -> float | None:
        assert evaluate is not None
        wrapped.eval()
        with torch.no_grad(), reduced():
            value, reason = defined(evaluate)
        if reason and not undefined:
            warnings.warn(
                f"The validation score after step {run.step} of {title} is undefined and so not "
                f"the best; the run goes on. {reason}",
                stacklevel=5,
            )
            undefined.append(reason)
        return value

    if evaluate is not None and options.evaluate_every and not run.log:
        run.log.append(Record(0, 0, 0, 0.0, None, 0.0, validated()))  # where the curve starts
    every = range(run.step * options.accumulate, options.steps * options.accumulate)
    numbers = [number * accelerator.num_processes + accelerator.process_index for number in every]
    with (
        Progress(title, total=options.steps, done=run.step, show=show_progress) as progress,
        multiplied(options.precision),
        closing(in_order(batch_at, numbers, options.workers)) as batches,
        evaluated_after(module),
    ):
        while run.step < options.steps and not run.stopped:
            started = time.perf_counter()
            rate = learning_rate(options, run.step)
            for group in optim.param_groups:
                group["lr"] = rate * group["factor"]
            torch.manual_seed((options.seed << 32) + run.step * accelerator.num_processes
                              + accelerator.process_index)  # fmt: skip
            wrapped.train()
            total = 0.0
            for batch in islice(batches, options.accumulate):
                with reduced():
                    part = loss(wrapped, batch.inputs) / options.accumulate
                accelerator.backward(part)
                total += float(part.detach())
                run.pairs += batch.pairs * accelerator.num_processes
                run.tokens += batch.tokens * accelerator.num_processes
                run.spared += batch.spared * accelerator.num_processes
            if total != total or total in (float("inf"), float("-inf")):
                raise TwinlineError(
                    f"The loss became {total} at step {run.step + 1} of {title}: lower "
                    "learning_rate, or look for a score in the data that is not a number."
                )
            accelerator.clip_grad_norm_(parameters, options.max_grad_norm)
            optim.step()
            optim.zero_grad(set_to_none=True)
            run.step += 1
            run.seconds += time.perf_counter() - started
            record = Record(run.step, run.pairs, run.tokens, run.seconds, total, rate)
            last = run.step == options.steps
            due = last or (options.evaluate_every and run.step % options.evaluate_every == 0)
            if evaluate is not None and due:
                value = record.validation_pearson = validated()
                if value is not None and (run.best is None or value > run.best):
                    run.best, run.best_step, run.stale = value, run.step, 0
                    best = {n: p.detach().clone() for n, p in trained(module)}
                else:
                    run.stale += 1
                    run.stopped = 0 < options.patience <= run.stale
            run.log.append(record)
            progress.advance(loss=total, validation=run.best)
            checkpoint = last or run.stopped or run.step % options.checkpoint_every == 0
            checkpoint = checkpoint or time.monotonic() - kept > LOST
            if keeper and checkpoint and accelerator.is_main_process:
                keeper.keep(run, best)
                kept = time.monotonic()
    if best is not None and options.keep_best:
        load(module, best)
    return run


@contextmanager
def evaluated_after(module: nn.Module) -> Iterator[None]:
    """Behind the block, left by an interrupt or an error too, dropout is off."""
    try:
        yield
    finally:
        module.eval()


def defined(evaluate: Callable[[], float]) -> tuple[float | None, str]:
    """What ``evaluate`` returns, or None and why it is not defined."""
    try:
        value = float(evaluate())
    except UndefinedCorrelation as error:
        return None, str(error)
    return (value, "") if math.isfinite(value) else (None, f"It is {value}.")


def deciding(options: Any) -> dict[str, Any]:
    """The options that a run's weights depend on: how many processes make its batches is none."""
    return {name: value for name, value in asdict(options).items() if name != "workers"}


@contextmanager
def multiplied(precision: str) -> Iterator[None]:
    """Inside the block, a GPU multiplies fp32 matrices in TF32 if ``precision`` is tf32."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The trainable parameters, by name: all that a loop changes."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


@torch.no_grad()
def load(module: nn.Module, weights: Weights) -> None:
    """Put ``weights`` back into the trainable parameters."""
    for name, parameter in trained(module):
        parameter.copy_(weights[name])


@contextmanager
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block these are not trained; what was held before stays so behind it."""
    ours = [p for p in parameters if p.requires_grad]
    for parameter in ours:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in ours:
            parameter.requires_grad_(True)


CHECKPOINT = {"identity", "run", "log", "last", "best", "optimiser"}
"""What a checkpoint holds."""


class Keeper:
    """Writes and reads a run's folder.

    ``checkpoint.pt`` (weights, optimiser, metrics, state) is one file, exchanged by a rename, so a
    kill at any moment leaves the last whole one; ``metrics.jsonl`` is written from it.
    """

    def __init__(
        self, folder: Path, module: nn.Module, optim: Any, identity: dict[str, Any]
    ) -> None:
        self.folder, self.module, self.optim = writable_folder(folder, "folder"), module, optim
        self.identity = json.loads(json.dumps(identity, default=str))
        self.checkpoint = self.folder / "checkpoint.pt"

    def resume(self) -> tuple[Run, Weights | None]:
        """The run as its checkpoint has it, and its best weights; a new one if there is none."""
        log = self.folder / LOG
        if log.exists() and not is_log(log):
            raise TwinlineError(f"{log} is no log of Twinline: move it, or name another folder.")
        if not self.checkpoint.exists():
            return Run(), None
        try:
            kept = torch.load(self.checkpoint, weights_only=True)
        except Exception as error:  # torch.load raises many kinds for a damaged file
            raise TwinlineError(
                f"{self.checkpoint} is damaged, or no checkpoint of Twinline: move it away, or "
                "name another folder."
            ) from error
        if not isinstance(kept, dict) or not kept.keys() >= CHECKPOINT:
            raise TwinlineError(
                f"{self.checkpoint} is no checkpoint of Twinline: name another folder."
            )
        ours, theirs = self.identity, kept["identity"]
        if keys := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
            raise TwinlineError(
                f"{self.folder} holds a run with other settings ({', '.join(keys)}): "
                "name another folder, or remove this one to start again."
            )
        load(self.module, kept["last"])
        self.optim.load_state_dict(kept["optimiser"])
        return Run(**{**kept["run"], "log": [Record(**line) for line in kept["log"]]}), kept["best"]

    def keep(self, run: Run, best: Weights | None) -> None:
        whole = {
            "identity": self.identity,
            "run": {k: v for k, v in vars(run).items() if k != "log"},
            "log": [vars(record) for record in run.log],
            "last": {name: p.detach() for name, p in trained(self.module)},
            "best": best,
            "optimiser": self.optim.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(whole, buffer)
        write_whole(self.checkpoint, buffer.getvalue())
        lines = "".join(json.dumps(line) + "\n" for line in whole["log"])
        write_whole(self.folder / LOG, lines)
