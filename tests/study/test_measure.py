"""Costs and laws, against what is known."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from twinline.config import TwinlineConfig
from twinline.model import TwinlineModel
from twinline.study.measure import flops, power_law, reached


@pytest.mark.parametrize("attention", ["softmax", "linear", "hybrid"])
@pytest.mark.parametrize("length", [64, 256])
def test_operations_are_those_that_pytorch_counts(attention: str, length: int) -> None:
    config = TwinlineConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, attention=attention, block_size=64, position_table=64,
    )  # fmt: skip
    model = TwinlineModel(config).train()  # the written-out paths, whose products are all seen
    ids = torch.randint(5, 50, (2, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids)
    counted = counter.get_total_flops()
    assert flops(config, ids.numel(), length) == pytest.approx(counted, rel=0.1)


def test_a_target_between_two_evaluations_costs_what_lies_between() -> None:
    curve = [
        {"steps": s, "pairs": 2 * s, "tokens": 100 * s, "seconds": s / 10, "flops": s, "pearson": r}
        for s, r in ((0, 0.1), (10, 0.7), (20, 0.8), (30, 0.78))
    ]
    made = reached(curve, 0.75).costs
    assert made is not None
    assert made["steps"] == pytest.approx(15)
    assert made["tokens"] == pytest.approx(1500)
    assert reached(curve, 0.85).costs is None
    assert reached(curve, 0.05).costs == {k: v for k, v in curve[0].items() if k != "pearson"}


def test_a_power_law_is_found_with_its_error() -> None:
    x = np.array([64, 128, 256, 512, 1024] * 3)
    noise = np.random.default_rng(0).normal(0, 0.05, len(x))
    law = power_law(x, 1 - 0.02 * x**0.4 * np.exp(noise))
    assert law is not None
    assert law.b == pytest.approx(0.4, abs=3 * law.b_error)
    assert law.a == pytest.approx(0.02, rel=0.3)
    assert law.spread == pytest.approx(0.05, rel=0.5)
    assert power_law([64, 64], [0.5, 0.6]) is None
