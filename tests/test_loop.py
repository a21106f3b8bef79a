"""The training loop: resuming, refusing, stopping, and what a step is."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twinline import loop
from twinline.errors import TwinlineError
from twinline.loop import Batch, LoopOptions, Run, learning_rate, train

STEPS = 20


def tiny(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
    module[0].bias.requires_grad_(False)
    return module


def batch_at(number: int, size: int = 4) -> Batch:
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
    return Batch((x, x.sum(1, keepdim=True)), pairs=size, tokens=3 * size)


def squared(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> Tensor:
    return (module(inputs[0]) - inputs[1]).square().mean()


def options(**given: Any) -> LoopOptions:
    return LoopOptions(**{"steps": STEPS, "learning_rate": 0.02, "checkpoint_every": 3, **given})


def validation(module: nn.Module) -> float:
    x = batch_at(10**6, size=32).inputs
    return -float(squared(module, x))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def curve(run: Run) -> list[tuple]:
    """The log without its clock."""
    return [
        (r.step, r.pairs, r.tokens, r.loss, r.learning_rate, r.validation_pearson) for r in run.log
    ]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_made_ahead_make_the_same_weights(accumulate: int, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        module = tiny()
        given = options(steps=7, accumulate=accumulate, workers=workers, checkpoint_every=2)
        train(module, batch_at, squared, given, folder=tmp_path)
        found.append(weights(module))  # the second finds the first's checkpoint: same identity
    again = tiny()
    train(again, batch_at, squared, options(steps=7, accumulate=accumulate, workers=2))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], weights(again))


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop", [1, 7, STEPS - 1])
@pytest.mark.parametrize("extra", [{}, {"evaluate_every": 2}, {"accumulate": 2}])
def test_stopped_and_resumed_is_as_if_never_stopped(extra: dict, stop: int, tmp_path: Path) -> None:
    whole, parts = tiny(), tiny()
    evaluate = (lambda module: lambda: validation(module)) if extra else lambda module: None
    want = train(whole, batch_at, squared, options(**extra), evaluate=evaluate(whole))

    def dying(number: int) -> Batch:
        if number == stop * extra.get("accumulate", 1):
            raise Killed
        return batch_at(number)

    with pytest.raises(Killed):
        train(parts, dying, squared, options(**extra), folder=tmp_path, evaluate=evaluate(parts))
    parts = tiny()
    got = train(
        parts, batch_at, squared, options(**extra), folder=tmp_path, evaluate=evaluate(parts)
    )
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-6)
    assert curve(got) == [pytest.approx(line, abs=1e-6) for line in curve(want)]
    assert (got.best_step, got.step, got.pairs) == (want.best_step, want.step, want.pairs)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [record.step for record in got.log]
    # A finished run is not trained again.
    once_more = tiny()
    done = train(
        once_more, dying, squared, options(**extra), folder=tmp_path, evaluate=evaluate(once_more)
    )
    assert curve(done) == curve(got)
    torch.testing.assert_close(weights(once_more), weights(parts), rtol=0, atol=0)


def test_slow_steps_are_kept_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(number: int) -> Batch:
        if number == 2:
            raise Killed
        return batch_at(number)

    given = options(checkpoint_every=STEPS)
    with pytest.raises(Killed):
        train(tiny(), dying, squared, given, folder=tmp_path)
    assert not list(tmp_path.iterdir()), "two quick steps are not kept"
    monkeypatch.setattr(loop, "LOST", -1.0)
    with pytest.raises(Killed):
        train(tiny(), dying, squared, given, folder=tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["run"]["step"] == 2


def test_a_kill_at_any_moment_can_be_resumed(tmp_path: Path) -> None:
    """SIGKILL inside a checkpoint's writing: the one before is whole."""
    program = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import twinline.files
