"""Long texts in windows whose vectors are averaged, as encoders are used that stop somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Texts in windows."""

    ids: list[list[int]]
    """Token ids, each window between its text's own special tokens."""
    owner: Tensor
    """The text that each belongs to, (windows,)."""
    sizes: Tensor
    """How much each counts in its text: tokens, special ones left out, but 1 at least, (windows,).

    The last window of a text may be a few tokens long, whose vector says little.
    """

    def share(self) -> Tensor:
        """Of each window in its text, (windows,)."""
        texts = torch.zeros_like(self.sizes).index_add(0, self.owner, self.sizes)
        return self.sizes / texts[self.owner]


def cut(ids: Sequence[Sequence[int]], size: int, special: set[int]) -> Windows:
    """Windows of at most ``size`` tokens, special ones among them."""
    windows: list[list[int]] = []
    owner, sizes = [], []
    for text, row in enumerate(ids):
        start, stop = 0, len(row)
        if stop > size:
            start += row[start] in special  # one on each side: [UNK] within a text is special too
            stop -= row[stop - 1] in special
        step = max(1, size - start - (len(row) - stop)) if len(row) > size else max(1, stop)
        for place in range(start, max(stop, start + 1), step):
            body = row[place : min(place + step, stop)]
            windows.append([*row[:start], *body, *row[stop:]])
            owner.append(text)
            sizes.append(float(max(1, len(body))))
    return Windows(windows, torch.tensor(owner), torch.tensor(sizes))


def averages(vectors: Tensor, windows: Windows, reads: Tensor | None = None) -> Tensor:
    """The mean of each text's windows' vectors by their sizes, (texts, width).

    Args:
        vectors: (windows, width), as a pooling makes them, not normalised.
        reads: (texts, texts), True where a text has another's windows too.
    """
    texts = int(windows.owner.max()) + 1
    owns = torch.nn.functional.one_hot(windows.owner, texts) * windows.sizes[:, None]
    weights = owns.T.to(vectors)  # (texts, windows)
    if reads is not None:
        weights = weights + reads.to(vectors) @ weights
    return (weights @ vectors) / weights.sum(dim=1, keepdim=True)
