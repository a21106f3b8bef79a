"""Batches under a budget: how little of them is padding."""

import numpy as np
import pytest

from twinline.batching import CACHED_TOKENS, budget_batches, padded_tokens


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_most_3_percent_of_mixed_batches_is_padding(seed: int) -> None:
    """Sentences, paragraphs and documents together, as log-normal lengths from 3 to 20,000."""
    draw = np.random.default_rng(seed).lognormal(4.5, 1.3, 4096)
    counts = np.clip(draw, 3, 20_000).astype(int).tolist()
    batches = budget_batches(counts, CACHED_TOKENS)
    assert sorted(i for batch in batches for i in batch) == list(range(4096))
    padded = padded_tokens(counts, batches)
    assert sum(counts) <= padded <= sum(counts) / 0.97
