"""Feature maps against their formulas, written out for one token of one head."""

import math

import pytest
import torch
from torch import Tensor

from twinline.attention import FEATURE_MAPS, AttentionSpec
from twinline.attention.feature_maps import FeatureMap, sharpened

DIM = 5


def softmax(x: Tensor) -> Tensor:
    return torch.exp(x) / torch.exp(x).sum()


def hedgehog(x: Tensor, m: FeatureMap, h: int) -> Tensor:
    wx = m.weight[h].T @ x
    return torch.cat([softmax(wx), softmax(-wx)])


def gated(x: Tensor, m: FeatureMap, h: int) -> Tensor:
    wx = m.weight[h].T @ x
    phi = softmax(torch.cat([wx, -wx]) + m.bias[h, 0])
    if m.role == "query":
        return phi
    return phi * torch.exp(8 * torch.tanh((m.gain[h, :, 0] @ x + m.log_gain[h, 0, 0]) / 8))


FORMULAS = {
    "elu": lambda x, m, h: torch.where(x > 0, x * m.scale + 1, torch.exp(x * m.scale)),
    "relu": lambda x, m, h: (x * m.scale).clamp_min(0) + 1e-3,
    "exp": lambda x, m, h: torch.exp(8 * torch.tanh(x * m.scale / 8)),
    "hedgehog": hedgehog,
    "gated": gated,
}


@pytest.mark.parametrize("feature_dim", [None, 2, 3 * DIM + 1])
@pytest.mark.parametrize("role", ["query", "key"])
@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_formula_sign_and_width(name: str, role: str, feature_dim: int | None) -> None:
    spec = AttentionSpec(heads=2, head_dim=DIM, feature_dim=feature_dim)
    made = FEATURE_MAPS[name](spec, role).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 4, DIM, generator=generator).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    phi = made(x).detach()
    assert phi.shape == (3, 2, 4, made.features)
    assert (phi >= 0).all()
    for head in range(2):
        want = FORMULAS[name](x[2, head, 3], made, head)
        torch.testing.assert_close(phi[2, head, 3], want)


@pytest.mark.parametrize("name", ["hedgehog", "gated"])
def test_maps_start_at_the_scaled_identity_and_go_back_to_it(name: str) -> None:
    spec = AttentionSpec(heads=2, head_dim=DIM, feature_dim=2 * DIM)
    query, key = FEATURE_MAPS[name](spec, "query"), FEATURE_MAPS[name](spec, "key")
    start = {n: p.detach().clone() for n, p in key.named_parameters()}
    torch.testing.assert_close(start["weight"][1, :, :DIM], torch.eye(DIM) * DIM**-0.25)
    turned = start["weight"][0, :, DIM:] / DIM**-0.25
    torch.testing.assert_close(turned @ turned.T, torch.eye(DIM))
    torch.testing.assert_close(query.weight.detach(), start["weight"])
    with torch.no_grad():
        for parameter in key.parameters():
            parameter += 1
    key.reset()
    for parameter_name, parameter in key.named_parameters():
        assert torch.equal(parameter, start[parameter_name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_large_inputs_stay_finite(name: str, dtype: torch.dtype) -> None:
    made = FEATURE_MAPS[name](AttentionSpec(heads=2, head_dim=DIM), "key").to(dtype)
    x = torch.tensor([1e4, -1e4, 30.0, 0.0, -30.0], dtype=dtype).expand(1, 2, 3, DIM).clone()
    x.requires_grad_()
    made(x).float().square().sum().backward()
    assert torch.isfinite(made(x)).all()
    assert torch.isfinite(x.grad).all()


def test_a_gain_grows_with_the_logarithm_of_the_length() -> None:
    gain = torch.tensor([[[[2.0], [-1.0]]]])  # (batch, heads, length, 1)
    sharpness = torch.tensor([[[0.5]]])

    def at(count: int) -> list[float]:
        return sharpened(gain, sharpness, torch.tensor([count])).flatten().tolist()

    plain = (8 * torch.tanh(gain / 8)).flatten().tolist()
    assert at(10) == at(64) == pytest.approx(plain)
    assert at(640) == pytest.approx([g * (1 + 0.5 * math.log(10)) for g in plain])
    assert sharpened(gain, None, torch.tensor([640])).flatten().tolist() == pytest.approx(plain)
    assert sharpened(100 * gain, 9 * sharpness, torch.tensor([10**6])).abs().max() == 30
