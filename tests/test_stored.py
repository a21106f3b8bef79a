"""Stored texts, and the score head that reads them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twinline.data import load
from twinline.data.retrieval import Retrieval
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.evaluate import evaluate_retrieval
from twinline.options import DistillOptions
from twinline.similarity import STCAHead
from twinline.stored import BLOCK, Stored, block_states, joined
from twinline.training import distill


def test_a_block_is_the_mean_of_its_real_tokens() -> None:
    states = torch.randn(2, BLOCK + 10, 3)
    mask = torch.ones(2, BLOCK + 10, dtype=torch.bool)
    mask[1, 5:] = False
    made, some = block_states(states, mask)
    assert some.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(made[0, 0], states[0, :BLOCK].mean(dim=0))
    torch.testing.assert_close(made[0, 1], states[0, BLOCK:].mean(dim=0))
    torch.testing.assert_close(made[1, 0], states[1, :5].mean(dim=0))
    both = joined(
        [Stored(states[:, 0], made, some), Stored(states[:, 0], made[:, :1], some[:, :1])]
    )
    assert both.states.shape == (4, 2, 3)
    assert both.mask.sum().item() == 5


def test_the_head_starts_as_cosines_with_the_nearest_block_and_is_symmetric() -> None:
    torch.manual_seed(0)
    head = STCAHead(12)
    u, v = (Stored(torch.randn(4, 12), torch.randn(4, 3, 12), torch.ones(4, 3).bool())
            for _ in range(2))  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity
    sharp = replace(u, states=100 * u.states), replace(v, states=100 * v.states)
    best = [
        cosine(one.vectors, other.states[torch.arange(4), at])
        for one, other in ((u, v), (v, u))
        for at in (
            torch.einsum(
                "bd,bnd->bn", torch.nn.functional.layer_norm(one.vectors, (12,)), other.states
            ).argmax(1),
        )
    ]
    torch.testing.assert_close(head(*sharp), (best[0] + best[1]) / 2)
    for layer in head.stca.layers:
        torch.nn.init.normal_(layer.key, std=0.5)
    torch.testing.assert_close(head(u, v), head(v, u))


@pytest.fixture
def encoder(tiny_bert: Path) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(tiny_bert, similarity="stca")
    torch.nn.init.normal_(made.head.stca.layers[0].key, std=0.5)
    return made


TEXTS = ["a man plays the guitar", "dogs run", "green grass in the rain " * 60, "a woman"]


def test_scores_ranks_and_similarities_agree(encoder: Encoder, tmp_path: Path) -> None:
    stored = encoder.store(TEXTS)
    assert stored.states.dtype == torch.float16
    assert stored.mask.sum(dim=1).tolist() == [1, 1, 3, 1]
    matrix = encoder.similarity(stored, stored)
    scores = encoder.score(TEXTS[:2], TEXTS[2:])
    assert scores == pytest.approx([matrix[0, 2].item(), matrix[1, 3].item()], abs=1e-5)
    ranked = encoder.rank(TEXTS[0], TEXTS[1:])
    assert [r.corpus_id for r in ranked] == matrix[0, 1:].argsort(descending=True).tolist()
    task = Retrieval(TEXTS[:1], torch.tensor([2]).numpy(), TEXTS[1:], "x", "test", 0)
    assert evaluate_retrieval(encoder, task).ranks.shape == (1,)
    encoder.save(tmp_path / "m")
    again = Encoder(tmp_path / "m")
    assert again.similarity_name == "stca"
    assert again.score(TEXTS[:2], TEXTS[2:]) == pytest.approx(scores, abs=1e-5)


def test_what_a_states_reader_cannot_have_is_told(encoder: Encoder, tiny_bert: Path) -> None:
    with pytest.raises(TwinlineError, match="give what store returns"):
        encoder.similarity(encoder.encode(TEXTS), encoder.encode(TEXTS))
    with pytest.raises(TwinlineError, match="a list of one or more texts"):
        encoder.store("a man")
    with pytest.raises(TwinlineError, match="has no option 'batch_size'"):
        encoder.score(TEXTS[:2], TEXTS[2:], batch_size=8)
    with pytest.raises(TwinlineError, match="leave out windows"):
        Encoder(tiny_bert, similarity="stca", windows=16)


def test_the_head_learns_with_the_student(encoder: Encoder, tiny_pairs: Path) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    before = encoder.head.stca.layers[0].key.detach().clone()
    options = DistillOptions(alpha=0, epochs=6, pairs=8, learning_rate=2e-3)
    run = distill(encoder, pairs, options=options)
    losses = [line.loss for line in run.log if line.loss is not None]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert not torch.equal(encoder.head.stca.layers[0].key, before)
