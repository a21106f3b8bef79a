"""Lengths of training steps: U-shaped, by stages, and a function of the step alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline.conversion import convert
from twinline.data import Pairs, load
from twinline.data.carriers import Carrier
from twinline.data.long import Builder
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.options import DistillOptions, LengthOptions
from twinline.training import distill
from twinline.training.lengths import Lengths, LongSteps


def test_lengths_are_u_shaped_around_the_mean_asked_for() -> None:
    lengths = Lengths(LengthOptions(greatest=(2048,), mean=0.2, edge=0.1), steps=4000)
    drawn = np.array([lengths[step] for step in range(4000)])
    assert ((drawn >= 64) & (drawn <= 2048) & (drawn % 8 == 0)).all()
    assert drawn.mean() == pytest.approx(64 + 0.2 * (2048 - 64), rel=0.1)
    ends = (drawn < 300) | (drawn > 1800)
    assert ends.mean() > 0.7  # a quarter, were they even
    assert (drawn > 1800).mean() > 0.07
    assert lengths[7] == Lengths(lengths.options, 4000)[7]
    assert drawn.tolist() != [Lengths(lengths.options, 4000, seed=1)[s] for s in range(4000)]


def test_stages_grow() -> None:
    options = LengthOptions(greatest=(128, 512), shares=(0.75, 0.25))
    lengths = Lengths(options, steps=400)
    assert [lengths.stage(step) for step in (0, 299, 300, 399)] == [0, 0, 1, 1]
    drawn = [lengths[step] for step in range(400)]
    assert max(drawn[:300]) <= 128 < max(drawn[300:]) <= 512


def test_equal_tokens_means_fewer_pairs_where_texts_are_long() -> None:
    lengths = Lengths(LengthOptions(greatest=(512,), equal="tokens"), steps=300)
    tokens = [lengths.pairs(step, 32) * lengths[step] for step in range(300)]
    assert np.mean(tokens) == pytest.approx(32 * 64, rel=0.05)
    assert np.std(tokens) < 0.1 * np.mean(tokens)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"least": 8}, "least must be at least 16"),
        ({"greatest": (512, 128)}, "greatest must rise"),
        ({"greatest": ()}, "greatest must rise"),
        ({"shares": (0.5, 0.5)}, "for each of 3 stages"),
        ({"shares": (0.5, 0.5, 0.5)}, "1 in all"),
        ({"mean": 1.0}, "mean must lie between"),
        ({"edge": 0.5, "mean": 0.2}, "no U-shaped Beta"),
        ({"equal": "seconds"}, "equal must be one of pairs, tokens, not"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(TwinlineError, match=told):
        LengthOptions(**options)  # type: ignore[arg-type]


def long_steps(
    pairs: Pairs, tokenizer: Any, steps: int, construction: str = "context"
) -> LongSteps:
    prose = {str(i): "The sun and rain. Dogs run fast. A green grass." * 60 for i in range(3)}
    builder = Builder(pairs, construction, tokenizer, Carrier(prose, tokenizer, "test"))
    return LongSteps((builder,), Lengths(LengthOptions(least=16, greatest=(24, 64)), steps))


def test_a_student_reads_its_pairs_as_long_ones(
    tiny_bert: Path, tiny_pairs: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    torch.manual_seed(0)
    student = Encoder(convert(tiny_bert, attention="linear", pooling="latent"))
    options = DistillOptions(alpha=0, epochs=2, pairs=8, learning_rate=1e-3)
    steps = 2 * -(-len(pairs) // 8)
    read: list[set[int]] = []
    original = student.read
    monkeypatch.setattr(
        student,
        "read",
        lambda ids, lent: (read.append({len(row) for row in ids}), original(ids))[1],
    )
    longer = long_steps(pairs, tiny_tokenizer, steps)
    run = distill(student, pairs, options=options, longer=longer)
    assert run.step == steps
    assert read == [{longer.lengths[step]} for step in range(steps)]
    assert run.tokens > 16 * 2 * len(pairs)


def test_a_pair_that_does_not_fit_is_left_out_of_its_step(
    tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    short = load(str(tiny_pairs), scale=(0, 1)).select(range(3))
    pairs = Pairs(
        [*short.sentence1[:2], "rain " * 30], short.sentence2, short.score, (0, 1), "x", "y"
    )
    longer = long_steps(pairs, tiny_tokenizer, 10)
    built = longer(0, [0, 2, 1])
    assert built.rows == [0, 1]
    assert len(built.texts) == len(built.spans) == 4
    built = longer(0, [2])  # all are left out: the step's texts become longer
    assert built.rows == [2]
    assert len(tiny_tokenizer(built.texts)["input_ids"][0]) in (32, 48)
    with pytest.raises(TwinlineError, match="evaluate on composites"):
        long_steps(short, tiny_tokenizer, 10, "composite")


def test_virtual_texts_are_short_ones_that_read_others(
    tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    builder = long_steps(pairs, tiny_tokenizer, 1).builders[0]
    options = LengthOptions(least=16, greatest=(256,), mean=0.5, edge=0.4, real=32, equal="tokens",
                            native=0.2)  # fmt: skip
    lengths = Lengths(options, steps=60)
    native = 0
    for step in range(60):
        built = LongSteps((builder,), lengths)(step, list(range(32)))
        sizes = {len(ids) for ids in tiny_tokenizer(built.texts)["input_ids"]}
        if not lengths[step]:
            native += 1
            assert built.texts[: len(built.rows)] == [pairs.sentence1[r] for r in built.rows]
            continue
        assert len(sizes) == 1
        real = sizes.pop()
        assert real <= 32
        for text, (start, end), row in zip(built.texts, built.spans, built.rows * 2, strict=True):
            assert 0 < end - start < real
            assert pairs.sentence1[row] in text or pairs.sentence2[row] in text
        if lengths[step] > real:
            assert built.reads is not None
            assert not built.reads.diagonal().any()
            prose = real - float(np.mean([end - start for start, end in built.spans]))
            read = real + built.reads.sum(axis=1) * prose
            fits = min(lengths[step], real + (len(built.texts) - 1) * prose)
            assert read.mean() == pytest.approx(fits, abs=0.6 * prose)
    assert 3 < native < 25


@pytest.mark.parametrize("construction", ["context", "keyed"])
def test_texts_that_lend_take_their_prose_from_one_document(
    construction: str, tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    stories = ("The sun and rain.", "Dogs run fast.")
    prose = {story: f"{story} " * 300 for story in stories}
    builder = Builder(pairs, construction, tiny_tokenizer, Carrier(prose, tiny_tokenizer, "test"))
    options = LengthOptions(least=64, greatest=(512,), mean=0.9, edge=0.4, real=64)
    longer = LongSteps((builder,), Lengths(options, 20))
    built = [one for step in range(20) if (one := longer(step, range(8))).reads is not None]
    told = [{story for story in stories for text in one.texts if f"{story} {story}" in text}
            for one in built]  # fmt: skip
    assert all(len(step) == 1 for step in told)
    assert set.union(*told) == set(stories)


def test_windows_borrow_texts_of_prose_alone(tiny_pairs: Path, tiny_tokenizer: Any) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    builder = long_steps(pairs, tiny_tokenizer, 1).builders[0]
    options = LengthOptions(least=16, greatest=(256,), mean=0.5, edge=0.4, real=32)
    longer = LongSteps((builder,), Lengths(options, steps=20), apart=True)
    seen = 0
    for step in range(20):
        built = longer(step, [0, 1, 2, 3])
        if built.reads is not None:
            seen += 1
            texts = 2 * len(built.rows)
            prose = len(built.texts) - texts
            real = longer.lengths.real(step)
            assert prose == round((longer.lengths[step] - real) / real)
            assert len(built.rows) == max(2, 4 - prose // 2)  # a step's tokens stay what they were
            assert built.spans[texts:] == [(0, 0)] * prose
            assert not built.reads[:, :texts].any()
            assert built.reads[:texts, texts:].all()
    assert seen


def test_texts_with_pointers_lend_one_another_nothing(
    tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    builder = long_steps(pairs, tiny_tokenizer, 1, "keyed").builders[0]
    options = LengthOptions(least=64, greatest=(512,), mean=0.5, edge=0.4, real=64)
    longer = LongSteps((builder,), Lengths(options, steps=20))
    built = [one for step in range(20) if (one := longer(step, range(8))).reads is not None]
    assert built
    for one in built:
        texts = 2 * len(one.rows)
        assert one.reads is not None
        assert not one.reads[:, :texts].any()
        assert not any("counts" in text for text in one.texts[texts:])


def test_a_repeated_sentence_neither_lends_nor_borrows(
    tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    builder = long_steps(pairs, tiny_tokenizer, 1, "repeat").builders[0]
    options = LengthOptions(least=64, greatest=(512,), mean=0.5, edge=0.4, real=128)
    longer = LongSteps((builder,), Lengths(options, steps=20))
    assert max(longer.lengths[step] for step in range(20)) > 128
    for step in range(20):
        built = longer(step, range(4))
        sizes = {len(ids) for ids in tiny_tokenizer(built.texts)["input_ids"]}
        assert sizes == {longer.lengths.real(step)}
        assert built.reads is None
        assert all(text.count(pairs.sentence1[row]) > 1
                   for text, row in zip(built.texts, built.rows, strict=False))  # fmt: skip


def test_a_step_of_few_pairs_takes_any_of_its_batch(tiny_pairs: Path, tiny_tokenizer: Any) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    builder = long_steps(pairs, tiny_tokenizer, 1).builders[0]
    options = LengthOptions(least=16, greatest=(64,), mean=0.5, edge=0.4, equal="tokens")
    longer = LongSteps((builder,), Lengths(options, steps=60))
    few = [one.rows for step in range(60) if len((one := longer(step, range(8))).rows) < 4]
    assert max(max(rows) for rows in few) > 4


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("attention", ["linear", "hybrid"])
def test_training_on_virtual_texts_finds_the_sentence(
    attention: str, apart: bool, tiny_bert: Path, tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    torch.manual_seed(0)
    model = convert(tiny_bert, attention=attention, pooling="latent", block_size=8, sentences=apart,
                    anchors=apart)  # fmt: skip
    student = Encoder(model)
    steps = 40
    options = DistillOptions(
        alpha=0, epochs=steps / 8, pairs=8, learning_rate=3e-3, match=1.0, states=0.5, attend=1.0,
        gather=0.1, schedule="constant", added_rate=3,
    )  # fmt: skip
    builder = long_steps(pairs, tiny_tokenizer, steps).builders[0]
    lengths = LengthOptions(least=16, greatest=(128,), mean=0.5, edge=0.4, real=32)
    longer = LongSteps((builder,), Lengths(lengths, steps))
    run = distill(student, pairs, options=options, longer=longer, twin=Encoder(tiny_bert))
    losses = [line.loss for line in run.log if line.loss is not None]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_what_long_training_cannot_use_is_refused(
    tiny_bert: Path, tiny_pairs: Path, tiny_tokenizer: Any
) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    student = Encoder(convert(tiny_bert, attention="linear"))
    with pytest.raises(TwinlineError, match=r"attend=0\.1 is for latent pooling"):
        distill(student, pairs, options=DistillOptions(alpha=0, attend=0.1))
    with pytest.raises(TwinlineError, match="states=1 needs a twin"):
        distill(student, pairs, options=DistillOptions(alpha=0, states=1))
    few = torch.zeros(3, 16)
    with pytest.raises(TwinlineError, match="3 goals do not fit"):
        distill(student, pairs, options=DistillOptions(alpha=0, match=1), goals=few,
                twin=Encoder(tiny_bert))  # fmt: skip
    windowed = Encoder(convert(tiny_bert, attention="softmax"), windows=16)
    with pytest.raises(TwinlineError, match="longer than the student's windows"):
        distill(windowed, pairs, options=DistillOptions(alpha=0, epochs=0.1, states=1),
                twin=Encoder(tiny_bert), longer=long_steps(pairs, tiny_tokenizer, 20))  # fmt: skip
