"""Correlations against scipy, and intervals against what they promise."""

import numpy as np
import pytest
import scipy.stats

from twinline.errors import TwinlineError
from twinline.statistics import (
    Correlation,
    _counts,
    _resampled,
    accuracy,
    correlation,
    f1,
    paired_difference,
    pearson,
    spearman,
)

SCIPY = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}


def normal_pairs(count: int, rho: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a, noise = generator.normal(size=(2, count))
    return a, rho * a + np.sqrt(1 - rho**2) * noise


def test_values_are_scipys() -> None:
    a, b = normal_pairs(101, 0.6, 0)
    b = np.round(b * 2)  # ties
    assert pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-12)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    assert type(pearson([1, 2, 3], [1, 2, 4])) is float


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_each_resample_is_what_scipy_gives_on_the_drawn_pairs(kind: str, shift: float) -> None:
    a, b = normal_pairs(40, 0.6, 1)
    a, b = a + shift, np.round(b)
    (counts,) = _counts(40, 25, seed=3)
    drawn = [np.repeat(np.arange(40), row.astype(int)) for row in counts]
    wanted = [SCIPY[kind](a[rows], b[rows]).statistic for rows in drawn]
    assert _resampled(kind, a, b, counts) == pytest.approx(np.asarray(wanted), abs=1e-8)


def test_every_resample_has_as_many_pairs_and_every_pair_its_turn() -> None:
    counts = np.concatenate(list(_counts(1500, 2000, seed=0)))
    assert counts.shape == (2000, 1500)
    assert (counts.sum(axis=1) == 1500).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(1500), abs=0.12)
    assert counts.var() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_the_interval_is_near_scipys_bootstrap(kind: str) -> None:
    a, b = normal_pairs(300, 0.8, 2)
    ours = correlation(a, b, kind=kind, resamples=2000, seed=0)
    theirs = scipy.stats.bootstrap(
        (a, b),
        lambda x, y: SCIPY[kind](x, y).statistic,
        paired=True,
        n_resamples=500,
        method="percentile",
        rng=0,
        vectorized=False,
    ).confidence_interval
    assert ours.value == SCIPY[kind](a, b).statistic
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.count == 300


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(300):
        found = correlation(*normal_pairs(100, 0.7, seed), resamples=400, seed=seed)
        covered += found.low <= 0.7 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_the_paired_interval_is_much_narrower_than_the_two_apart() -> None:
    gold, a = normal_pairs(400, 0.8, 4)
    b = a + 0.1 * np.random.default_rng(5).normal(size=400)
    difference = paired_difference(a, b, gold)
    assert difference.value == pytest.approx(pearson(a, gold) - pearson(b, gold))
    assert difference.low < difference.value < difference.high
    apart = correlation(a, gold)
    assert difference.high - difference.low < (apart.high - apart.low) / 2
    swapped = paired_difference(b, a, gold)
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low))


def test_a_prediction_does_not_differ_from_itself() -> None:
    gold, a = normal_pairs(50, 0.5, 6)
    assert paired_difference(a, a, gold, kind="spearman") == Correlation(0, 0, 0, 50)


def test_the_seed_decides() -> None:
    pairs = normal_pairs(50, 0.5, 7)
    assert correlation(*pairs, seed=1) == correlation(*pairs, seed=1)
    assert correlation(*pairs, seed=1) != correlation(*pairs, seed=2)


def test_resamples_without_a_correlation_are_left_out() -> None:
    found = correlation([0.1, 0.1, 0.1, 0.3], [1.0, 2.0, 3.0, 4.0])
    assert 0 < found.low <= found.value <= found.high <= 1 + 1e-9


def test_it_prints_as_in_a_table() -> None:
    assert str(Correlation(0.8971, 0.8838, 0.9091, 1500)) == "0.897 [0.884, 0.909]"


@pytest.mark.parametrize("function", [pearson, spearman, correlation])
@pytest.mark.parametrize(
    ("a", "b", "fragment"),
    [
        ([1, float("nan"), 3], [1, 2, 3], "value 2 of the first vector is nan"),
        ([1, 2, 3], [1, 2, float("inf")], "value 3 of the second vector is inf"),
        ([1, 2, 3], [0.1, 0.1, 0.1], "all 3 values of the second vector are 0.1"),
        ([1], [2], "all 1 values of the first"),
        ([1, 2, 3], [1, 2], r"\(3,\) and \(2,\)"),
        ([[1, 2]], [[1, 2]], "shapes"),
        ([], [], "both are empty"),
    ],
)
def test_what_has_no_correlation_is_refused(function, a, b, fragment) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TwinlineError, match=fragment):
        function(a, b)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TwinlineError, match=r"kind must be one of pearson, spearman, not 'kendal'"):
        correlation([1, 2, 3], [1, 3, 2], kind="kendal")  # type: ignore[arg-type]
    with pytest.raises(TwinlineError, match="resamples must be at least 1"):
        correlation([1, 2, 3], [1, 3, 2], resamples=0)


def test_accuracy_and_f1() -> None:
    gold, prediction = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    assert accuracy(prediction, gold) == pytest.approx(4 / 6)
    assert f1(prediction, gold) == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert f1([0, 0], [1, 0]) == 0
    with pytest.raises(TwinlineError, match="neither predicted nor"):
        f1([0, 0], [0, 0])
    with pytest.raises(TwinlineError, match="same length"):
        accuracy([0], [0, 1])
