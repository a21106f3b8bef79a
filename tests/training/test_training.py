"""Teaching and distilling on a tiny model: what the losses mean, what is refused, resuming."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinline.conversion import convert
from twinline.data import Pairs, load
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.evaluate import against_labels, evaluate, far_off, far_share, predict
from twinline.options import (
    DistillOptions,
    FindOptions,
    ModelOptions,
    TeachOptions,
    TransferOptions,
)
from twinline.recipes import DistillRecipe
from twinline.teacher import Teacher
from twinline.training import distill, student, teach


@pytest.fixture(scope="module")
def pairs(tiny_pairs: Path) -> Pairs:
    return load(str(tiny_pairs), scale=(0, 1))


def fresh(tiny_bert: Path, attention: str = "linear", **options) -> Encoder:
    torch.manual_seed(0)
    return Encoder(convert(tiny_bert, attention=attention, **options))


@pytest.mark.parametrize("similarity", ["cosine", "dse"])
def test_a_student_learns_its_labels(tiny_bert: Path, pairs: Pairs, similarity: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(convert(tiny_bert, attention="linear"), similarity=similarity)
    before = evaluate(encoder, pairs).pearson.value
    options = DistillOptions(alpha=0, epochs=50, pairs=16, learning_rate=3e-3)
    run = distill(encoder, pairs, options=options, validation=pairs)
    after = evaluate(encoder, pairs).pearson.value
    assert after == pytest.approx(run.best, abs=1e-6)
    assert after > max(before + 0.1, 0.6)


def test_the_loss_is_the_papers(tiny_bert: Path, pairs: Pairs, monkeypatch) -> None:
    """(1 - alpha) * (score - label)^2 + alpha * (score - teacher)^2, over the batch's mean."""
    encoder = fresh(tiny_bert)
    soft = np.linspace(0, 1, len(pairs))
    scores = predict(encoder, pairs)
    expected = 0.75 * (scores - pairs.unit_score) ** 2 + 0.25 * (scores - soft) ** 2
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    options = DistillOptions(alpha=0.25, epochs=1, pairs=len(pairs))
    run = distill(encoder, pairs, teacher_scores=soft, options=options)
    assert run.log[0].loss == pytest.approx(expected.mean(), rel=1e-5)
    assert run.log[0].pairs == len(pairs)


def test_extra_pairs_count_for_the_teachers_part_only(tiny_bert: Path, pairs: Pairs) -> None:
    encoder = fresh(tiny_bert, hidden_dropout_prob=0.0)
    soft = np.linspace(0, 1, len(pairs))
    extra = replace(pairs.select(range(8)), score=np.full(8, 0.5), scale=(0.0, 1.0))
    scores = predict(encoder, pairs)
    labelled = 0.5 * (scores - pairs.unit_score) ** 2 + 0.5 * (scores - soft) ** 2
    expected = np.concatenate([labelled, 0.5 * (scores[:8] - 0.5) ** 2]).mean()
    options = DistillOptions(alpha=0.5, epochs=1, pairs=len(pairs) + 8)
    run = distill(encoder, pairs, teacher_scores=soft, extra=extra, options=options)
    assert run.log[0].loss == pytest.approx(expected, rel=1e-5)


def test_matching_draws_the_vectors_to_the_twins(tiny_bert: Path, pairs: Pairs) -> None:
    twin = fresh(tiny_bert, "softmax")
    encoder = fresh(tiny_bert)
    texts = pairs.sentence1

    def distance() -> float:
        made, goal = (e.encode(texts, normalize_embeddings=True) for e in (encoder, twin))
        return float(((made - goal) ** 2).sum(-1).mean())

    before = distance()
    options = DistillOptions(alpha=0, match=10.0, epochs=40, pairs=16, learning_rate=3e-3)
    distill(encoder, pairs, twin=twin, options=options)
    assert distance() < before / 2


