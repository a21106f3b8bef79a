"""The model by itself: shapes, independence of the batch, positions, saving and loading."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinline.attention import ATTENTION
from twinline.config import POSITION_RULES, TwinlineConfig
from twinline.errors import TwinlineError
from twinline.local import convolved, shifted
from twinline.model import Embeddings, TwinlineModel
from twinline.pooling import POOLINGS

TINY = {
    "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 3,
    "intermediate_size": 20, "position_table": 16, "block_size": 5, "initializer_range": 0.2,
}  # fmt: skip
PLAIN = [name for name, pooling in POOLINGS.items() if not pooling.looks]
"""Poolings that can do without sentences; the other is in test_bysentence.py."""
VARIANTS = [
    {"attention": "softmax"},
    {"attention": "linear", "feature_map": "hedgehog", "feature_dim": 9},
    {"attention": "linear", "feature_map": "elu"},
    {"attention": "linear", "local": 5},
    {"attention": "linear", "sharpen": True},
    {"attention": "hybrid", "sharpen": True},
    {"attention": "hybrid", "local": 3},
    {"attention": "lightning"},
    {"attention": "lightning", "normalisation": "rms", "learn_decay": False},
    {"attention": "hybrid"},
    {"attention": "hybrid", "neighbours": 1, "feature_map": "exp"},
]


def tiny(seed: int = 0, **options: Any) -> TwinlineModel:
    """A tiny model with every parameter, the attention's own included, away from its start."""
    torch.manual_seed(seed)
    model = TwinlineModel(TwinlineConfig(**{**TINY, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tokens(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, TINY["vocab_size"], (1, length), generator=generator)


def name(value: Any) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("pooling", PLAIN)
@pytest.mark.parametrize("variant", VARIANTS, ids=name)
@torch.no_grad()
def test_a_text_has_one_vector_wherever_its_padding_stands(variant: dict, pooling: str) -> None:
    model = tiny(pooling=pooling, **variant)
    lengths = [23, 11, 5, 1]
    ids, mask = torch.zeros(8, 26, dtype=torch.long), torch.zeros(8, 26, dtype=torch.long)
    for row, length in enumerate(lengths):
        own = tokens(length, seed=row)
        ids[row, :length], mask[row, :length] = own, 1
        ids[row + 4, 26 - length :], mask[row + 4, 26 - length :] = own, 1
    batch = model(ids, mask)
    assert batch.last_hidden_state.shape == (8, 26, 12)
    assert batch.pooler_output.shape == (8, model.config.projection_dim)
    assert model.config.projection_dim == 12 * POOLINGS[pooling].layers
    assert torch.isfinite(batch.last_hidden_state).all()
    for row, length in enumerate(lengths):
        alone = model(tokens(length, seed=row))
        close(batch.pooler_output[row], alone.pooler_output[0])
        close(batch.pooler_output[row + 4], alone.pooler_output[0])
        close(batch.last_hidden_state[row, :length], alone.last_hidden_state[0])
        close(batch.last_hidden_state[row + 4, 26 - length :], alone.last_hidden_state[0])


@pytest.mark.parametrize("rule", POSITION_RULES)
@pytest.mark.parametrize("variant", [*VARIANTS, {"attention": "hybrid", "far": False}], ids=name)
@pytest.mark.parametrize("padding", ["right", "left", "none"])
def test_piece_by_piece_is_the_same_as_at_once(
    variant: dict, padding: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts, many texts and short ones, with a gradient asked for (at once) and without."""
    model = tiny(pooling="top4", position_rule=rule, **variant)
    ids = torch.cat([tokens(53, seed=row) for row in range(3)])
    mask = torch.arange(53) < torch.tensor([[53], [29], [4]])
    mask = {"right": mask, "left": mask.flip(1), "none": torch.ones_like(mask)}[padding]
    for piece, kept in ((7, 1000), (7, 20), (60, 1000)):
        monkeypatch.setattr("twinline.model.PIECE", piece)
        monkeypatch.setattr("twinline.model.KEPT", kept)
        at_once = model(ids, mask)
        with torch.no_grad():
            pieces = model(ids, mask)
        close(pieces.pooler_output, at_once.pooler_output)
        close(pieces.last_hidden_state[mask], at_once.last_hidden_state[mask])


def close(x: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(x, want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_poolings_are_what_they_say() -> None:
    ids, mask = tokens(6), torch.tensor([[0, 1, 1, 1, 0, 0]])
    for pooling in PLAIN:
        model = tiny(pooling=pooling)
        out = model(ids, mask, output_hidden_states=True)
        states = [h[0, 1:4] for h in out.hidden_states]
        assert len(states) == 5
        close(states[-1], out.last_hidden_state[0, 1:4])
        want = {
            "mean": states[-1].mean(0),
            "cls": states[-1][0],
            "top4": torch.cat([h.mean(0) for h in states[1:]]),
        }
        if pooling == "latent":  # its formula is in test_stca.py; here, that padding is not read
            alone = torch.ones(1, 3, dtype=torch.bool)
            want[pooling] = model.pool([states[-1][None]], alone)[0][0]
        close(out.pooler_output[0], want[pooling])
        assert torch.equal(model(ids, mask, return_dict=False)[1], out.pooler_output)
    assert not tiny(pooling="mean")(ids, mask * 0).pooler_output.any()


def positions(embeddings: Embeddings, mask: Tensor) -> Tensor:
    place = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
    return embeddings.positions(place, place.amax(dim=1, keepdim=True))


@torch.no_grad()
def test_positions_are_tiled_or_squeezed_beyond_the_table() -> None:
    tiled, squeezed = (tiny(position_rule=rule).embeddings for rule in POSITION_RULES)
    table = tiled.position.weight
    within, beyond = torch.ones(1, 16).bool(), torch.ones(1, 31).bool()
    close(positions(tiled, within)[0], table)
    close(positions(squeezed, within)[0], table)
    close(positions(tiled, beyond)[0], torch.cat([table, table[:15]]))
    got = positions(squeezed, beyond)[0]  # 31 places in 16: every second one is the table's
    close(got[::2], table)
    close(got[1::2], (table[:-1] + table[1:]) / 2)
    mixed = torch.cat([beyond, beyond])
    mixed[1, 16:] = False
    close(positions(squeezed, mixed)[1, :16], table)


@pytest.mark.parametrize("rule", POSITION_RULES)
@torch.no_grad()
def test_any_length_is_read_and_those_within_the_table_alike(rule: str) -> None:
    model, other = tiny(position_rule=rule), tiny(position_rule="tiled")
    close(model(tokens(16)).pooler_output, other(tokens(16)).pooler_output)
    long = tokens(200)
    changed = long.clone()
    changed[0, -1] = changed[0, -1] % 39 + 1
    difference = model(long).pooler_output - model(changed).pooler_output
    assert difference.abs().max() > 1e-4  # the last token is read
    assert model(long).last_hidden_state.shape == (1, 200, 12)
    model = tiny(position_rule=rule, position_period=4)
    short = positions(model.embeddings, torch.ones(1, 9) > 0)
    assert short.shape == (1, 9, 12)
    last = {"tiled": 0, "interpolated": 3}[rule]
    close(short[0, 8], model.embeddings.position.weight[last])


@pytest.mark.parametrize("pooling", PLAIN)
@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_saving_and_loading_keeps_every_number(variant: dict, pooling: str, tmp_path: Path) -> None:
    model = tiny(pooling=pooling, **variant)  # tiny moves slopes, gains and maps from their start
    model.save_pretrained(tmp_path)
    again, info = TwinlineModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
    for key, value in {**TINY, **variant, "pooling": pooling}.items():
        assert getattr(again.config, key) == value
    frozen = {n for n, p in again.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert not again.training
    # Not bit by bit: a processor's kernels may add up in another order where memory lies otherwise.
    made, want = again(tokens(18)).pooler_output, model(tokens(18)).pooler_output
    torch.testing.assert_close(made, want, rtol=1e-5, atol=1e-6)


def missing_tensors() -> list[str]:
    return ["layers.1.attention.root_slope", "layers.0.attention.k_map.gain",
            "embeddings.norm.weight", "layers.3.qkv.bias"]  # fmt: skip


@pytest.mark.parametrize("tensor", missing_tensors())
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tensor: str, tmp_path: Path) -> None:
    tiny(attention="lightning").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[tensor]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TwinlineError, match=f"lacks 1 .*{tensor}"):
        TwinlineModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("attention", "flash"), ("feature_map", "cosine"), ("position_rule", "none"),
        ("pooling", "max"), ("num_attention_heads", 5), ("num_attention_heads", 0),
        ("num_hidden_layers", 0), ("position_period", 17), ("position_period", 0),
        ("position_table", 0), ("block_size", 0), ("neighbours", -1), ("feature_dim", 0),
        ("decay", -1.0), ("normalisation", "batch"), ("hidden_act", "jelu"),
        ("hidden_dropout_prob", 1.5),
    ],
)  # fmt: skip
def test_mistaken_options_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(TwinlineError, match=option) as caught:
        TwinlineConfig(**{**TINY, option: value})
    assert "\n" not in str(caught.value)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TwinlineError, match=r"top4.*num_hidden_layers is 3"):
        TwinlineConfig(**{**TINY, "num_hidden_layers": 3, "pooling": "top4"})


def test_the_config_has_no_limit_that_others_would_cut_at() -> None:
    config = TwinlineConfig(**TINY)
    assert not hasattr(config, "max_position_embeddings")
    assert "max_position_embeddings" not in config.to_json_string(use_diff=False)
    assert config.hidden_size == 12


@pytest.mark.parametrize("attention", ATTENTION)
def test_nothing_is_left_uninitialised(attention: str) -> None:
    """As transformers loads: built on the meta device, materialised empty, then initialised."""
    torch.manual_seed(0)
    config = TwinlineConfig(**TINY, attention=attention, feature_dim=9, normalisation="rms")
    want = TwinlineModel(config)
    with torch.device("meta"):
        model = TwinlineModel(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    model.initialize_weights()
    for key, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), key
        if ".attention." in key:
            assert torch.equal(tensor, want.state_dict()[key]), key


def test_auto_model_loads_it_in_a_fresh_process(tmp_path: Path) -> None:
    model = tiny(attention="hybrid", pooling="top4")
    model.save_pretrained(tmp_path)
    program = f"""
import torch
import twinline.auto
from transformers import AutoConfig, AutoModel
assert AutoConfig.from_pretrained({str(tmp_path)!r}).attention == "hybrid"
model = AutoModel.from_pretrained({str(tmp_path)!r})
ids = torch.arange(1, 19)[None]
print(model(input_ids=ids, attention_mask=ids * 0 + 1, token_type_ids=ids * 0)
      .pooler_output.double().sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    want = model(torch.arange(1, 19)[None]).pooler_output.double().sum().item()
    assert float(done.stdout) == pytest.approx(want, abs=1e-5)


def test_gradients_reach_every_trainable_parameter() -> None:
    for variant in VARIANTS:
        model = tiny(**variant).train()
        model(tokens(13)).pooler_output.square().sum().backward()
        without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert not without, variant


@pytest.mark.parametrize("rule", POSITION_RULES)
@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_bfloat16_and_autocast_stay_near_fp32(variant: dict, rule: str) -> None:
    model = tiny(position_rule=rule, **variant)
    ids, mask = tokens(34).view(2, 17), torch.ones(2, 17)
    mask[1, 9:] = 0
    want = model(ids, mask).pooler_output.detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids, mask).pooler_output
    mixed.square().sum().backward()
    mixed = mixed.detach()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    whole = model.bfloat16()(ids, mask).pooler_output.detach()
    for got in (mixed, whole):
        assert got.dtype == torch.float32
        assert float((got - want).norm() / want.norm()) < 3e-2


@pytest.mark.parametrize("length", [1, 4, 30])
def test_shifted_sums_are_the_convolution(length: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, length, 6), torch.randn(9, 6)
    assert torch.allclose(shifted(x, weight), convolved(x, weight), atol=1e-5)
