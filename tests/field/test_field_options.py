"""Row 22 of the field cases: numbers, names and flags of the wrong type are one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline import (
    DistillOptions,
    Encoder,
    Teacher,
    TeachOptions,
    TransferOptions,
    TwinlineError,
    convert,
    distill,
    teach,
    transfer,
)
from twinline.cli import main
from twinline.data import Pairs, load_texts, stretches
from twinline.data.long import Builder, long_pairs
from twinline.inspection import inspection
from twinline.options import FindOptions, LengthOptions, LoopOptions, ModelOptions, RetrievalOptions
from twinline.recipes import DistillRecipe, RetrievalRecipe

TEXTS = ["a man plays", "dogs run"]


def refused(call: Callable[[], Any], told: str) -> None:
    with pytest.raises(TwinlineError, match=told) as caught:
        call()
    assert "\n" not in str(caught.value)


ENCODE: list[tuple[dict[str, Any], str]] = [
    ({"truncate_dim": 64.0}, "truncate_dim must be a whole number or None, not 64.0"),
    ({"truncate_dim": "8"}, "truncate_dim must be a whole number or None, not '8'"),
    ({"truncate_dim": True}, "truncate_dim must be a whole number or None, not True"),
    ({"batch_size": "8"}, "batch_size must be a whole number or None, not '8'"),
    ({"batch_size": 8.0}, "batch_size must be a whole number"),
    ({"batch_size": float("nan")}, "batch_size must be a whole number or None, not nan"),
    ({"max_batch_tokens": "8"}, "max_batch_tokens must be a whole number"),
    ({"precision": None}, "precision must be one of float32, int8"),
    ({"precision": "int4"}, "precision must be one of float32, .*not 'int4'"),
    ({"precision": ["int8"]}, "precision must be one of"),
    ({"device": "potato"}, "device must be .*not 'potato'"),
    ({"device": 5.0}, "device must be .*not 5.0"),
    ({"device": "meta"}, "device 'meta' cannot be used here"),
]


@pytest.mark.parametrize(("options", "told"), ENCODE)
def test_field_22_encode(options: dict[str, Any], told: str, encoder: Encoder) -> None:
    refused(lambda: encoder.encode(TEXTS, **options), told)
    refused(lambda: list(encoder.encode_iter(TEXTS, **options)), told)
    if "precision" not in options:
        refused(lambda: encoder.score(TEXTS, TEXTS, **options), told)
        refused(lambda: encoder.rank("sun", TEXTS, **options), told)
    assert encoder.device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_tokens": "8"}, "max_tokens must be a whole number or None, not '8'"),
        ({"max_tokens": 8.0}, "max_tokens must be a whole number"),
        ({"windows": "8"}, "windows must be a whole number"),
        ({"windows": 8.5}, "windows must be a whole number"),
        ({"device": "potato"}, "device must be .*not 'potato'"),
        ({"device": 5.0}, "device must be"),
        ({"similarity": ["cosine"]}, "similarity must be one of"),
    ],
)
def test_field_22_encoder(options: dict[str, Any], told: str, encoder: Encoder) -> None:
    refused(lambda: Encoder(encoder.model, encoder.tokenizer, **options), told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_field_22_a_gpu_that_is_not_there(encoder: Encoder, tiny_bert: Path) -> None:
    for device in ("cuda", "cuda:7", torch.device("cuda")):
        refused(lambda: Encoder(tiny_bert, device=device), "device 'cuda.*cannot be used here")  # noqa: B023
        refused(lambda: encoder.encode(TEXTS, device=device), "cannot be used here")  # noqa: B023
        refused(lambda: Teacher(tiny_bert, scale="unit", device=device), "cannot be used")  # noqa: B023


def test_field_22_a_model_that_is_none() -> None:
    for model in (5, None, ["folder"]):
        refused(lambda: Encoder(model), "model must be a folder")  # noqa: B023
        refused(lambda: Teacher(model, scale="unit"), "sources are folders")  # noqa: B023
        refused(lambda: transfer(model, TEXTS), "TwinlineModel")  # noqa: B023


def test_field_22_numpys_numbers_are_numbers(tiny_bert: Path) -> None:
    encoder = Encoder(tiny_bert, max_tokens=np.int64(8), windows=np.int32(8))
    assert encoder.encode(TEXTS, truncate_dim=np.int64(4), batch_size=np.int8(1)).shape == (2, 4)
    assert len(encoder.rank("sun", TEXTS, top_k=np.int64(1))) == 1
    options = DistillOptions(alpha=np.float32(0.5), pairs=np.int64(4), freeze_words=np.bool_(True))
    assert options == DistillOptions(alpha=0.5, pairs=4, freeze_words=True)
    assert [type(value) for value in (options.alpha, options.pairs, options.freeze_words)] == [
        float, int, bool,
    ]  # fmt: skip


@pytest.mark.parametrize("top_k", ["1", 1.0, True, float("nan")])
def test_field_22_top_k(top_k: Any, encoder: Encoder) -> None:
    for scorer in (encoder, Teacher(encoder)):
        refused(lambda: scorer.rank("sun", TEXTS, top_k=top_k), "top_k must be a whole number")  # noqa: B023
        refused(lambda: scorer.rank("sun", [], top_k=top_k), "top_k must be a whole number")  # noqa: B023
        refused(lambda: scorer.rank("sun", [], top_k=0), "top_k must be at least 1")  # noqa: B023


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"both_orders": "no"}, "both_orders must be True or False"),
        ({"both_orders": 1}, "both_orders must be True or False"),
        ({"device": "potato"}, "device must be"),
    ],
)
def test_field_22_teacher(options: dict[str, Any], told: str, encoder: Encoder) -> None:
    refused(lambda: Teacher(encoder, **options), told)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TransferOptions(steps="5"), "steps must be a whole number, not '5'"),
        (lambda: TransferOptions(steps=5.0), "steps must be a whole number, not 5.0"),
        (lambda: TransferOptions(seed=True), "seed must be a whole number, not True"),
        (lambda: TransferOptions(stretches="half"), "stretches must be a number or None"),
        (lambda: TransferOptions(mass=float("nan")), "mass must be a number, not nan"),
        (lambda: TransferOptions(learning_rate=None), "learning_rate must be a number, not None"),
        (lambda: DistillOptions(alpha="x"), "alpha must be a number, not 'x'"),
        (lambda: DistillOptions(epochs=float("inf")), "epochs must be a number, not inf"),
        (lambda: DistillOptions(freeze_words=1), "freeze_words must be true or false, not 1"),
        (lambda: DistillOptions(group="yes"), "group must be true or false or None"),
        (lambda: DistillOptions(precision="fp16"), "precision must be one of fp32, tf32, bf16"),
        (lambda: DistillOptions(schedule=["linear"]), "schedule must be one of linear, constant"),
        (lambda: TeachOptions(learning_rate="1e-4"), "learning_rate must be a number"),
        (lambda: TeachOptions(patience=2.5), "patience must be a whole number"),
        (lambda: LoopOptions(max_grad_norm="1"), "max_grad_norm must be a number"),
        (lambda: FindOptions(least="64"), "least must be a whole number"),
        (lambda: LengthOptions(greatest="128"), "greatest must be a list"),
        (lambda: LengthOptions(greatest=(128, "512")), "greatest, number 2, must be a whole"),
        (lambda: LengthOptions(shares=[None]), "shares, number 1, must be a number, not None"),
        (lambda: RetrievalOptions(temperature="0.05"), "temperature must be a number"),
        (lambda: RetrievalOptions(lengths=(256, 2048)), "lengths must be a LengthOptions"),
        (lambda: ModelOptions(block_size="128"), "block_size must be a whole number"),
        (lambda: ModelOptions(position_period=1.5), "position_period must be a whole number"),
        (lambda: ModelOptions(pooling=5), "pooling must be text or None, not 5"),
        (lambda: ModelOptions(feature_map=None), "feature_map must be text, not None"),
        (lambda: DistillRecipe(train={"alpha": 1}), "train must be a DistillOptions"),
        (lambda: DistillRecipe(similarity="euclid"), "similarity must be one of cosine, dot"),
        (lambda: RetrievalRecipe(windows="512"), "windows must be a whole number or None"),
        (lambda: load_texts("builtin", limit="5"), "limit must be a whole number or None"),
        (lambda: load_texts("builtin", limit=5.0), "limit must be a whole number or None"),
        (lambda: list(stretches("a b", words="5", seed=0)), "words must be a whole number"),
    ],
)
def test_field_22_options_and_data(make: Callable[[], Any], told: str) -> None:
    refused(make, told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"block_size": "5"}, "block_size must be a whole number"),
        ({"local": "3"}, "local must be a whole number"),
        ({"decay": float("nan")}, "decay must be a number"),
        ({"sentences": "yes"}, "sentences must be true or false"),
        ({"attention": ["linear"]}, "attention must be"),
        ({"hidden_dropout_prob": "x"}, "hidden_dropout_prob"),
    ],
)
def test_field_22_conversion(options: dict[str, Any], told: str, tiny_bert: Path) -> None:
    refused(lambda: convert(tiny_bert, **options), told)


def test_field_22_transfers_options(encoder: Encoder) -> None:
    refused(lambda: transfer(encoder.model, TEXTS, {"steps": 5}), "options must be a TransferOpti")


def test_field_22_long_pairs_and_inspection(tiny_bert: Path) -> None:
    tokenizer = Encoder(tiny_bert).tokenizer
    pairs = Pairs(TEXTS, TEXTS, None, None, "made", "test")
    refused(lambda: long_pairs(pairs, "repeat", "64", tokenizer), "length must be a whole number")
    refused(lambda: long_pairs(pairs, "repeat", 64.0, tokenizer), "length must be a whole number")
    refused(lambda: long_pairs(pairs, "repeat", 64, tokenizer, seed="a"), "seed must be a whole")
    refused(lambda: long_pairs(pairs, "repeat", 64, tokenizer, rows=[2]), "rows are below 2")
    refused(lambda: long_pairs(pairs, "repeat", 64, tokenizer, rows=[0.0]), "rows must be a whole")
    refused(lambda: Builder(pairs, ["repeat"], tokenizer, None), "construction must be one of")
    refused(lambda: inspection(TEXTS, tokenizer, ["64"]), "limits must be a whole number")
    made = long_pairs(pairs, "repeat", np.int64(32), tokenizer, rows=np.array([1]))
    assert [len(ids) for ids in tokenizer(made.pairs.sentence1)["input_ids"]] == [32]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("train: {seed: 1.5}", "train.seed must be a whole number"),
        ('train: {keep_best: "yes"}', "train.keep_best must be true or false"),
        ("model: {block_size: 2.5}", "model.block_size must be a whole number"),
        ("data: builtin\nalpha: 1\ndata: stsb", "gives data twice"),
    ],
)
def test_field_22_a_recipe_files_values_are_not_rounded(
    tmp_path: Path, recipe: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(SystemExit) as stopped:
        main(["distill", str(tmp_path / "m"), "--recipe", str(tmp_path / "recipe.yaml")])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "tokens",
    [["distill", "--train.seed", "1.5"], ["distill", "--train.pairs=2.9"],
     ["convert", "--block-size", "1e2"], ["long-pairs", "--length", "64.5"],
     ["inspect", "--limits", "8", "9.5"]],
)  # fmt: skip
def test_field_22_the_command_lines_values_are_not_rounded(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([tokens[0], str(tmp_path / "m"), *tokens[1:]])
    assert stopped.value.code == 2
    assert "must be a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["normalize_embeddings", "return_token_counts", "convert_to_tensor"]
)
@pytest.mark.parametrize("value", ["False", 1, np.array([True, False])])
def test_field_22_a_flag_is_true_or_false(encoder: Encoder, option: str, value: Any) -> None:
    with pytest.raises(TwinlineError, match=f"{option} must be True or False"):
        encoder.encode(["a man"], **{option: value})


def test_field_22_what_is_trained_is_what_it_should_be(encoder: Encoder, tiny_bert: Path) -> None:
    pairs = Pairs(["a man"], ["rain"], np.array([1.0]), (0, 1), "mine", "all")
    for wrong in (
        lambda: distill("folder", pairs),
        lambda: distill(encoder.model, pairs),
        lambda: distill(encoder, "pairs.csv"),
        lambda: distill(encoder, pairs, options={"epochs": 1}),
        lambda: distill(encoder, pairs, validation="x"),
        lambda: distill(encoder, pairs, twin="x"),
        lambda: teach(tiny_bert, 5, "out"),
    ):
        with pytest.raises(TwinlineError, match="must be"):
            wrong()


def test_what_is_no_option_is_no_number(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("2e.txt").write_text("a man\n")
    main(["encode", "--max-tokens", "16", str(tiny_bert), "2e.txt", "v.npy"])
    assert np.load("v.npy").shape == (1, 16)
    main(["inspect", "2e.txt", "--model", str(tiny_bert), "--limits", "8", "--limits", "16"])


def test_a_recipe_may_build_on_itself(tmp_path: Path) -> None:
    """YAML's merge keys override on purpose; they are no key given twice."""
    from twinline.recipe import read_yaml

    (tmp_path / "r.yaml").write_text(
        "a: {x: &d {<<: &c {k: 1, j: 2}, k: 3}}\nb: {<<: *d}\nc: [1, {k: 1}]\n"
    )
    assert read_yaml(tmp_path / "r.yaml")["b"] == {"k": 3, "j": 2}
