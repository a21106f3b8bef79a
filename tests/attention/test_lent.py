"""Texts that lend one another their prose, against the same tokens in one long text."""

from typing import Any

import pytest
import torch

from twinline.attention import ATTENTION, AttentionSpec, Lent
from twinline.config import TwinlineConfig
from twinline.model import TwinlineModel
from twinline.pooling import Latent, mean
from twinline.sentences import SPECIAL

LENGTH, HEADS, WIDTH = 8, 2, 4


def made(kind: str, block: int) -> Any:
    """An attention whose own parameters are away from their start, in float64."""
    torch.manual_seed(0)
    spec = AttentionSpec(heads=HEADS, head_dim=WIDTH, block_size=block)
    module = ATTENTION[kind](spec).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def lending() -> Lent:
    """Text 0 reads what 1 and 2 lend, text 1 what 2 lends, text 2 nothing."""
    tokens = torch.zeros(3, LENGTH, dtype=torch.bool)
    tokens[1, 2:6] = tokens[2, 1:3] = True
    reads = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    return Lent(tokens, reads)


@pytest.mark.parametrize(("kind", "block"), [("linear", 4), ("hybrid", 4), ("hybrid", LENGTH)])
def test_borrowed_tokens_count_as_if_they_stood_further_on(kind: str, block: int) -> None:
    module, lent = made(kind, block), lending()
    q, k, v = (torch.randn(3, HEADS, LENGTH, WIDTH, dtype=torch.float64) for _ in range(3))
    out = module(q, k, v, None, lent)
    for text, lenders in ((0, (1, 2)), (1, (2,)), (2, ())):
        more = [tuple(x[one : one + 1, :, lent.tokens[one]] for x in (q, k, v)) for one in lenders]
        # In blocks of their own, so that none of them is near.
        parts = [(q[text : text + 1], k[text : text + 1], v[text : text + 1]), *more]
        pad = [-part[0].shape[2] % block for part in parts]
        joined = [
            torch.cat([torch.nn.functional.pad(part[i], (0, 0, 0, n)) for part, n in
                       zip(parts, pad, strict=True)], dim=2) for i in range(3)
        ]  # fmt: skip
        states = torch.cat([torch.arange(part[0].shape[2] + n) < part[0].shape[2] for part, n in
                            zip(parts, pad, strict=True)])  # fmt: skip
        if kind == "hybrid" and not states.all():
            continue  # padding inside would be closed up: blocks count real tokens
        want = module(*joined, states[None])[:, :, :LENGTH]
        torch.testing.assert_close(out[text : text + 1], want)


def test_what_is_read_is_one_mask_over_all_texts() -> None:
    lent = lending()
    real = torch.ones(3, LENGTH, dtype=torch.bool)
    real[2, 5:] = False
    mask = lent.mask(real).view(3, 3, LENGTH)
    assert torch.equal(mask[0, 0], real[0])
    assert torch.equal(mask[0, 1], lent.tokens[1])
    assert torch.equal(mask[2, 2], real[2])
    assert not mask[2, :2].any()
    assert not mask[1, 0].any()


def test_poolings_read_what_is_lent() -> None:
    torch.manual_seed(0)
    lent, real = lending(), torch.ones(3, LENGTH, dtype=torch.bool)
    states = torch.randn(3, LENGTH, 12)
    pool = Latent(12, 3)
    torch.nn.init.normal_(pool.stca.layers[0].key, std=0.3)
    flat = states.flatten(0, 1)
    vectors, weights = pool([flat], lent.mask(real))
    own = torch.cat([states[0], states[1, 2:6], states[2, 1:3]])[None]
    want, _ = pool([own], torch.ones(1, own.shape[1], dtype=torch.bool))
    torch.testing.assert_close(vectors[:1], want)
    assert weights[0].shape == (3, 3, 3 * LENGTH)
    torch.testing.assert_close(mean(flat, lent.mask(real))[:1], own.mean(dim=1))


@pytest.mark.parametrize("attention", ["linear", "hybrid", "softmax", "lightning"])
def test_a_model_without_borrowers_is_not_changed(attention: str) -> None:
    torch.manual_seed(0)
    config = TwinlineConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=24, position_table=16, block_size=4, attention=attention,
        pooling="latent",
    )  # fmt: skip
    model = TwinlineModel(config).eval()
    ids = torch.randint(5, 50, (3, LENGTH))
    none = Lent(torch.ones(3, LENGTH, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool))
    torch.testing.assert_close(model(ids, lent=none).pooler_output, model(ids).pooler_output)
    some = lending()
    borrowed = model(ids, lent=some).pooler_output
    assert not torch.allclose(borrowed[0], model(ids).pooler_output[0])
    torch.testing.assert_close(borrowed[2], model(ids).pooler_output[2])


def test_special_tokens_of_no_borrower_are_pooled_where_words_are() -> None:
    torch.manual_seed(0)
    config = TwinlineConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=24, position_table=16, block_size=4, attention="hybrid",
        pooling="sentence", sentences=True, words_only=True,
    )  # fmt: skip
    model = TwinlineModel(config).eval()
    ids, lent = torch.randint(5, 50, (3, LENGTH)), lending()
    ids[:, 0], ids[:, -1] = 2, 3
    assert model.roles is not None
    model.roles[2:4] = SPECIAL
    weights = model(ids, lent=lent, output_attentions=True).attentions[-1]
    own = weights.unflatten(2, (3, LENGTH)).diagonal(dim1=0, dim2=2)  # (heads, length, texts)
    assert own[:, [0, -1]].abs().max() == 0
    assert own[:, 1:-1].min() > 0
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 3))