def test_shared_texts_are_encoded_once_with_the_same_loss_and_gradient(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ["a man plays"] * 3 + ["dogs run fast"] * 2
    second = ["green grass", "dogs run fast", "the sun", "a man plays", "rain in the sun"]
    pairs = Pairs(first, second, np.linspace(0, 1, 5), (0, 1), "shared", "train")
    twin = fresh(tiny_bert, "softmax")
    options = DistillOptions(alpha=0.5, match=1.0, epochs=1, pairs=5)

    def run() -> tuple[float, int, torch.Tensor]:
        encoder = fresh(tiny_bert, hidden_dropout_prob=0.0)
        heard: list[torch.Tensor] = []
        encoder.model.layers[0].qkv.weight.register_hook(lambda grad: heard.append(grad.clone()))
        made = distill(encoder, pairs, twin=twin, teacher_scores=np.full(5, 0.3), options=options)
        assert made.log[0].loss is not None
        return made.log[0].loss, made.spared, heard[0]

    loss, spared, shared = run()
    module = sys.modules[distill.__module__]  # whose name in the package is the function's
    monkeypatch.setattr(module, "distinct", lambda texts: (list(range(len(texts))),) * 2)
    alone, none, plain = run()
    assert spared > 0
    assert none == 0
    assert loss == pytest.approx(alone, abs=1e-6)
    assert torch.allclose(shared, plain, atol=1e-6)


def test_a_query_and_its_candidates_share_a_batch(tiny_bert: Path) -> None:
    """Eight candidates a query: at least half of the tokens are spared, and no pair is lost."""
    words = ["dogs", "sun", "rain", "grass", "man", "woman", "piano", "guitar"]
    queries = [f"{one} plays the {other} on green grass in {one} rain"
               for one in words[:4] for other in words[4:]]  # fmt: skip
    shuffled = np.random.default_rng(0).permutation(len(queries) * 8)
    first = [queries[i // 8] for i in shuffled]
    second = [f"{words[i % 8]} run {words[i // 8 % 8]}" for i in shuffled]
    ranking = Pairs(first, second, np.linspace(0, 1, len(first)), (0, 1), "ranking", "train")
    runs = {}
    for group in (None, False):
        encoder = fresh(tiny_bert)
        options = DistillOptions(alpha=0, epochs=1, pairs=16, group=group)
        runs[group] = distill(encoder, ranking, options=options)
    grouped, alone = runs[None], runs[False]
    assert grouped.pairs == alone.pairs == len(ranking)
    assert grouped.spared >= grouped.tokens  # twice fewer
    assert grouped.tokens + grouped.spared == alone.tokens + alone.spared
    assert grouped.tokens < 0.7 * alone.tokens


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (DistillOptions(alpha=0.5), {}, "needs a teacher"),
        (DistillOptions(alpha=0.0, match=1.0), {}, "needs a twin"),
        (DistillOptions(alpha=1.0), {"teacher_scores": np.zeros(3)}, "do not fit"),
        (DistillOptions(alpha=1.0), {"teacher_scores": "nan"}, "pair 5 is not a number"),
    ],
)
def test_contradictions_are_refused(tiny_bert, pairs: Pairs, options, data, message) -> None:
    if data.get("teacher_scores") is not None and isinstance(data["teacher_scores"], str):
        scores = np.zeros(len(pairs))
        scores[4] = np.nan
        data = {"teacher_scores": scores}
    with pytest.raises(TwinlineError, match=message):
        distill(fresh(tiny_bert), pairs, options=options, **data)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: DistillOptions(alpha=1.5), "alpha is a share"),
        (lambda: DistillOptions(epochs=0), "epochs must be above 0"),
        (lambda: FindOptions(greatest=32), "greatest must be at least least"),
        (lambda: DistillOptions(pairs=0), "pairs must be at least 1"),
        (lambda: DistillOptions(learning_rate=-1), "learning_rate must be above 0"),
        (lambda: TeachOptions(patience=3), "patience needs evaluate_every"),
        (lambda: TransferOptions(stretches=2), "stretches is a share"),
        (lambda: ModelOptions(block_size=0), "block_size must be at least 1"),
    ],
)
def test_options_name_themselves(made, message: str) -> None:
    with pytest.raises(TwinlineError, match=message):
        made()


