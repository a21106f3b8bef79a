"""Field case 8: a scorer's fingerprint changes with its scores, and with nothing else.

Every public option is changed in turn, on texts that exceed every limit. A fingerprint differs if
a score moves by more than 1e-5, and is equal if none does.
"""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline import Encoder, Teacher, convert
from twinline.evaluate import far_off
from twinline.precision import int8_here
from vocabulary import WORDS

DRAW = np.random.default_rng(0)
LONG = [" ".join(DRAW.choice(WORDS, count)) for count in (150, 90, 200, 70)]
PAIRS = [(LONG[0], LONG[1]), ("dogs run", LONG[2]), (LONG[3], "rain"), ("a man", "a woman")]
BASE = {"max_tokens": 60, "on_overflow": "truncate", "windows": 16}
ENCODERS: dict[str, list[Any]] = {
    "similarity": ["cosine", "dot"],
    "device": ["cpu"],
    "max_tokens": [40, None],
    "on_overflow": ["warn"],
    "dtype": ["float32", "bfloat16", "int8"],
    "calibration": [LONG],
    "windows": [24, 60, 80, None],
}
"""Other values of each option of ``Encoder``."""
TEACHERS: dict[str, list[Any]] = {
    "scale": [(-40.0, 40.0), [(-50, 50)], ["logit"]],
    "both_orders": [False],
    "cache": ["scores.sqlite"],
    "device": ["cpu"],
    "on_overflow": ["truncate", "warn"],
}
"""Other values of each option of ``Teacher``."""


def compare(one: Teacher, other: Teacher) -> tuple[bool, bool]:
    """Whether scores move by more than 1e-5, and whether the fingerprints differ."""
    moved = np.abs(one.predict(PAIRS) - other.predict(PAIRS)).max() > 1e-5
    return bool(moved), one.fingerprint != other.fingerprint


def options(kind: type) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_field_08_no_option_is_forgotten() -> None:
    assert options(Encoder) == ENCODERS.keys()
    assert options(Teacher) == TEACHERS.keys()


@pytest.mark.filterwarnings("ignore:.*longer than max_tokens")
@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in ENCODERS.items() for value in values]
)
@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_field_08_a_twins_fingerprint_follows_its_scores(
    tiny_bert: Path, attention: str, option: str, value: Any
) -> None:
    def build(**changes: Any) -> Teacher:
        encoder = Encoder(convert(tiny_bert, attention), **{**BASE, **changes})
        # Vectors are not normalised here: their dot products are large.
        return Teacher(encoder, scale=[(-50, 50) if option == "similarity" else (-1, 1)])

    if (option == "calibration" or value == "int8") and not int8_here():
        pytest.skip("this processor has no VNNI")
    whole = {"dtype": "int8"} if option == "calibration" else {}
    moved, differ = compare(build(**whole), build(**whole, **{option: value}))
    assert differ == moved


@pytest.mark.filterwarnings("ignore:.*longer than the teacher")
@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in TEACHERS.items() for value in values]
)
def test_field_08_a_cross_encoders_fingerprint_follows_its_scores(
    cross_encoder: Path, tmp_path: Path, option: str, value: Any
) -> None:
    def build(**changes: Any) -> Teacher:
        return Teacher(cross_encoder, **{"scale": (-50, 50), "on_overflow": "windows", **changes})

    value = tmp_path / value if option == "cache" else value
    moved, differ = compare(build(), build(**{option: value}))
    assert differ == moved


@pytest.mark.parametrize("changes", [{"both_orders": False}, {"scale": (0, 1)}, {"scale": ["unit"]},
                                     {"on_overflow": "windows"}, {"scale": (-1, 1)}])  # fmt: skip
def test_field_08_a_teachers_options_count_for_a_twin_only_where_they_reach_it(
    student: Path, changes: dict[str, Any]
) -> None:
    moved, differ = compare(Teacher(student), Teacher(student, **changes))
    assert differ == moved