from test_loop import batch_at, options, squared, tiny, train
replace, seen = os.replace, []
def dying(*paths):
    seen.append(paths)
    if len(seen) == 5:  # the third checkpoint, after it was written, before it counts
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = dying
train(tiny(), batch_at, squared, options(), folder=Path(sys.argv[2]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["run"]["step"] == 6
    whole, parts = tiny(), tiny()
    train(whole, batch_at, squared, options())
    train(parts, batch_at, squared, options(), folder=tmp_path)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "identity", "named"),
    [({"learning_rate": 0.03}, {}, "options"), ({"steps": 9}, {}, "options"),
     ({}, {"data": "b"}, "data"), ({}, {"data": "a", "model": 1}, "model")],
)  # fmt: skip
def test_a_run_with_other_settings_is_refused(
    given: dict, identity: dict, named: str, tmp_path: Path
) -> None:
    train(tiny(), batch_at, squared, options(), folder=tmp_path, identity={"data": "a"})
    module = tiny()
    with pytest.raises(TwinlineError, match=f"other settings .*{named}"):
        train(module, batch_at, squared, options(**given), folder=tmp_path,
              identity={"data": "a", **identity})  # fmt: skip
    assert torch.equal(weights(module), weights(tiny()))


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(TwinlineError, match="move it away") as caught:
        train(tiny(), batch_at, squared, options(), folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_refused_before_it_spoils_the_weights(bad: float) -> None:
    module = tiny()
    seen = []

    def loss(module: nn.Module, inputs: Any) -> Tensor:
        seen.append(weights(module).clone())
        return squared(module, inputs) * (bad if len(seen) == 4 else 1)

    with pytest.raises(TwinlineError, match=r"loss became .* at step 4 of teaching: lower "):
        train(module, batch_at, loss, options(), title="teaching")
    assert torch.equal(weights(module), seen[3])
    assert torch.isfinite(weights(module)).all()


@pytest.mark.parametrize("values", [
    [1, 3, 2, 2, 5, 6], [3, 3, 3, 3, 3, 3], [float("nan"), 1, 2, 1, 1, 9],
])  # fmt: skip
def test_early_stop_and_the_best_weights(values: list[float], tmp_path: Path) -> None:
    """Evaluated after steps 2, 4, ...: two without a new best end it, and the best are kept."""
    module, seen, script = tiny(), {}, iter([0.0, *values])

    def evaluate() -> Any:
        assert not module.training
        assert not torch.is_grad_enabled()
        seen[len(seen)] = weights(module).clone()
        return np.float64(next(script))  # as scipy and numpy give it

    chosen = options(steps=12, evaluate_every=2, patience=2)
    run = train(module, batch_at, squared, chosen, evaluate=evaluate, folder=tmp_path)
    best, stale, last = None, 0, len(values)
    for place, value in enumerate(values, start=1):
        if value > (values[best - 1] if best else float("-inf")):  # not where value is NaN
            best, stale = place, 0
        else:
            stale += 1
        if stale == 2:
            last = place
            break
    assert run.step == 2 * last
    assert (run.best, run.best_step) == (values[best - 1], 2 * best)
    assert torch.equal(weights(module), seen[len(seen) - 1 - last + best])
    again = tiny()
    resumed = train(again, batch_at, squared, chosen, evaluate=evaluate, folder=tmp_path)
    assert (resumed.step, resumed.best) == (run.step, run.best)
    assert torch.equal(weights(again), weights(module))


def test_without_keep_best_the_last_weights_stay() -> None:
    one, other = tiny(), tiny()
    train(one, batch_at, squared, options())
    script = iter(range(100, 0, -1))
    train(other, batch_at, squared, options(evaluate_every=2, keep_best=False),
          evaluate=lambda: float(next(script)))  # fmt: skip
    assert torch.equal(weights(one), weights(other))


def test_learning_rate_schedule() -> None:
    falling = LoopOptions(steps=20, learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(falling, step) for step in range(20)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0] + [(20 - s) / 16 for s in range(4, 20)])
    flat = LoopOptions(steps=20, learning_rate=2.0, warmup=0.0, schedule="constant")
    assert {learning_rate(flat, step) for step in range(20)} == {2.0}
    cooled = replace(flat, cooldown=0.2)
    rates_at_end = [learning_rate(cooled, step) for step in range(14, 20)]
    assert rates_at_end == pytest.approx([2.0, 2.0, 2.0, 1.5, 1.0, 0.5])
    assert learning_rate(LoopOptions(steps=1, learning_rate=3.0), 0) == 3.0
    run = train(tiny(), batch_at, squared, falling)
    assert [r.learning_rate for r in run.log] == pytest.approx(rates)


def test_accumulated_batches_equal_one_large_batch() -> None:
    one, other = tiny(dropout=0.0), tiny(dropout=0.0)

    def joined(number: int) -> Batch:
        parts = [batch_at(3 * number + i) for i in range(3)]
        x, y = (torch.cat([p.inputs[i] for p in parts]) for i in range(2))
        return Batch((x, y), 12, 36)

    small = train(one, batch_at, squared, options(accumulate=3))
    large = train(other, joined, squared, options())
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-6)
    assert curve(small) == [pytest.approx(line, abs=1e-6) for line in curve(large)]


def test_only_what_is_trainable_changes_and_only_matrices_decay() -> None:
    module, start = tiny(dropout=0.0), tiny()
    heavy = options(steps=1, learning_rate=0.1, warmup=0.0, weight_decay=1.0)
    train(module, batch_at, lambda m, inputs: 0 * squared(m, inputs), heavy)
    for name, parameter in module.named_parameters():
        factor = 0.9 if name.endswith("weight") else 1.0
        torch.testing.assert_close(parameter, start.get_parameter(name) * factor)
    assert not module.training


def test_both_precisions_in_one_process() -> None:
    """As when transfer in fp32 is followed by distillation in bf16."""
    seen = []

    def loss(module: nn.Module, inputs: Any) -> Tensor:
        out = module(inputs[0])
        seen.append(module[0](inputs[0]).dtype)
        return (out.float() - inputs[1]).square().mean()

    modules = {name: tiny(dropout=0.0) for name in ("fp32", "bf16")}
    for name, module in modules.items():
        train(module, batch_at, loss, options(precision=name))
        assert seen[-1] == {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        assert module[0].weight.dtype == torch.float32
    a, b = (weights(module) for module in modules.values())
    assert 0 < float((a - b).norm() / a.norm()) < 0.05


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("warmup", 1.5),
     ("accumulate", 0), ("checkpoint_every", 0), ("patience", 2), ("weight_decay", -1.0)],
)  # fmt: skip
def test_mistaken_options_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(TwinlineError, match=option):
        LoopOptions(**{option: value})
