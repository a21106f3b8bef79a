"""Pooling by the sentence against its formula, and what it learns."""

import math

import torch
from torch import Tensor

from twinline.bysentence import OfSentences, SentencePooling, Within
from twinline.stca import NEAR, PIECE, Sentences


def random_pooling(layers: int = 2) -> SentencePooling:
    """Every parameter away from its start."""
    torch.manual_seed(0)
    module = SentencePooling(12, 3, layers).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def written_out(module: SentencePooling, history: Tensor, starts: Tensor, marks: Tensor) -> Tensor:
    """The formula for one text without padding, (width,)."""
    known = [module.target]
    number = starts.long().cumsum(dim=0)
    shares = torch.stack(
        [marks[j].exp() / marks[number == n].exp().sum() for j, n in enumerate(number)]
    )
    sizes = torch.stack([(number == n).sum() for n in number])
    for layer in module.layers:
        x = torch.cat(known)
        q = layer.norm(layer.down @ (torch.nn.functional.silu(layer.gate @ x) * (layer.up @ x)))
        logits = by_sentence(layer.of_sentences, q.view(3, 4), history, number, shares)
        weights = (layer.sharpness * math.log(len(history)) * logits).exp() * sizes * shares
        weights = weights / weights.sum(dim=-1, keepdim=True)
        read = torch.einsum("hn,nhd->hd", weights, history.view(-1, 3, 4)).flatten()
        known.insert(len(known) - 1, read)
    return known[-2]


def by_sentence(
    module: OfSentences, q: Tensor, history: Tensor, number: Tensor, shares: Tensor
) -> Tensor:
    """The logits of the sentence of each state, state by state: (heads, n)."""
    of = {
        int(n): (shares[number == n, None] * history[number == n]).sum(dim=0)
        for n in number.unique()
    }
    size = {n: int((number == n).sum()) for n in of}

    def together(sentences: list[int]) -> Tensor:
        if not sentences:
            return torch.zeros(12, dtype=torch.float64)
        return sum(size[n] * of[n] for n in sentences) / sum(size[n] for n in sentences)

    made, whole = [], together(list(of))
    for n in number.tolist():
        own = of[n]
        near = together([other for other in of if 0 < abs(other - n) <= NEAR])
        like = [
            torch.cosine_similarity(module.subspace @ own, module.subspace @ other, dim=0)
            for other in (near, whole)
        ]
        terms = (module.contrast * whole + module.nearby * near) @ own
        terms = terms + module.likeness[0] * like[0] + module.likeness[1] * like[1]
        asked = torch.einsum("hd,hdx,x->h", q, module.key, own) / math.sqrt(4)
        made.append(asked + math.sqrt(12) * terms)
    return torch.stack(made, dim=1)


def test_gradients_are_those_of_the_formula() -> None:
    module = random_pooling(3)
    history = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    marks = torch.randn(1, 9, dtype=torch.float64, requires_grad=True)
    mask, starts = torch.ones(1, 9).bool(), torch.tensor([[1, 0, 0, 0, 1, 1, 0, 0, 0]]).bool()
    inputs = [history, marks, module.target, *module.layers.parameters()]
    told = Sentences.of(history, starts, mask, marks)
    made = torch.autograd.grad(module.read(history, mask, told)[0].square().sum(), inputs)
    by_hand = written_out(module, history[0], starts[0], marks[0])
    want = torch.autograd.grad(by_hand.square().sum(), inputs)
    torch.testing.assert_close(made, want)


def test_a_state_a_sentence_reads_as_its_tokens_do() -> None:
    """What a pooling learns from sentences that were read once holds of whole texts."""
    module, real = random_pooling(), torch.ones(2, 40, dtype=torch.bool)
    real[1, 25:] = False
    history, marks = torch.randn(2, 40, 12).double(), torch.randn(2, 40).double()
    starts = (torch.arange(40) % 7 == 0).expand(2, -1) & real
    told = Sentences.of(history, starts, real, marks)
    made, weights = module.read(history, real, told)
    sizes = torch.stack([torch.bincount(told.number[i, real[i]], minlength=6) for i in range(2)])
    kept, shares = module.read(told.means, sizes, Sentences.kept(told.means, sizes))
    torch.testing.assert_close(kept, made)
    torch.testing.assert_close(shares[-1][:, :, 2], weights[-1][:, :, 14:21].sum(dim=-1))
    assert shares[-1][1, :, 4:].abs().max() == 0


def test_several_texts_as_one_history() -> None:
    """As lent prose is read: each text's own history is a part of the one that all read."""
    module, real = random_pooling(), torch.rand(3, PIECE + 9) < 0.9
    history, marks = torch.randn(3, PIECE + 9, 12).double(), torch.randn(3, PIECE + 9).double()
    starts = (torch.rand(3, PIECE + 9) < 0.05) & real
    sentences = Sentences.of(history, starts, real, marks)
    mask = torch.zeros(3, 3, PIECE + 9, dtype=torch.bool)
    for row in range(3):
        mask[row, row] = real[row]
    joined = sentences.joined(history, mask.flatten(1))
    made, _ = module.read(history.flatten(0, 1), mask.flatten(1), joined)
    torch.testing.assert_close(made, module.read(history, real, sentences)[0])
    first = (sentences.number[0] == 3) & real[0]
    torch.testing.assert_close(
        sentences.means[0, 3], marks[0, first].softmax(dim=0) @ history[0, first]
    )


def test_it_starts_as_the_mean_and_an_empty_history_reads_nothing() -> None:
    pool, states = SentencePooling(12, 3), torch.randn(2, 20, 12)
    real = torch.ones(2, 20, dtype=torch.bool)
    real[1] = False
    starts = (torch.arange(20) % 4 == 0).expand(2, -1)
    made, _ = pool([states], real, pool.look(states, starts, real))
    torch.testing.assert_close(made[0], states[0].mean(dim=0))
    assert made[1].abs().max() == 0


def test_within_a_sentence_all_weigh_the_same_until_it_is_learned_what_does_not_count() -> None:
    """Of half of each sentence, one side of a plane: what a sentence runs on into."""
    torch.manual_seed(0)
    within, real = Within(12), torch.ones(16, 10, dtype=torch.bool)
    starts = (torch.arange(10) == 0).expand(16, -1)
    states = torch.randn(16, 10, 12)
    assert within(states, starts, real).abs().max() == 0
    optim = torch.optim.Adam(within.parameters(), lr=0.01)

    def lost(states: Tensor) -> Tensor:
        counts = states[..., 0] > states[..., 0].mean(dim=1, keepdim=True)
        shares = within(states, starts, real).log_softmax(dim=1)
        return -torch.logsumexp(shares.masked_fill(~counts, -1e9), dim=1).mean()

    for _ in range(200):
        loss = lost(torch.randn(16, 10, 12))
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert lost(states) < 0.2  # against log 2