def test_teaching_makes_a_cross_encoder_others_can_load(tiny_bert, pairs, tmp_path) -> None:
    options = TeachOptions(epochs=60, pairs=16, learning_rate=3e-3)
    run = teach(tiny_bert, pairs, tmp_path / "ce", validation=pairs, options=options)
    teacher = Teacher(tmp_path / "ce")  # its scale is declared in its folder
    assert evaluate(teacher, pairs).pearson.value > 0.3
    assert run.best is not None
    from sentence_transformers import CrossEncoder

    both = list(zip(pairs.sentence1[:6], pairs.sentence2[:6], strict=True))
    theirs = CrossEncoder(str(tmp_path / "ce")).predict(both)
    ours = Teacher(tmp_path / "ce", both_orders=False).predict(both)
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_recipe_from_end_to_end(tiny_bert: Path, tiny_pairs: Path, tmp_path: Path) -> None:
    recipe = DistillRecipe(
        base=str(tiny_bert), data=str(tiny_pairs), validation=str(tiny_pairs), scale=(0, 1),
        texts=(str(tiny_pairs),), transfer=TransferOptions(steps=5, texts=8),
        model=ModelOptions(attention="hybrid", block_size=2),
        train=DistillOptions(alpha=0.0, epochs=2, pairs=16, evaluate_every=2),
    )  # fmt: skip
    encoder, run = student(recipe, tmp_path / "work")
    assert encoder.model.config.attention == "hybrid"
    assert run.log[0].step == 0
    assert run.log[0].validation_pearson is not None
    shares = far_share(encoder, ["a man plays the guitar on green grass", "rain and sun"])
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
    on = encoder.encode("a man plays the guitar on green grass")
    with far_off(encoder.model):
        assert max(far_share(encoder, ["a man plays the guitar"])) < 1e-6
        off = encoder.encode("a man plays the guitar on green grass")
    assert abs(on - off).max() > 1e-4
    assert (encoder.encode("a man plays the guitar on green grass") == on).all()
    with pytest.raises(TwinlineError, match="no hybrid"), far_off(fresh(tiny_bert).model):
        pass


def test_a_learned_head_starts_the_same_after_a_resume(tiny_bert, tiny_pairs, tmp_path) -> None:
    """The transfer of the second run is read from its checkpoint, and draws nothing."""
    recipe = DistillRecipe(
        base=str(tiny_bert), data=str(tiny_pairs), scale=(0, 1), similarity="dse",
        transfer=TransferOptions(steps=2, texts=8),
        train=DistillOptions(alpha=0.0, epochs=1, pairs=16),
    )  # fmt: skip
    first, run = student(recipe, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "distill")
    torch.rand(7)
    second, again = student(recipe, tmp_path / "work")
    assert [r.loss for r in run.log] == [r.loss for r in again.log]
    for a, b in zip(first.head.parameters(), second.head.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_start_is_refused(tiny_bert, pairs: Pairs, tmp_path) -> None:
    options = DistillOptions(alpha=0, epochs=1, pairs=16)
    distill(fresh(tiny_bert), pairs, options=options, folder=tmp_path)
    other = fresh(tiny_bert)
    with torch.no_grad():
        other.model.layers[1].norm.bias.add_(1e-3)
    with pytest.raises(TwinlineError, match=r"other settings \(start, student\)"):
        distill(other, pairs, options=options, folder=tmp_path)


def test_one_class_has_no_correlation(pairs: Pairs) -> None:
    flat = replace(pairs, score=np.full(len(pairs), 0.5))
    with pytest.raises(TwinlineError, match="two distinct values"):
        against_labels(np.linspace(0, 1, len(pairs)), flat)


SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from twinline.conversion import convert
from twinline.data import load
from twinline.encoder import Encoder
from twinline.options import DistillOptions
from twinline.training import distill
base, pairs, work, out = sys.argv[1:]
torch.manual_seed(0)
encoder = Encoder(convert(base, attention="linear"))
options = DistillOptions(alpha=0, epochs=40, pairs=8, learning_rate=1e-3, checkpoint_every=7,
                         evaluate_every=50)
data = load(pairs, scale=(0, 1))
run = distill(encoder, data, options=options, validation=data, folder=Path(work))
Path(out).write_text(json.dumps([[r.step, r.loss, r.validation_pearson] for r in run.log]))
"""


def test_kill_nine_and_resume_ends_the_same(tiny_bert, tiny_pairs, tmp_path: Path) -> None:
    def start(work: Path, out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tiny_bert), str(tiny_pairs), str(work), str(out)]
        )

    whole = start(tmp_path / "a", tmp_path / "a.json")
    killed = start(tmp_path / "b", tmp_path / "b.json")
    checkpoint = tmp_path / "b" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng().uniform(0, 0.5)))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b.json").exists(), "it ended before it was killed"
    assert start(tmp_path / "b", tmp_path / "b.json").wait() == 0
    assert whole.wait() == 0
    import json

    one, other = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "ab")
    assert len(one) == len(other) == 321
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a == pytest.approx(b, abs=1e-6)
