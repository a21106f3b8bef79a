"""``twinline inspect``: how long texts are, and what a limit would drop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .arguments import whole_number
from .batching import CACHED_TOKENS, budget_batches, padded_tokens, token_ids, windows
from .errors import TwinlineError
from .text import iter_texts

QUANTILES = (0, 10, 25, 50, 75, 90, 99, 100)


def inspection(texts: Iterable[str], tokenizer: Any, limits: Sequence[int]) -> str:
    """A report in words: the distribution of token counts, what each limit cuts, padding.

    Args:
        texts: read once, a few thousand at a time.
        limits: in tokens, special ones counted.
    Raises: TwinlineError if there is no text, an item is none, or a limit is below 1.
    """
    limits = [whole_number("limits", limit, 1) for limit in limits]
    found, padded = [np.zeros(0, dtype=np.int64)], 0
    for window in windows(iter_texts(texts)):
        lengths = [len(ids) for ids in token_ids(tokenizer, window)]
        padded += padded_tokens(lengths, budget_batches(lengths, CACHED_TOKENS))
        found.append(np.array(lengths))
    counts = np.concatenate(found)
    if not len(counts):
        raise TwinlineError("There is no text to inspect: give a source with at least one.")
    total = int(counts.sum())
    lines = [f"{len(counts):,} texts, {total:,} tokens, mean {counts.mean():,.1f}", ""]
    lines += ["| percentile | " + " | ".join(f"{q}" for q in QUANTILES) + " |"]
    lines += ["|---" * (len(QUANTILES) + 1) + "|"]
    places = np.percentile(counts, QUANTILES, method="nearest")
    lines += ["| tokens | " + " | ".join(f"{int(p):,}" for p in places) + " |", ""]
    lines += ["| limit | texts cut | tokens dropped |", "|---|---|---|"]
    for limit in limits:
        longer = counts[counts > limit]
        dropped = int((longer - limit).sum())
        lines.append(
            f"| {limit:,} | {len(longer):,} ({len(longer) / len(counts):.1%}) "
            f"| {dropped:,} ({dropped / max(1, total):.1%}) |"
        )
    lines += ["", f"Padding in batches sorted by length: {1 - total / max(1, padded):.1%}"]
    return "\n".join(lines)
