"""Losses over candidates, against their formulas."""

import math

import torch
from torch.nn import functional as F

from twinline.attention import Lent
from twinline.training.losses import astray, in_batch_negatives, listwise, overlooked, scattered


def test_in_batch_negatives_are_a_cross_entropy_in_both_directions() -> None:
    torch.manual_seed(0)
    u, v = (F.normalize(torch.randn(3, 5), dim=-1) for _ in range(2))
    scores = (u @ v.T / 0.1).tolist()
    want = 0.0
    for i in range(3):
        row = sum(math.exp(scores[i][j]) for j in range(3))
        column = sum(math.exp(scores[j][i]) for j in range(3))
        want -= (2 * scores[i][i] - math.log(row) - math.log(column)) / 6
    assert abs(in_batch_negatives(u @ v.T, 0.1).item() - want) < 1e-5


def test_a_document_that_is_right_too_is_not_pushed_away() -> None:
    u = F.normalize(torch.randn(3, 5), dim=-1).requires_grad_()
    v = F.normalize(torch.randn(3, 5), dim=-1)
    known = torch.zeros(3, 3, dtype=torch.bool)
    known[0, 1] = known[0, 0] = True  # its own stays
    loss = in_batch_negatives(u @ v.T, 0.1, known)
    changed = v.clone()
    changed[1] = -changed[1]
    only = in_batch_negatives(u[:1] @ v[:1].T, 0.1)
    assert torch.isfinite(loss)
    assert only.item() == 0
    pair = torch.stack([u[0] @ v[0], u[0] @ v[2]]) / 0.1
    row = F.cross_entropy(pair[None], torch.tensor([0]))
    logits = u @ v.T / 0.1
    rest = F.cross_entropy(logits[1:], torch.tensor([1, 2]), reduction="sum")
    back = logits.T.masked_fill(known.T & ~torch.eye(3, dtype=torch.bool), float("-inf"))
    want = ((row + rest) / 3 + F.cross_entropy(back, torch.arange(3))) / 2
    torch.testing.assert_close(loss, want)


def test_listwise_is_zero_only_for_the_teachers_ranking() -> None:
    teacher = torch.tensor([[0.1, 0.7, 0.4], [0.9, float("-inf"), 0.2]])
    scores = torch.tensor([[0.3, 0.9, 0.6], [0.9, 5.0, 0.2]], requires_grad=True)
    assert abs(listwise(scores, teacher).item()) < 1e-6  # a shift changes nothing
    other = torch.tensor([[0.3, 0.2, 0.6], [0.9, 5.0, 0.2]], requires_grad=True)
    loss = listwise(other, teacher)
    loss.backward()
    assert loss.item() > 0.1
    assert other.grad is not None
    assert other.grad[0, 1] < 0 < other.grad[0, 2]
    assert other.grad[1].abs().max() < 1e-6


def test_overlooked_is_the_share_that_lies_elsewhere() -> None:
    weights = torch.tensor([[[0.5, 0.25, 0.25, 0.0]], [[0.1, 0.2, 0.3, 0.4]]])
    spans = torch.tensor([[0, 2], [2, 4]])
    want = -(math.log(0.75) + math.log(0.7)) / 2
    assert abs(overlooked([weights], spans, 4).item() - want) < 1e-6
    # The same where texts lend one another their tokens; a text of prose does not count.
    lent = torch.zeros(3, 1, 12)
    lent[0, :, :4], lent[1, :, 4:8] = weights[0], weights[1]
    lent[2, :, 8:] = 0.25
    spans = torch.cat([spans, torch.tensor([[0, 0]])])
    assert abs(overlooked([lent], spans, 4).item() - want) < 1e-6


def test_scattered_is_the_share_of_gains_that_lies_elsewhere() -> None:
    gains = torch.tensor([[[1.0, 2.0, 3.0, 9.0]], [[4.0, 3.0, 2.0, 1.0]]])
    real = torch.tensor([[True, True, True, False], [True] * 4])  # the 9 is padding
    spans = torch.tensor([[0, 2], [3, 4]])
    logs = torch.log(gains).requires_grad_()
    want = -(math.log(3 / 6) + math.log(1 / 10)) / 2
    assert abs(scattered([logs, logs], spans, real).item() - want) < 1e-6
    # The first text reads the second's last two tokens too; a text of prose does not count.
    lent = Lent(
        torch.tensor([[False] * 4, [False, False, True, True], [True] * 4]),
        torch.tensor([[False, True, False], [False] * 3, [False] * 3]),
    )
    three = torch.cat([logs, torch.zeros(1, 1, 4)])
    spans, real = torch.cat([spans, torch.tensor([[0, 0]])]), torch.cat([real, real[1:]])
    want = -(math.log(3 / 9) + math.log(1 / 10)) / 2
    loss = scattered([three], spans, real, lent)
    loss.backward()
    assert abs(loss.item() - want) < 1e-6
    assert logs.grad is not None
    assert torch.isfinite(logs.grad).all()
    assert scattered([], spans, real).item() == 0


def test_astray_compares_the_sentence_where_it_stands() -> None:
    goal = torch.randn(2, 5, 3)
    sizes = torch.tensor([5, 4])  # three tokens and two, between special ones
    states = torch.zeros(3, 9, 3)
    states[0, 4:7], states[1, 1:3] = goal[0, 1:4], goal[1, 1:3]
    spans = torch.tensor([[2, 7], [1, 3], [0, 0]])  # the first has two tokens of a name before it
    assert astray(states, spans, goal, sizes).item() == 0
    states[1, 2] = 0
    assert abs(astray(states, spans, goal, sizes).item() - 1 / 5) < 1e-6
    assert astray(states, torch.zeros(3, 2, dtype=torch.long), goal, sizes).item() == 0
