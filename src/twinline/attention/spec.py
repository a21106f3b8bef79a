"""The options of one attention layer, and the two steps that every kind shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import AttentionOptions, at_least


@dataclass(frozen=True)
class AttentionSpec(AttentionOptions):
    """What one layer's attention is built from: the options, and where it stands in a model."""

    heads: int = 1
    head_dim: int = 32
    layer: int = 0
    """Index of the layer, counted from 0."""
    layers: int = 1
    """How many layers the model has; deeper layers decay more slowly (see ``lightning``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "heads", "head_dim", "layers")


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (batch, heads, length, width) with zeros where ``mask`` (batch, length) is False."""
    return x if mask is None else x * mask[:, None, :, None].to(x.dtype)


def real_first(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """The order that puts each row's real tokens first, and its inverse; None if they stand so.

    Blocks and distances count real tokens, so kinds that look at places work in this order: padding
    on the left, on the right or in between then makes no difference. Both are (batch, length).
    """
    if mask.shape[1] < 2 or bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return None
    order = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)
    return order, torch.argsort(order, dim=1)


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """``x`` (batch, heads, length, width) with its length dimension taken in ``order``."""
    return torch.gather(x, 2, order[:, None, :, None].expand_as(x))
