"""Linear attention with ``gated`` maps, for encoding: the maps' matrices in the projection.

With ``s = Wq`` the map is ``softmax([s + c, -s + d])``, that is ``[E, exp(c + d) / E] / Z`` with
``E = exp(s + c)``. W and c fold into the layer's projection; a query's Z cancels in linear
attention's quotient; a key's Z and gain become a weight of its value. What is left for every token
is one exponential and one division.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .feature_maps import LOG_GAIN_BOUND, Gated
from .linear import TINY, LinearAttention
from .spec import masked

BOUND = 30.0
"""Largest exponent: beyond it a softmax has long been saturated, and products stay finite."""


def can_fold(attention: nn.Module) -> bool:
    return isinstance(attention, LinearAttention) and isinstance(attention.q_map, Gated)


class FoldedAttention(nn.Module):
    """Called as the attention it is made from, on what its own ``split`` makes of a projection.

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

        def rows(matrix: Tensor, part: int, shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
            """(heads, head_dim, f) put before part 0 (q) or 1 (k) of the projection."""
            weight = torch.einsum("hdf,hdx->hfx", matrix, weights[part])
            bias = torch.einsum("hdf,hd->hf", matrix, biases[part]) + shift
            return weight.flatten(0, 1), bias.flatten()

        (q_c, q_d), (k_c, k_d) = (m.bias[:, 0].chunk(2, dim=-1) for m in (q_map, k_map))
        parts = [
            rows(q_map.weight, 0, q_c),
            rows(k_map.weight, 1, k_c),
            (weights[2].flatten(0, 1), biases[2].flatten()),
            rows(k_map.gain, 1, k_map.log_gain[:, 0]),
        ]
        self.projection = nn.Linear(qkv.in_features, sum(len(bias) for _, bias in parts))
        self.projection.weight.copy_(torch.cat([weight for weight, _ in parts]))
        self.projection.bias.copy_(torch.cat([bias for _, bias in parts]))
        self.second: Tensor  # exp(c + d) of queries and keys: (2, heads, 1, directions)
        self.register_buffer("second", torch.exp(torch.stack([q_c + q_d, k_c + k_d])).unsqueeze(2))

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys (b, h, n, features), weighted values (b, h, n, d + 1).

        ``projected`` is (b, n, outputs of ``projection``).
        """
        b, n, _ = projected.shape
        h, d, f = self.heads, self.head_dim, self.directions
        exponents, v, log_gain = projected.split((2 * h * f, h * d, h), dim=-1)
        # The exponential runs over one stretch of memory: twice as fast as head by head.
        first = torch.clamp(exponents, -BOUND, BOUND).exp_().view(b, n, 2, h, f)
        made = []
        for part, second in zip(first.permute(2, 0, 3, 1, 4), self.second, strict=True):
            features = projected.new_empty(b, h, n, 2 * f)
            features[..., :f] = part
            torch.div(second, part, out=features[..., f:])
            made.append(features)
        log_gain = LOG_GAIN_BOUND * torch.tanh(log_gain.transpose(1, 2) / LOG_GAIN_BOUND)
        weight = torch.exp(log_gain).unsqueeze(-1) / made[1].sum(-1, keepdim=True)
        values = projected.new_empty(b, h, n, d + 1)
        torch.mul(v.view(b, n, h, d).transpose(1, 2), weight, out=values[..., :d])
        values[..., d:] = weight
        return made[0], made[1], values

    def collect(self, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The state (b, h, features, d + 1) of one piece."""
        return k.transpose(-1, -2) @ masked(v, mask)

    def join(self, states: list[Tensor]) -> list[Tensor]:
        return [torch.stack(states).sum(dim=0)] * len(states)

    def read(
        self, q: Tensor, kv: tuple[Tensor, Tensor] | None, mask: Tensor | None, state: Tensor
    ) -> Tensor:
        """(b, h, n, d), laid out so that heads are joined without a copy."""
        sums = (q @ state).transpose(1, 2)  # (b, n, h, d + 1)
        return (sums[..., :-1] / sums[..., -1:].clamp_min(TINY)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.read(q, None, mask, self.collect(k, v, mask))
