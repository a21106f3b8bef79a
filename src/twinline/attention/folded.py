"""Linear attention with ``gated`` maps, for encoding: the maps' matrices in the projection.

With ``s = Wq`` the map is ``softmax([s + c, -s + d])``, that is ``[E, exp(c + d) / E] / Z`` with
``E = exp(s + c)``. W and c fold into the layer's projection; a query's Z cancels in linear
attention's quotient; a key's Z and gain become a weight of its value. What is left for every token
is one exponential and one division.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .feature_maps import Gated, sharpened
from .linear import LinearAttention, linear_read, summed
from .spec import masked

BOUND = 30.0
"""Largest exponent: beyond it a softmax has long been saturated, and products stay finite."""


def can_fold(attention: nn.Module) -> bool:
    """Not where sentences are kept apart: what is folded is one sum over the whole text."""
    whole = isinstance(attention, LinearAttention) and attention.log_weight is None
    return whole and isinstance(attention.q_map, Gated)


class FoldedAttention(nn.Module):
    """Called as the attention it is made from, on what its own ``split`` makes of a layer's input.

    Args:
        attention: for which ``can_fold`` holds.
        qkv: the layer's projection, (3 * heads * head_dim, hidden).
    """

    piece = 1
    reads_keys = False

    @torch.no_grad()
    def __init__(self, attention: LinearAttention, qkv: nn.Linear) -> None:
        super().__init__()
        q_map, k_map = attention.q_map, attention.k_map
        assert isinstance(q_map, Gated)
        assert isinstance(k_map, Gated)
        self.heads, self.head_dim = q_map.heads, q_map.head_dim
        self.directions = q_map.directions
        weights = qkv.weight.view(3, self.heads, self.head_dim, -1)
        biases = qkv.bias.view(3, self.heads, self.head_dim)

        def rows(matrix: Tensor, part: int, shift: Tensor) -> tuple[Tensor, Tensor]:
            """(heads, head_dim, f) put before part 0 (q) or 1 (k) of the projection."""
            weight = torch.einsum("hdf,hdx->hfx", matrix, weights[part])
            bias = torch.einsum("hdf,hd->hf", matrix, biases[part]) + shift
            return weight.flatten(0, 1), bias.flatten()

        (q_c, q_d), (k_c, k_d) = (m.bias[:, 0].chunk(2, dim=-1) for m in (q_map, k_map))
        values = weights[2].flatten(0, 1), biases[2].flatten()
        gains = rows(k_map.gain, 1, k_map.log_gain[:, 0])
        self.for_queries: nn.Module = bounded(joined(rows(q_map.weight, 0, q_c)))
        self.for_keys: nn.Module = bounded(joined(rows(k_map.weight, 1, k_c)))
        self.for_values: nn.Module = joined(values, gains)
        self.q_second: Tensor  # exp(c + d): (heads, 1, directions)
        self.k_second: Tensor
        self.sharpness: Tensor | None
        self.register_buffer("sharpness", k_map.sharpness)
        self.register_buffer("q_second", torch.exp(q_c + q_d).unsqueeze(1))
        self.register_buffer("k_second", torch.exp(k_c + k_d).unsqueeze(1))

    def queries(self, x: Tensor) -> Tensor:
        """Features of queries (b, h, n, features), each up to a factor; x is (b, n, hidden)."""
        return self.features(self.for_queries(x), self.q_second)

    def keys(self, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of keys (b, h, n, features) and values by their weight (b, h, n, d + 1)."""
        x = self.rounded(x)
        features = self.features(self.for_keys(x), self.k_second)
        b, n, _ = x.shape
        h, d = self.heads, self.head_dim
        v, log_gain = self.for_values(x).split((h * d, h), dim=-1)
        log_gain = sharpened(log_gain.transpose(1, 2).unsqueeze(-1), self.sharpness, count)
        weight = torch.exp(log_gain) / features.sum(-1, keepdim=True)
        values = v.new_empty(b, h, n, d + 1)
        torch.mul(v.view(b, n, h, d).transpose(1, 2), weight, out=values[..., :d])
        values[..., d:] = weight
        return features, values

    def values(self, x: Tensor) -> Tensor:
        """Values alone, without a weight: (b, h, n, d)."""
        b, n, _ = x.shape
        own: Tensor = self.for_values(self.rounded(x))[..., : self.heads * self.head_dim]
        return own.view(b, n, self.heads, self.head_dim).transpose(1, 2)

    def rounded(self, x: Tensor) -> Tensor:
        """What rounds x for its product rounds it once for all three."""
        product: Any = self.for_values
        rounded: Tensor = x if isinstance(product, nn.Linear) else product.rounded(x)
        return rounded

    def features(self, exponents: Tensor, second: Tensor) -> Tensor:
        """``[E, second / E]`` (b, h, n, features) of ``log E`` (b, n, h * directions)."""
        b, n, _ = exponents.shape
        f = self.directions
        # The exponential runs over one stretch of memory: twice as fast as head by head.
        first = exponents.exp_().view(b, n, self.heads, f).transpose(1, 2)
        both = first.new_empty(b, self.heads, n, 2 * f)
        both[..., :f] = first
        torch.div(second, first, out=both[..., f:])
        return both

    def split(self, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``queries`` and ``keys`` at once."""
        x = self.rounded(x)
        return self.queries(x), *self.keys(x, count)

    def collect(
        self, k: Tensor, v: Tensor, mask: Tensor | None, count: Tensor | None = None
    ) -> Tensor:
        """The state (b, h, features, d + 1) of one piece."""
        return k.transpose(-1, -2) @ masked(v, mask)

    def join(self, states: list[Tensor]) -> list[Tensor]:
        return summed(states)

    def read(
        self, q: Tensor, kv: tuple[Tensor, Tensor] | None, mask: Tensor | None, state: Tensor
    ) -> Tensor:
        return linear_read(q, state)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.read(q, None, mask, self.collect(k, v, mask))


def bounded(linear: nn.Linear) -> nn.Sequential:
    return nn.Sequential(linear, nn.Hardtanh(-BOUND, BOUND))


def joined(*parts: tuple[Tensor, Tensor]) -> nn.Linear:
    """One projection of the rows and biases of several."""
    weight, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear
