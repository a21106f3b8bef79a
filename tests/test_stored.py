"""Stored texts, and the score head that reads them."""

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from twinline import convert
from twinline.data import Pairs, load
from twinline.data.retrieval import Retrieval
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.evaluate import evaluate_retrieval
from twinline.options import DistillOptions
from twinline.sentences import END
from twinline.similarity import NEAREST, Cosine, LateInteraction, STCAHead, common
from twinline.statistics import pearson
from twinline.stored import BLOCK, KEPT, Stored, block_states, joined, sentence_states
from twinline.training import distill
from twinline.training.matching import DISCOUNTS, PRIORS, SHARPNESS, learn_to_match
from twinline.windows import Windows


def test_a_block_is_the_mean_of_its_real_tokens() -> None:
    states = torch.randn(2, BLOCK + 10, 3)
    mask = torch.ones(2, BLOCK + 10, dtype=torch.bool)
    mask[1, 5:] = False
    made, some, shares = block_states(states, mask)
    assert some.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(shares[0], torch.tensor([BLOCK, 10.0]) / (BLOCK + 10))
    assert shares[1].tolist() == [1.0, 0.0]
    torch.testing.assert_close(made[0, 0], states[0, :BLOCK].mean(dim=0))
    torch.testing.assert_close(made[0, 1], states[0, BLOCK:].mean(dim=0))
    torch.testing.assert_close(made[1, 0], states[1, :5].mean(dim=0))
    whole = Stored(states[:, 0], made, some, shares)
    both = joined([whole, Stored(states[:, 0], made[:, :1], some[:, :1], shares[:, :1])])
    assert both.states.shape == (4, 2, 3)
    assert both.mask.sum().item() == 5


def test_the_head_starts_as_cosines_with_the_nearest_block_and_is_symmetric() -> None:
    torch.manual_seed(0)
    head = STCAHead(12)
    u, v = (Stored(torch.randn(4, 12), torch.randn(4, 3, 12), torch.ones(4, 3).bool(),
                   torch.full((4, 3), 1 / 3))
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


def late_texts(many: int, sentences: int) -> Stored:
    """Random texts of so many sentences, in fp64."""
    shares = torch.rand(many, sentences).double()
    return Stored(
        torch.randn(many, 12).double(), torch.randn(many, sentences, 12).double(),
        torch.ones(many, sentences).bool(), shares / shares.sum(dim=1, keepdim=True),
    )  # fmt: skip


def cosine_of(x: torch.Tensor, y: torch.Tensor) -> float:
    return (x @ y / (x.norm() * y.norm())).item()


def commons(states: torch.Tensor) -> list[float]:
    """Of each sentence the mean cosine to the nearest others."""
    every = range(len(states))
    found = [sorted(cosine_of(states[i], states[j]) for j in every if j != i) for i in every]
    return [sum(near[-NEAREST:]) / len(near[-NEAREST:]) for near in found]


def test_late_interaction_is_its_formula() -> None:
    torch.manual_seed(0)
    head, u, v = LateInteraction(12).double(), late_texts(3, 4), late_texts(3, 6)
    head.set(0.7, 5.0, 0.3)
    expected = []
    for row in range(3):
        logits, alike = [], []
        own = [commons(one.states[row]) for one in (u, v)]
        for i in range(4):
            for j in range(6):
                alike.append(cosine_of(u.states[row, i], v.states[row, j]))
                prior = u.shares[row, i].log() + v.shares[row, j].log()
                likeness = alike[-1] - 0.3 * (own[0][i] + own[1][j])
                logits.append(0.7 * prior.item() + 5.0 * likeness)
        p = torch.tensor(logits).softmax(dim=0)
        expected.append((p * torch.tensor(alike)).sum().item())
    assert head(u, v).tolist() == pytest.approx(expected)
    torch.testing.assert_close(head(u, v), head(v, u))
    more = joined([v, late_texts(1, 9)])[:3]  # what is padded is not read
    torch.testing.assert_close(head(u, more), head(u, v))
    head.set(1.0, 0.0, 0.5)  # the mean of cosines by what the poolings weigh
    normal = [torch.nn.functional.normalize(x.states, dim=-1) for x in (u, v)]
    means = [(x.shares[:, None] @ y)[:, 0] for x, y in zip((u, v), normal, strict=True)]
    torch.testing.assert_close(head(u, v), (means[0] * means[1]).sum(dim=1))


def test_late_interaction_finds_what_two_texts_share_where_their_poolings_waver() -> None:
    """Two sentences of each text weigh the same, and one of them is in both."""
    at = torch.eye(4)
    u, v = (Stored(at[:1], at[[a, b]][None], torch.ones(1, 2).bool(), torch.full((1, 2), 0.5))
            for a, b in ((0, 1), (2, 1)))  # fmt: skip
    assert LateInteraction(4)(u, v).item() > 0.999
    assert Cosine(4)(u.states.mean(dim=1), v.states.mean(dim=1)).item() == pytest.approx(0.5)
    sure = replace(v, shares=torch.tensor([[1.0, 1e-8]]))  # v is known to be about something else
    assert LateInteraction(4)(u, sure).item() < 0.2


def test_how_common_a_sentence_is_is_told_by_its_own_text_alone() -> None:
    torch.manual_seed(0)
    states = torch.nn.functional.normalize(torch.randn(3, 7, 4).double(), dim=-1)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 3:], mask[2, 1:] = False, False
    states = states * mask[..., None]
    made = common(states, mask)
    assert made[0].tolist() == pytest.approx(commons(states[0]))
    assert made[1, :3].tolist() == pytest.approx(commons(states[1, :3]))
    assert made[2, 0].item() == 0.0  # the only one
    assert common(states[:, :1], mask[:, :1]).tolist() == [[0.0]] * 3