def far(encoder: Encoder) -> None:
    for layer in encoder.model.each_layer():
        layer.attention.far = False  # type: ignore[assignment]


def weight(encoder: Encoder) -> None:
    with torch.no_grad():
        encoder.model.embeddings.word.weight.data.mul_(1.5)


def head(encoder: Encoder) -> None:
    with torch.no_grad():
        encoder.head.out.bias.data.add_(0.1)  # type: ignore[operator, union-attr]


def prompt(encoder: Encoder) -> None:
    encoder.prompts, encoder.default_prompt_name = {"query": "the sun "}, "query"


def unused_prompt(encoder: Encoder) -> None:
    encoder.prompts = {"query": "the sun "}


@pytest.mark.parametrize("change", [far, weight, head, prompt, unused_prompt])
def test_field_08_what_is_changed_later_counts_too(
    tiny_bert: Path, change: Callable[[Encoder], None]
) -> None:
    model = convert(tiny_bert, "hybrid", block_size=8)
    encoder = Encoder(model, similarity="dse")
    teacher = Teacher(encoder, scale=[(-9, 9)])
    scores, print_ = teacher.predict(PAIRS), teacher.fingerprint
    change(encoder)
    moved = np.abs(teacher.predict(PAIRS) - scores).max() > 1e-5
    assert moved == (change is not unused_prompt)
    assert (teacher.fingerprint != print_) == moved


def test_field_08_one_cache_serves_scorers_that_differ(tiny_bert: Path, tmp_path: Path) -> None:
    """The case as it was found: windows, the linear branch and int8 read another's scores."""
    cache = tmp_path / "scores.sqlite"
    for attention in ("linear", "hybrid"):
        model = convert(tiny_bert, attention)
        for changes in ({}, {"windows": 32}, {"dtype": "int8" if int8_here() else "bfloat16"}):
            encoder = Encoder(model, **changes)
            fresh = Teacher(encoder).predict(PAIRS)
            assert Teacher(encoder, cache=cache).predict(PAIRS) == pytest.approx(fresh, abs=1e-6)
        if attention == "hybrid":
            encoder = Encoder(model)
            with far_off(encoder.model):
                fresh = Teacher(encoder).predict(PAIRS)
                cached = Teacher(encoder, cache=cache).predict(PAIRS)
            assert cached == pytest.approx(fresh, abs=1e-6)


def test_field_08_a_cross_encoder_that_was_trained_on_misses_the_cache(
    cross_encoder: Path, tmp_path: Path
) -> None:
    teacher = Teacher(
        cross_encoder, scale="logit", on_overflow="windows", cache=tmp_path / "scores.sqlite"
    )
    before = teacher.predict(PAIRS)
    with torch.no_grad():
        teacher.scorers[0].model.classifier.bias.add_(1)  # type: ignore[attr-defined]
    assert (teacher.predict(PAIRS) > before).all()


def test_field_08_what_a_cross_encoders_tokenizer_gives_counts(
    cross_encoder: Path, tmp_path: Path
) -> None:
    """Without token types its model reads both texts as one kind."""
    shutil.copytree(cross_encoder, tmp_path / "ce")
    file = tmp_path / "ce" / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask", "token_type_ids"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **names}))
    built = [
        Teacher(folder, scale="logit", on_overflow="windows")
        for folder in (cross_encoder, tmp_path / "ce")
    ]
    moved, differ = compare(*built)
    assert moved
    assert differ


def test_how_fast_a_score_is_made_never_counts(student: Path, tmp_path: Path) -> None:
    """A copy in another folder, saved by another tool's hand, is the same scorer."""
    encoder = Encoder(student)
    print_ = encoder.fingerprint
    encoder.save(tmp_path / "copy")
    encoder.score(LONG[:1], LONG[1:2], batch_size=1, max_batch_tokens=8, show_progress_bar=False)
    assert encoder.fingerprint == print_ == Encoder(tmp_path / "copy").fingerprint
