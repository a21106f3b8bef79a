"""STCA against its formula with keys and values made, and the pooling that it is used in."""

import math

import pytest
import torch
from torch import Tensor

from twinline.config import TwinlineConfig
from twinline.model import TwinlineModel
from twinline.pooling import Latent, mean
from twinline.stca import PIECE, STCA, Sentences


def random_stca(layers: int = 2, matching: bool = False, sentences: bool = False) -> STCA:
    """Every parameter away from its start."""
    torch.manual_seed(0)
    module = STCA(12, 3, layers, matching, sentences).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def written_out(
    module: STCA, target: Tensor, history: Tensor, starts: Tensor | None = None
) -> Tensor:
    """The formula for one text without padding, (width,)."""
    known, whole = [target], history.mean(dim=0)
    of = history
    if starts is not None:  # each state's sentence's mean
        number = starts.long().cumsum(dim=0)
        of = torch.stack([history[number == n].mean(dim=0) for n in number])
    for layer in module.layers:
        x = torch.cat(known)
        fed = layer.down @ (torch.nn.functional.silu(layer.gate @ x) * (layer.up @ x))
        q = layer.norm(fed + target if layer.matching else fed).view(3, 4)
        keys = torch.einsum("hdx,nx->hnd", layer.key, history)
        values = torch.einsum("hdx,nx->hnd", layer.value, history)
        logits = torch.einsum("hd,hnd->hn", q, keys) / math.sqrt(4)
        if layer.of_sentence is not None:
            logits = logits + torch.einsum("hd,hdx,nx->hn", q, layer.of_sentence, of) / math.sqrt(4)
        logits = logits + math.sqrt(12) * torch.einsum("hx,x,nx->hn", layer.contrast, whole, of)
        weights = (layer.sharpness * math.log(len(history)) * logits).softmax(-1)
        read = layer.out @ torch.einsum("hn,hnd->hd", weights, values).flatten()
        known.insert(len(known) - 1, read)
    return known[-2]


@pytest.mark.parametrize("matching", [False, True])
@pytest.mark.parametrize("lengths", [(7, 3, 2), (PIECE + 5, 20, 2 * PIECE)])
def test_it_is_the_formula_whatever_the_padding(lengths: tuple[int, ...], matching: bool) -> None:
    module = random_stca(matching=matching)
    target = torch.randn(3, 12, dtype=torch.float64)
    history = torch.randn(3, max(lengths) + 1, 12, dtype=torch.float64)
    mask = torch.zeros(3, max(lengths) + 1, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, row % 2 : row % 2 + length] = True  # padding on either side
    made, _ = module(target, history, mask)
    for row in range(3):
        want = written_out(module, target[row], history[row, mask[row]])
        torch.testing.assert_close(made[row], want)


@pytest.mark.parametrize("sentences", [False, True])
def test_gradients_are_those_of_the_formula(sentences: bool) -> None:
    module = random_stca(3, sentences=sentences)
    target = torch.randn(1, 12, dtype=torch.float64, requires_grad=True)
    history = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 9, dtype=torch.bool)
    starts = torch.tensor([[1, 0, 0, 0, 1, 1, 0, 0, 0]]).bool() if sentences else None
    inputs = (target, history, *module.parameters())
    told = None if starts is None else Sentences.of(history, starts, mask)
    made = torch.autograd.grad(module(target, history, mask, told)[0].square().sum(), inputs)
    by_hand = written_out(module, target[0], history[0], None if starts is None else starts[0])
    want = torch.autograd.grad(by_hand.square().sum(), inputs)
    torch.testing.assert_close(made, want)


