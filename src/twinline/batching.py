"""Texts to token ids, and token ids to batches by their count, under a budget, in known order."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import TwinlineError
from .text import clean_text

Key = TypeVar("Key", bound=Hashable)

GROUP = 16
"""Shuffled batches that are sorted by length among themselves: enough to nearly end padding, few
enough that a batch is still a random draw of its lengths."""

CACHED_TOKENS = 2048
"""Tokens of a batch on a processor: what a layer makes of them should stay in its cache. Larger
batches are slower there, and pad more."""
WINDOW_TEXTS, WINDOW_CHARACTERS = 4096, 4_000_000
"""How much of an iterable is read ahead, to sort it by length."""


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text, special tokens included, nothing cut."""
    if not texts:
        return []
    made = tokenizer(
        [clean_text(t) for t in texts], truncation=False, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    ids: list[list[int]] = made["input_ids"]
    return ids


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """One batch of token ids, padded on the right: ids and mask, both (batch, length)."""
    length = max(1, max(map(len, ids), default=1))
    padded = torch.full((len(ids), length), pad_id, dtype=torch.long)
    mask = torch.zeros(len(ids), length, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = True
    return padded, mask


def distinct(items: Sequence[Key]) -> tuple[list[int], list[int]]:
    """Where each distinct item first stands, and for every item which of those it is.

    Request-level batching (arXiv 2511.06077, sec. 3.3): what several pairs share is encoded once.
    """
    first: dict[Key, int] = {}
    where: list[int] = []
    which = []
    for place, item in enumerate(items):
        if item not in first:
            first[item] = len(where)
            where.append(place)
        which.append(first[item])
    return where, which


def budget_batches(
    counts: Sequence[int], max_tokens: int, max_texts: int | None = None
) -> list[list[int]]:
    """Indices of texts in batches of at most ``max_tokens`` padded tokens, longest first.

    Texts are sorted by token count, so that little of a batch is padding. A text above the budget
    has a batch to itself.
    """
    if max_tokens < 1:
        raise TwinlineError(f"max_batch_tokens must be at least 1, not {max_tokens}.")
    if max_texts is not None and max_texts < 1:
        raise TwinlineError(f"batch_size must be at least 1, not {max_texts}.")
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        fit = max(1, max_tokens // max(1, counts[order[start]]))
        stop = start + min(fit, max_texts or fit)
        batches.append(order[start:stop])
        start = stop
    return batches


def padded_tokens(counts: Sequence[int], batches: Sequence[Sequence[int]]) -> int:
    """Tokens that ``batches`` (of indices into ``counts``) hold when padded to their longest."""
    return sum(len(batch) * max(counts[i] for i in batch) for batch in batches)


def windows(texts: Iterable[str]) -> Iterator[list[str]]:
    """``texts`` in lists of a few thousand, or million characters: what is sorted by length.

    If ``texts`` raises, what it gave before is yielded first.
    """
    window: list[str] = []
    characters = 0
    try:
        for text in texts:
            window.append(text)
            characters += len(text) if isinstance(text, str) else 0
            if len(window) == WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
                yield window
                window, characters = [], 0
    except Exception:
        if window:
            yield window
        raise
    if window:
        yield window


class ShuffledBatches:
    """Training batches of ``size`` items, shuffled anew each epoch, of similar length inside.

    ``batches[number]`` is a function of the seed and the number alone. Every epoch reads each item
    once; a last batch may be smaller.

    Args:
        keys: items of one key stay together, so that what they share is encoded once (request-level
            batching, arXiv 2511.06077, sec. 3.3); a batch's end may cut through them.
    """

    def __init__(
        self, counts: Sequence[int], size: int, seed: int, keys: Sequence[Hashable] | None = None
    ) -> None:
        if not len(counts):
            raise TwinlineError("There is nothing to train on: the data has no rows.")
        self.counts, self.size, self.seed = np.asarray(counts), size, seed
        self.per_epoch = -(-len(counts) // size)
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self.group: NDArray[np.int64] | None = None
        if keys is not None:
            self.group = np.array(distinct(keys)[1], dtype=np.int64)  # (items,)

    def __getitem__(self, number: int) -> list[int]:
        return self.epoch(number // self.per_epoch)[number % self.per_epoch]

    def _epoch(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, epoch))
        length = self.counts
        if self.group is None:
            order = random.permutation(len(self.counts))
        else:
            groups = int(self.group.max()) + 1
            order = np.argsort(random.permutation(groups)[self.group], kind="stable")
            longest = np.zeros(groups, dtype=self.counts.dtype)
            np.maximum.at(longest, self.group, self.counts)
            # Groups of one length stay apart: the group's number breaks the tie.
            length = longest[self.group] + self.group / groups
        batches: list[list[int]] = []
        for start in range(0, len(order), self.size * GROUP):
            group = order[start : start + self.size * GROUP]
            group = group[np.argsort(length[group], kind="stable")]
            cut = [group[i : i + self.size].tolist() for i in range(0, len(group), self.size)]
            # Only the very last batch may be short, so that equal steps mean equal pairs.
            short = cut.pop() if len(cut[-1]) < self.size else None
            random.shuffle(cut)
            batches += cut + ([short] if short else [])
        return batches