def test_a_likeness_of_what_is_like_everything_says_little() -> None:
    """Each text is six sentences that are all alike, in both texts, and one of its own."""
    same, a, b = torch.eye(3)
    u, v = (Stored(same[None], torch.stack([*[same] * 6, own])[None], torch.ones(1, 7).bool(),
                   torch.tensor([[*[0.05] * 6, 0.7]]))
            for own in (a, b))  # fmt: skip
    head = LateInteraction(3)
    head.set(1.0, 16.0, 0.0)
    assert head(u, v).item() > 0.9
    head.set(1.0, 16.0, 0.5)
    assert head(u, v).item() < 0.2


def test_the_sentences_that_weigh_most_are_kept() -> None:
    torch.manual_seed(0)
    many, each = KEPT + 5, 3
    states = torch.randn(2, many * each, 4)
    starts = (torch.arange(many * each) % each == 0).expand(2, -1)
    mask = torch.ones(2, many * each, dtype=torch.bool)
    mask[1, 7:] = False  # two sentences, and one token of a third
    weights = torch.rand(2, 2, many * each) * mask[:, None]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    made, real, shares = sentence_states(states, starts, mask, weights)
    of = weights.mean(dim=1).unflatten(1, (many, each))  # (texts, sentences, tokens)
    best = of.sum(dim=-1).topk(KEPT, dim=1)
    torch.testing.assert_close(shares, best.values)
    assert real.sum(dim=1).tolist() == [KEPT, 3]
    token = states.unflatten(1, (many, each))
    expected = (of[..., None] * token).sum(dim=2) / of.sum(dim=-1)[..., None].clamp_min(1e-30)
    torch.testing.assert_close(made[0], expected[0, best.indices[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[1, :3], expected[1, best.indices[1, :3]], rtol=1e-4, atol=1e-5)
    assert not made[1, 3:].any()
    # Both rows as windows of one text, one of three times the other's tokens.
    windows = Windows([], torch.zeros(2).long(), torch.tensor([3.0, 1.0]))
    joint, _, parts = sentence_states(states, starts, mask, weights, windows)
    assert joint.shape == (1, KEPT, 4)
    every = (of.sum(dim=-1) * torch.tensor([[0.75], [0.25]])).flatten()
    torch.testing.assert_close(parts[0], every.topk(KEPT).values)
    # Texts that read one another's prose: each keeps its own part.
    lent = torch.stack([torch.cat([weights[0], 0 * weights[0]], dim=-1),
                        torch.cat([0.3 * weights[0], 0.7 * weights[1]], dim=-1)])  # fmt: skip
    again, _, own = sentence_states(states, starts, mask, lent)
    torch.testing.assert_close(own, torch.stack([shares[0], 0.7 * shares[1]]))
    torch.testing.assert_close(again, made, rtol=1e-4, atol=1e-5)


@pytest.fixture
def late(tiny_bert: Path) -> Encoder:
    torch.manual_seed(0)
    model = convert(tiny_bert, attention="hybrid", pooling="sentence", sentences=True)
    made = Encoder(model, similarity="late")
    model.roles[made.tokenizer.convert_tokens_to_ids("and")] = END  # it has no full stop
    return made


LONG = ["a man plays and dogs run fast", "the guitar and " * 50 + "green grass and a woman"]


def test_late_interaction_scores_ranks_and_is_saved(late: Encoder, tmp_path: Path) -> None:
    stored = late.store([*LONG, *TEXTS])
    assert stored.states.dtype == torch.float16
    assert stored.mask.shape[1] == KEPT
    assert stored.mask.sum(dim=1).tolist()[:2] == [2, KEPT]
    matrix = late.similarity(stored, stored)
    torch.testing.assert_close(matrix, matrix.T)
    assert late.score(LONG, TEXTS[:2]) == pytest.approx(
        [matrix[0, 2].item(), matrix[1, 3].item()], abs=1e-5
    )
    ranked = late.rank(LONG[0], TEXTS)
    assert [r.corpus_id for r in ranked] == matrix[0, 2:].argsort(descending=True).tolist()
    late.head.set(1.5, 24.0, 0.25)
    scores = late.score(LONG, TEXTS[:2])
    late.save(tmp_path / "m")
    again = Encoder(tmp_path / "m")
    assert again.similarity_name == "late"
    assert again.score(LONG, TEXTS[:2]) == pytest.approx(scores, abs=1e-5)
    assert Encoder(tmp_path / "m", windows=16).score(LONG, TEXTS[:2]) != pytest.approx(scores)


def test_late_interaction_learns_its_numbers_from_labels(late: Encoder) -> None:
    draw, one = random.Random(0), [*TEXTS, *LONG]
    first = [draw.choice(one) for _ in range(24)]
    second = [draw.choice(one) for _ in range(24)]
    score = np.array([draw.random() for _ in first])
    pairs = Pairs(first, second, score, (0.0, 1.0), "made", "validation")
    learned = learn_to_match(late, pairs)
    own = pearson(late.score(first, second), pairs.unit_score)
    assert own == pytest.approx(learned["pearson"], abs=1e-4)
    numbers = late.head.prior, late.head.sharpness, late.head.discount
    assert [one.item() for one in numbers] == [
        learned[name] for name in ("prior", "sharpness", "discount")
    ]
    for tried in product(PRIORS, SHARPNESS, DISCOUNTS):
        late.head.set(*tried)
        assert pearson(late.score(first, second), pairs.unit_score) <= own + 1e-6


def test_the_student_learns_through_late_interaction(late: Encoder, tiny_pairs: Path) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1))
    before = late.head.sharpness.item()
    options = DistillOptions(alpha=0, epochs=6, pairs=8, learning_rate=2e-3)
    run = distill(late, pairs, options=options)
    losses = [line.loss for line in run.log if line.loss is not None]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert late.head.sharpness.item() != before


def test_late_interaction_needs_a_pooling_that_weighs_sentences(
    tiny_bert: Path, encoder: Encoder
) -> None:
    with pytest.raises(TwinlineError, match="convert with pooling='sentence'"):
        Encoder(tiny_bert, similarity="late")
    pairs = Pairs(["a", "b"], ["c", "d"], np.array([0.0, 1.0]), (0.0, 1.0), "made", "test")
    with pytest.raises(TwinlineError, match="load the student with similarity='late'"):
        learn_to_match(encoder, pairs)
