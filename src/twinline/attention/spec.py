"""The options of one attention layer, and the two steps that every kind shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..options import AttentionOptions, at_least

USUAL = 512
"""Tokens up to which the rest of a text weighs, against a token's own block, what transfer taught
it; transfer reads no longer texts."""
FAINT = 4.0
"""By how much less, in the logarithm, the rest of a text weighs at the start where a sentence has
anchors and can do without: what it adds is learned. Softmax's own weights for it would mix
sentences from the start."""


@dataclass(frozen=True)
class Ends:
    """A text's first and last token, which each of its sentences reads."""

    k: Tensor
    """Their keys (or features of them), (batch, heads, 2, head_dim)."""
    v: Tensor
    here: tuple[bool, bool] = (True, True)
    """Whether they stand in what is read, a text or a piece of one: they are then near already to
    its first, and its last, sentence."""


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


@dataclass(frozen=True)
class Lent:
    """Prose that the texts of a batch lend one another, so that each is part of a longer text.

    A sum over tokens does not ask where they stand, so the state of linear attention and a pooling
    can go over the tokens of several texts at the cost of each one's own: in training, a batch of
    short texts is a batch of long *virtual* ones.
    """

    tokens: Tensor
    """(batch, length), True where a token is lent."""
    reads: Tensor
    """(batch, batch), True where text i reads what text j lends; i is never j."""

    def gathered(self, states: Tensor) -> Tensor:
        """For each text the sum of the ``states`` (batch, ...) of those it reads."""
        return torch.einsum("ij,j...->i...", self.reads.to(states.dtype), states)

    def mask(self, real: Tensor) -> Tensor:
        """What each text reads of all texts' tokens: (batch, batch * length)."""
        own = torch.eye(len(real), dtype=torch.bool, device=real.device)[:, :, None] & real
        return (own | (self.reads[:, :, None] & self.tokens)).flatten(1)


Method = TypeVar("Method", bound=Callable[..., Any])


def in_fp32(method: Method, back: bool = True) -> Method:
    """A processor computes attention in fp32, also from bfloat16 and under autocast.

    Its gradients pass through quotients whose parts nearly cancel: in bfloat16 they are off by a
    few percent. The products are small, and without AMX fp32 ones are the faster. With ``back`` a
    tensor that the method returns is given back in the first argument's dtype.
    """

    @wraps(method)
    def run(self: Any, first: Tensor, *others: Any, **named: Any) -> Any:
        if first.device.type != "cpu" or first.dtype != torch.bfloat16:
            return method(self, first, *others, **named)
        with torch.autocast("cpu", enabled=False):
            made = method(self, *(widened(x) for x in (first, *others)), **named)
        return made.to(first.dtype) if back and isinstance(made, Tensor) else made

    return cast(Method, run)


def widened(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(widened(part) for part in x)
    if isinstance(x, Ends):
        return replace(x, k=widened(x.k), v=widened(x.v))
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x


def longer(count: Tensor, usual: int, dtype: torch.dtype) -> Tensor:
    """``log(n / usual)`` of texts of n = ``count`` (batch,) tokens, 0 for shorter ones.

    Returns: (batch, 1, 1, 1), to stand beside (batch, heads, length, width).
    """
    return torch.log(count.to(dtype) / usual).clamp_min(0.0)[:, None, None, None]


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
