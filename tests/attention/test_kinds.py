"""Every kind of attention, outputs and gradients, against ``reference.py`` in float64."""

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twinline.attention import ATTENTION, FEATURE_MAPS, AttentionSpec, HybridAttention, reference
from twinline.attention.blocks import others
from twinline.attention.folded import FoldedAttention, can_fold
from twinline.attention.spec import real_first

KINDS = {
    "softmax": ("softmax", {}),
    "linear": ("linear", {}),
    "lightning": ("lightning", {}),
    "lightning rms": ("lightning", {"normalisation": "rms"}),
    "hybrid": ("hybrid", {"neighbours": 0}),
    "hybrid neighbours": ("hybrid", {"neighbours": 1}),
}
CASES = [
    (kind, name) for kind in KINDS for name in (FEATURE_MAPS if kind != "softmax" else ["gated"])
]
BLOCK = 4


def mask_none(batch: int, length: int) -> None:
    return None


def mask_right(batch: int, length: int) -> Tensor:
    """Row 0 is full, each further row shorter."""
    real = torch.tensor([max(1, length - 3 * row) for row in range(batch)])
    return torch.arange(length) < real[:, None]


def mask_left(batch: int, length: int) -> Tensor:
    return mask_right(batch, length).flip(1)


def mask_holes(batch: int, length: int) -> Tensor:
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.6
    mask[:, length // 2] = True
    return mask


def mask_empty_row(batch: int, length: int) -> Tensor:
    mask = mask_right(batch, length)
    mask[-1] = False
    return mask


MASKS = {f.__name__: f for f in (mask_none, mask_right, mask_left, mask_holes, mask_empty_row)}


def build(kind: str, feature_map: str, seed: int = 0, **options: object) -> nn.Module:
    """The module with every parameter away from its start, so that each one's gradient counts."""
    name, extra = KINDS[kind]
    given: dict = {"heads": 2, "head_dim": 6, "block_size": BLOCK, **extra, **options}
    module = ATTENTION[name](AttentionSpec(feature_map=feature_map, **given))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return module


def draw(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(5)]


def defined(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple:
    """What ``reference`` says the module gives: output, and for hybrid the far share."""
    if not hasattr(module, "q_map"):
        return reference.softmax(q, k, v, mask), None
    features = module.q_map(q), module.k_map(k)
    if isinstance(module, HybridAttention):
        log_weight = q @ module.query_weight + module.log_weight
        spec = module.spec
        return reference.hybrid(
            q, k, v, *features, log_weight, mask, spec.block_size, spec.neighbours
        )
    if hasattr(module, "root_slope"):
        slope = module.root_slope.square()
        return reference.lightning(*features, v, slope, mask, module.gain), None
    return reference.linear(*features, v, mask), None


@dataclass
class Result:
    out: Tensor
    share: Tensor | None
    gradients: dict[str, Tensor]


def run(module: nn.Module, drawn: list[Tensor], mask: Tensor | None, exact: bool) -> Result:
    """Outputs at real tokens, and the gradients of a random linear form of them.

    For hybrid the form also reads the log-odds, as the transfer loss does.
    """
    q, k, v, weights, mass = drawn
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    real = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool) if mask is None else mask
    spot = real[:, None, :]
    share = None
    if exact:
        out, share = defined(module, q, k, v, real)
    elif isinstance(module, HybridAttention):
        out, log_odds = module.attend(q, k, v, mask)
        share = torch.sigmoid(log_odds)
    else:
        out = module(q, k, v, mask)
    total = (out * weights * spot[..., None]).sum()
    if share is not None:
        if exact:
            far = spot & (share > 0)
            held = share.where(far, share.new_tensor(0.5))
            log_odds = torch.log(held) - torch.log1p(-held)
        else:
            far = spot & (log_odds > -1e30)
        total = total + torch.where(far, log_odds, 0.0).mul(mass[..., 0]).sum()
        share = (share * spot).detach()
    total.backward()
    gradients = {"q": q.grad, "k": k.grad, "v": v.grad}
    # Where no token is far, the far branch's parameters have none.
    gradients |= {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()
    }
    return Result((out * spot[..., None]).detach(), share, gradients)


def check(module: nn.Module, drawn: list[Tensor], mask: Tensor | None, tolerance: float) -> None:
    """Outputs, shares and gradients lie within ``tolerance`` of the definition's, in norm."""
    twin = copy.deepcopy(module).double()
    got = run(module, drawn, mask, exact=False)
    want = run(twin, [x.double() for x in drawn], mask, exact=True)
    close(got.out, want.out, tolerance, "output")
    if want.share is not None:
        close(got.share, want.share, tolerance, "share")
    # A gradient that is zero by definition (q's, where one key takes all) is round-off here.
    floor = 0.1 * float(drawn[3].norm())
    for name, gradient in want.gradients.items():
        close(got.gradients[name], gradient, tolerance, f"gradient of {name}", floor)


def close(x: Tensor, want: Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    assert torch.isfinite(x).all(), f"{what} is not finite"
    error = float((x.detach().double() - want).norm())
    bound = tolerance * (float(want.norm()) + floor)
    assert error <= bound + 1e-30, f"{what}: error {error:.2e}, norm {float(want.norm()):.2e}"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("kind", "feature_map"), CASES)
def test_equals_the_definition(kind: str, feature_map: str, mask: str) -> None:
    module = build(kind, feature_map)
    for length in (1, BLOCK, BLOCK + 1, 4 * BLOCK + 3):
        module.zero_grad()
        check(module, draw((3, 2, length, 6), seed=length), MASKS[mask](3, length), 1e-5)


@pytest.mark.parametrize("mask", ["mask_none", "mask_holes"])
@pytest.mark.parametrize(("kind", "feature_map"), CASES)
def test_bfloat16_stays_near_the_definition(kind: str, feature_map: str, mask: str) -> None:
    module = build(kind, feature_map).bfloat16()
    drawn = [x.bfloat16() for x in draw((3, 2, 19, 6), seed=1)]
    check(module, drawn, MASKS[mask](3, 19), 1e-2)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_equals_the_definition(data: st.DataObject) -> None:
    kind, feature_map = data.draw(st.sampled_from(CASES))
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    # RMS over one or two dimensions amplifies round-off without bound where sums are near zero.
    length, dim = data.draw(st.integers(1, 40)), data.draw(st.integers(3 * ("rms" in kind) or 1, 9))
    module = build(
        kind, feature_map, heads=heads, head_dim=dim, block_size=data.draw(st.integers(1, 9)),
        feature_dim=data.draw(st.sampled_from([None, 1, 2 * dim + 1])),
    )  # fmt: skip
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    mask = data.draw(st.none() | st.lists(row, min_size=batch, max_size=batch).map(torch.tensor))
    check(module, draw((batch, heads, length, dim), data.draw(st.integers(0, 9))), mask, 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_real_token_is_zero_and_has_finite_gradients(kind: str) -> None:
    module = build(kind, "gated")
    q, k, v = (x.requires_grad_() for x in draw((3, 2, 11, 6), seed=3)[:3])
    out = module(q, k, v, mask_empty_row(3, 11))
    assert not out[-1].any()
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    for x in (q, k, v, *module.parameters()):
        assert torch.isfinite(x.grad).all()
    assert not k.grad[-1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_padding_stands_makes_no_difference(kind: str) -> None:
    module = build(kind, "gated")
    q, k, v = draw((1, 2, 10, 6), seed=4)[:3]
    alone = module(q, k, v)
    generator = torch.Generator().manual_seed(5)
    for mask in (mask_right(1, 10), *(torch.randperm(17, generator=generator) for _ in range(3))):
        place = torch.arange(10) if mask.ndim == 2 else mask[:10].sort().values
        spread = [torch.full((1, 2, 17, 6), 3.0) for _ in range(3)]
        for wide, narrow in zip(spread, (q, k, v), strict=True):
            wide[:, :, place] = narrow
        real = torch.zeros(1, 17, dtype=torch.bool)
        real[0, place] = True
        torch.testing.assert_close(module(*spread, real)[:, :, place], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_runs_both_ways_and_stays_near_fp32(kind: str) -> None:
    module, drawn = build(kind, "gated"), draw((2, 2, 19, 6), seed=6)
    mask = mask_left(2, 19)
    full = run(module, drawn, mask, exact=False)
    module.zero_grad()
    q, k, v, weights, _ = drawn
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        # As in the model: queries, keys and values come out of a matrix product in bfloat16.
        out = module(*(x @ torch.eye(6) for x in (q, k, v)), mask)
    (out.float() * weights * mask[:, None, :, None]).sum().backward()
    close(out.float() * mask[:, None, :, None], full.out.double(), 1e-2, "output")
    for name, x in {"v": v, **dict(module.named_parameters())}.items():
        assert torch.isfinite(x.grad).all(), name
    close(v.grad, full.gradients["v"].double(), 1e-2, "gradient of v")


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_hybrid_without_its_far_branch_is_softmax_inside_blocks(neighbours: int, mask: str) -> None:
    module = build("hybrid", "gated", neighbours=neighbours)
    module.far = False
    q, k, v = draw((2, 2, 23, 6), seed=7)[:3]
    given = MASKS[mask](2, 23)
    real = torch.ones(2, 23, dtype=torch.bool) if given is None else given
    number = reference.places(real) // BLOCK
    near = ((number[:, :, None] - number[:, None]).abs() <= neighbours) & real[:, None]
    scores = (q @ k.transpose(-1, -2) / 6**0.5).masked_fill(~near[:, None], -1e9)
    want = scores.softmax(-1) @ v * real[:, None, :, None]
    got = module(q, k, v, given) * real[:, None, :, None]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("block", "neighbours", "length"), [(9, 0, 9), (50, 0, 9), (5, 1, 9)])
def test_hybrid_is_exact_where_all_tokens_are_near(
    block: int, neighbours: int, length: int
) -> None:
    module = build("hybrid", "gated", block_size=block, neighbours=neighbours)
    exact = build("softmax", "gated")
    q, k, v = draw((2, 2, length, 6), seed=8)[:3]
    for mask in (None, mask_left(2, length)):
        real = 1 if mask is None else mask[:, None, :, None]
        difference = (module(q, k, v, mask) - exact(q, k, v, mask)) * real
        assert difference.abs().max() <= 1e-6


def test_hybrid_row_of_one_block_is_exact_beside_longer_rows() -> None:
    """Also where its scores are so low that a rounded far mass of nothing could outweigh them."""
    module = build("hybrid", "gated")
    q, k, v = draw((2, 2, 13, 6), seed=9)[:3]
    q[1], k[1] = 3.0, -9.0
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, BLOCK:] = False
    out, log_odds = module.attend(q, k, v, mask)
    want = v[1, :, :BLOCK].mean(1, keepdim=True).expand(-1, BLOCK, -1)
    torch.testing.assert_close(out[1, :, :BLOCK], want, rtol=0, atol=1e-5)
    assert (log_odds[1, :, :BLOCK] < -50).all()


@pytest.mark.parametrize("neighbours", [0, 1, 2])
def test_others_sums_every_block_that_is_not_near(neighbours: int) -> None:
    states = torch.randn(2, 3, 7, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    got = others(states, neighbours)
    for block in range(7):
        far = [b for b in range(7) if abs(b - block) > neighbours]
        torch.testing.assert_close(got[:, :, block], states[:, :, far].sum(2))


def test_lightning_slopes_fall_with_depth_and_the_slowest_head_keeps_everything() -> None:
    first, last = (
        ATTENTION["lightning"](AttentionSpec(heads=4, head_dim=3, layer=layer, layers=6, decay=0.5))
        for layer in (0, 5)
    )
    slope = first.root_slope.square()
    torch.testing.assert_close(slope, 0.5 * torch.tensor([0.0, 2.0, 4.0, 6.0]))
    torch.testing.assert_close(last.root_slope.square(), slope / 6)
    first(*draw((1, 4, 9, 3), seed=0)[:3]).square().sum().backward()
    assert first.root_slope.grad[0] == 0
    assert first.root_slope.grad[1:].all()
    fixed = ATTENTION["lightning"](AttentionSpec(heads=4, head_dim=3, learn_decay=False))
    assert not fixed.root_slope.requires_grad


def test_real_first_puts_real_tokens_first_in_their_order() -> None:
    mask = torch.tensor([[False, True, False, True], [True, True, True, True]])
    order, back = real_first(mask)
    assert order.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert torch.gather(order, 1, back).tolist() == [[0, 1, 2, 3]] * 2
    assert real_first(mask_right(3, 9)) is None
    assert real_first(mask_empty_row(3, 9)) is None


@pytest.mark.parametrize(
    ("option", "value"),
    [("heads", 0), ("block_size", 0), ("feature_dim", 0), ("neighbours", -1), ("decay", -0.1),
     ("decay", float("nan")), ("normalisation", "batch")],
)  # fmt: skip
def test_spec_refuses_and_names_the_option(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        AttentionSpec(**{"heads": 2, "head_dim": 3, option: value})


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sharpen", [False, True])
@torch.no_grad()
def test_folded_maps_change_nothing(mask: str, sharpen: bool) -> None:
    module = build("linear", "gated", feature_dim=9, sharpen=sharpen)
    count = torch.tensor([11, 700, 70_000])
    if sharpen:
        torch.nn.init.normal_(module.k_map.sharpness, std=0.2)
    qkv = nn.Linear(12, 36)
    folded = FoldedAttention(module, qkv)
    x = 2 * torch.randn(3, 11, 12, generator=torch.Generator().manual_seed(0))
    q, k, v = qkv(x).view(3, 11, 3, 2, 6).permute(2, 0, 3, 1, 4)
    given = MASKS[mask](3, 11)
    want = module(q, k, v, given, None, count)
    assert torch.allclose(want, module(q, k, v, given)) != sharpen
    parts = folded.split(x, count)
    torch.testing.assert_close(folded(*parts, given), want, rtol=1e-4, atol=1e-5)
    assert can_fold(module)
    assert not can_fold(build("linear", "hedgehog"))
    assert not can_fold(build("hybrid", "gated"))


def test_far_keys_weigh_less_in_long_texts_as_is_learned() -> None:
    module = build("hybrid", "gated", sharpen=True)
    assert isinstance(module, HybridAttention)
    assert module.dilution is not None
    q, k, v = draw((1, 2, 12, 6), 0)[:3]
    count = torch.tensor([2048])
    with torch.no_grad():
        plain, odds = module.attend(q, k, v)
        module.k_map.sharpness.zero_()
        module.dilution.fill_(0.0)
        torch.testing.assert_close(module.attend(q, k, v, count=count)[0], plain)
        module.dilution.fill_(1.0)
        torch.testing.assert_close(module.attend(q, k, v, count=torch.tensor([512]))[0], plain)
        _, thinned = module.attend(q, k, v, count=count)
    torch.testing.assert_close(odds - thinned, torch.full_like(odds, 4.0).log())
