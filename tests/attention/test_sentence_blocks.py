"""Attention that keeps sentences apart, against ``reference.py`` in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twinline.attention import ATTENTION, AttentionSpec, Ends, HybridAttention, Lent, reference
from twinline.attention.blocks import Layout, ends_of, others, others_of_pieces, packed, parts
from twinline.errors import TwinlineError

BLOCK = 4


def made(kind: str, block: int = BLOCK) -> Any:
    """A module whose own parameters are away from their start, in float64."""
    torch.manual_seed(0)
    spec = AttentionSpec(heads=2, head_dim=6, block_size=block, sentences=True, sharpen=True)
    module = ATTENTION[kind](spec).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def defined(
    module: Any, x: list[Tensor], mask: Tensor, starts: Tensor, count: Tensor | None, anchors: bool
) -> Tensor:
    q, k, v = x
    if isinstance(module, HybridAttention):
        features = module.q_map(q), module.keys(k, count)
        out, _ = reference.hybrid(
            q, k, v, *features, module.weight(q), mask, BLOCK, starts=starts, anchors=anchors
        )
        return out
    features = module.q_map(q), module.k_map(k, count)
    return reference.sentences(*features, v, module.weight(count), mask, BLOCK, starts, anchors)


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize("kind", ["linear", "hybrid"])
def test_equals_the_definition(kind: str, anchors: bool, data: st.DataObject) -> None:
    module = made(kind)
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    table = st.lists(row, min_size=batch, max_size=batch).map(torch.tensor)
    starts, mask = data.draw(table), data.draw(table)
    count = data.draw(st.sampled_from([None, torch.full((batch,), 3000)]))
    torch.manual_seed(length)
    drawn = [torch.randn(batch, 2, length, 6, dtype=torch.float64) for _ in range(4)]
    weights = drawn.pop() * mask[:, None, :, None]
    results = []
    for exact in (False, True):
        module.zero_grad()
        x = [one.clone().requires_grad_() for one in drawn]
        if exact:
            out = defined(module, x, mask, starts, count, anchors)
        else:
            ends = Ends(ends_of(x[1], mask), ends_of(x[2], mask)) if anchors else None
            out = module(*x, mask, None, count, starts, ends)
        (out * weights).sum().backward()
        known = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
        results.append([(out * mask[:, None, :, None]).detach(), *(one.grad for one in x), *known])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "hybrid"])
def test_what_is_lent_is_part_of_the_rest(kind: str) -> None:
    """A text beside which another lends its middle reads it as sentences further on."""
    module = made(kind)
    x = [torch.randn(2, 2, 8, 6, dtype=torch.float64) for _ in range(3)]
    starts = torch.zeros(2, 8, dtype=torch.bool)
    starts[0, 3] = True
    tokens = torch.zeros(2, 8, dtype=torch.bool)
    tokens[1, 4:8] = True
    lent = Lent(tokens, torch.tensor([[False, True], [False, False]]))
    out = module(*x, None, lent, None, starts)
    joined = [torch.cat([one[:1], one[1:, :, 4:8]], dim=2) for one in x]
    begun = torch.cat([starts[:1], torch.tensor([[True, False, False, False]])], dim=1)
    want = module(*joined, None, None, None, begun)
    torch.testing.assert_close(out[:1], want[:, :, :8])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "hybrid"])
def test_pieces_that_begin_a_block_give_the_whole(kind: str) -> None:
    module = made(kind)
    x = [torch.randn(1, 2, 21, 6, dtype=torch.float64) for _ in range(3)]
    starts = torch.rand(1, 21) < 0.3
    starts[0, 8] = starts[0, 16] = True
    count = torch.tensor([3000])
    ends = Ends(ends_of(x[1], None), ends_of(x[2], None))
    whole = module(*x, None, None, count, starts, ends)
    parts = [[one[:, :, a:b] for one in x] for a, b in ((0, 8), (8, 16), (16, 21))]
    begun = starts.split(8, dim=1)
    states = [module.collect(k, v, None, count) for _, k, v in parts]
    read = []
    for i, ((q, k, v), state) in enumerate(zip(parts, module.join(states), strict=True)):
        here = replace(ends, here=(i == 0, i == 2))
        read.append(module.read(q, (k, v), None, state, count, begun[i], here))
    torch.testing.assert_close(torch.cat(read, dim=2), whole)


def test_a_sentence_by_itself_is_read_as_softmax_reads_it() -> None:
    module = made("hybrid", block=32)
    q, k, v = (torch.randn(1, 2, 20, 6, dtype=torch.float64) for _ in range(3))
    out = module(q, k, v, None, None, None, torch.zeros(1, 20, dtype=torch.bool))
    torch.testing.assert_close(out, reference.softmax(q, k, v, torch.ones(1, 20).bool()))


def test_places_and_back() -> None:
    starts = torch.tensor([[0, 0, 1, 0, 0, 0, 0, 1, 0]]).bool()
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 0]]).bool()
    part, within = parts(starts, mask, 4)
    # One token, then five in parts of four and one, then one: two of them fit into the last block.
    assert packed(part, within, mask, 4)[0, mask[0]].tolist() == [0, 4, 5, 6, 7, 8, 9]
    layout = Layout.of(starts, mask, 4)
    assert layout.mask[0].tolist() == [i in (0, *range(4, 10)) for i in range(12)]
    assert layout.same[0, 0, 2].nonzero().tolist() == [[0, 0], [1, 1]]
    x = torch.randn(1, 2, 9, 3)
    torch.testing.assert_close(layout.back(layout.lay(x)), x * mask[:, None, :, None])


def test_pieces_of_other_blocks() -> None:
    states = torch.randn(1, 1, 7, 2, 2, dtype=torch.float64)
    made = torch.cat(others_of_pieces(list(states.split(3, dim=2))), dim=2)
    torch.testing.assert_close(made, others(states))


@pytest.mark.parametrize("given", [{"sentences": True, "neighbours": 1}, {"anchors": True}])
def test_what_contradicts_itself_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(TwinlineError, match="sentences"):
        AttentionSpec(**given)
