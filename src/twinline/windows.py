"""Long texts in windows whose vectors are averaged, as encoders are used that stop somewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut(
    ids: Sequence[Sequence[int]], size: int, special: set[int]
) -> tuple[list[list[int]], Tensor]:
    """Token ids in windows of at most ``size``, each between the text's own special tokens.

    Returns: the windows, and the text that each belongs to, (windows,).
    """
    windows: list[list[int]] = []
    owner = []
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
    return windows, torch.tensor(owner)


def averages(vectors: Tensor, owner: Tensor, reads: Tensor | None = None) -> Tensor:
    """The mean of each text's windows' vectors, (texts, width).

    Args:
        vectors: (windows, width), as a pooling makes them, not normalised.
        owner: each window's text; see ``cut``.
        reads: (texts, texts), True where a text has another's windows too.
    """
    texts = int(owner.max()) + 1
    owns = torch.nn.functional.one_hot(owner, texts).T.to(vectors)  # (texts, windows)
    if reads is not None:
        owns = owns + reads.to(vectors) @ owns
    return (owns @ vectors) / owns.sum(dim=1, keepdim=True)