def test_sentences_of_several_texts_as_of_one_history() -> None:
    """As lent prose is read: each text's own history is a part of the one that all read."""
    module, real = random_stca(sentences=True), torch.rand(3, PIECE + 9) < 0.9
    history = torch.randn(3, PIECE + 9, 12, dtype=torch.float64)
    starts = (torch.rand(3, PIECE + 9) < 0.05) & real
    target = torch.randn(3, 12, dtype=torch.float64)
    sentences = Sentences.of(history, starts, real)
    mask = torch.zeros(3, 3, PIECE + 9, dtype=torch.bool)
    for row in range(3):
        mask[row, row] = real[row]
    made, _ = module(
        target, history.flatten(0, 1), mask.flatten(1), sentences.joined(history, mask.flatten(1))
    )
    torch.testing.assert_close(made, module(target, history, real, sentences)[0])
    first = sentences.number[0] == 3
    torch.testing.assert_close(sentences.means[0, 3], history[0, first & real[0]].mean(dim=0))


def test_latent_pooling_learns_to_read_the_sentence_that_is_unlike_its_text() -> None:
    """Of prose never seen before: only what differs from the rest of each text can tell."""

    def texts(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        kind = torch.randn(16, 1, 12, generator=generator)
        made = kind + 0.3 * torch.randn(16, 40, 12, generator=generator)
        other = torch.randn(16, 1, 12, generator=generator)
        made[:, 20:25] = other + 0.3 * torch.randn(16, 5, 12, generator=generator)
        return made, other[:, 0]

    torch.manual_seed(0)
    pool, mask = Latent(12, 3, sentences=True), torch.ones(16, 40, dtype=torch.bool)
    starts = (torch.arange(40) % 5 == 0).expand(16, -1)
    optim = torch.optim.Adam(pool.parameters(), lr=0.02)

    def share(states: Tensor) -> Tensor:
        _, weights = pool([states], mask, Sentences.of(states, starts, mask))
        return weights[-1][:, :, 20:25].sum(dim=-1)

    for step in range(150):
        loss = -share(texts(step)[0]).clamp_min(1e-9).log().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert share(torch.zeros(16, 40, 12)).mean() < 0.2  # nothing differs
    assert share(texts(1000)[0]).mean() > 0.8


def test_a_matching_one_starts_by_reading_what_is_most_like_the_target() -> None:
    history = 3 * torch.nn.functional.normalize(torch.randn(1, 20, 48), dim=-1)
    mask = torch.ones(1, 20, dtype=torch.bool)
    read, weights = STCA(48, 1, matching=True)(0.2 * history[:, 7], history, mask)
    assert weights[-1][0, 0].argmax() == 7
    assert weights[-1][0, 0, 7] > 0.9
    torch.testing.assert_close(read, (weights[-1] @ history)[:, 0])


def test_an_empty_history_reads_nothing() -> None:
    made, _ = random_stca()(torch.randn(1, 12), torch.randn(1, 4, 12), torch.zeros(1, 4).bool())
    assert made.abs().max() == 0


def test_latent_pooling_starts_as_the_mean_and_learns_to_choose() -> None:
    pool = Latent(12, 3)
    states, mask = torch.randn(4, 50, 12), torch.ones(4, 50, dtype=torch.bool)
    torch.testing.assert_close(pool([states], mask)[0], mean(states, mask))
    # One token in fifty is marked; only a choice can tell what else it says.
    states[:, :, 0] = 0.0
    states[:, 17, 0] = 4.0
    optim = torch.optim.Adam(pool.parameters(), lr=0.02)
    before = after = float("nan")
    for step in range(150):
        loss = (pool([states], mask)[0][:, 1:] - states[:, 17, 1:]).square().mean()
        after = loss.item()
        before = after if step == 0 else before
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert after < 0.05 * before


def test_a_model_with_latent_pooling_starts_as_one_with_mean() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 12, "num_hidden_layers": 2,
             "num_attention_heads": 3, "intermediate_size": 24}  # fmt: skip
    one = TwinlineModel(TwinlineConfig(**shape, attention="linear", pooling="mean")).eval()
    other = TwinlineModel(TwinlineConfig(**shape, attention="linear", pooling="latent")).eval()
    missing, extra = other.load_state_dict(one.state_dict(), strict=False)
    assert all(name.startswith("pool.") for name in missing)
    assert not extra
    ids = torch.randint(5, 50, (3, 30))
    torch.testing.assert_close(other(ids).pooler_output, one(ids).pooler_output)
