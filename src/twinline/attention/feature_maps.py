"""Feature maps: what linear attention puts in the place of ``exp(q·k)``.

Each is an ``nn.Module`` over ``(batch, heads, length, head_dim)`` that returns non-negative
``(batch, heads, length, features)``; ``map.features`` says how many. Queries and keys have a map
each (untied): ``FEATURE_MAPS[name](spec, role)`` with role "query" or "key". A map starts with
``scale = head_dim ** -0.25`` on both sides, so that products of features begin where softmax's
``q·k / sqrt(head_dim)`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .spec import AttentionSpec, longer

LOG_GAIN_BOUND = 8.0
"""Log of the largest gain of a key: ``exp(±8)`` spans seven decades and is safe in bfloat16."""
USUAL = 64
"""Tokens up to which no gain is sharpened."""
MOST = 30.0
"""Largest log-gain of a sharpened key: sums of a million of them stay finite."""


class FeatureMap(nn.Module):
    """What all maps share: how many features they make, and that they know how to start."""

    def __init__(self, spec: AttentionSpec, role: str) -> None:
        super().__init__()
        self.heads, self.head_dim = spec.heads, spec.head_dim
        self.role = role
        self.scale = float(spec.head_dim**-0.25)
        self.features = spec.head_dim

    def reset(self) -> None:
        """Put every parameter at its start (called by the model's ``_init_weights``)."""


class Elu(FeatureMap):
    """``elu(x) + 1`` (Katharopoulos et al., arXiv 2006.16236, eq. 7)."""

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        return F.elu(x * self.scale) + 1


class Relu(FeatureMap):
    """``relu(x)``, with a floor so that no denominator vanishes."""

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        return F.relu(x * self.scale) + 1e-3


class Exp(FeatureMap):
    """``exp(x)``, the exponent bounded smoothly so that bfloat16 sums stay finite."""

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        return torch.exp(LOG_GAIN_BOUND * torch.tanh(x * (self.scale / LOG_GAIN_BOUND)))


class Hedgehog(FeatureMap):
    """``[softmax(Wx), softmax(-Wx)]`` with W per head (Zhang et al., arXiv 2402.04347, sec. 4.2).

    W starts at the identity times ``scale``; directions beyond head_dim start as random
    orthonormal rotations of it, the same in every layer and for both roles so that q and k agree.
    """

    def __init__(self, spec: AttentionSpec, role: str) -> None:
        super().__init__(spec, role)
        self.directions = spec.feature_dim or spec.head_dim
        self.features = 2 * self.directions
        self.weight = nn.Parameter(torch.empty(self.heads, self.head_dim, self.directions))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        generator = torch.Generator().manual_seed(0)
        parts = [torch.eye(self.head_dim)]
        while len(parts) * self.head_dim < self.directions:
            noise = torch.randn(self.head_dim, self.head_dim, generator=generator)
            parts.append(torch.linalg.qr(noise).Q)
        start = torch.cat(parts, dim=1)[:, : self.directions] * self.scale
        self.weight.copy_(start.expand_as(self.weight))

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        signed = x @ self.weight.to(x.dtype)  # (batch, heads, length, directions)
        return torch.cat([signed.softmax(-1), (-signed).softmax(-1)], dim=-1)


class Gated(Hedgehog):
    """Hedgehog with what its softmax throws away: how much a key weighs in all.

    ``phi(k) = exp(g(k)) softmax([Wk + c, -Wk + d])`` with a learned log-gain ``g(k) = u·k + e``
    per head. In softmax attention a key's total pull, ``E_q exp(q·k)``, differs by orders of
    magnitude between keys ([CLS] and [SEP] take most of it); hedgehog gives every key the same.
    The gain of a query cancels in linear attention's quotient, so queries have none.

    ``report``, if set, is called with the keys' log-gains (batch, heads, length).
    """

    def __init__(self, spec: AttentionSpec, role: str) -> None:
        FeatureMap.__init__(self, spec, role)
        self.report: Callable[[Tensor], None] | None = None
        self.directions = spec.feature_dim or spec.head_dim
        self.features = 2 * self.directions
        self.weight = nn.Parameter(torch.empty(self.heads, self.head_dim, self.directions))
        self.bias = nn.Parameter(torch.empty(self.heads, 1, self.features))
        if role == "key":
            self.gain = nn.Parameter(torch.empty(self.heads, self.head_dim, 1))
            self.log_gain = nn.Parameter(torch.empty(self.heads, 1, 1))
            self.sharpness: nn.Parameter | None = None
            if spec.sharpen:
                self.sharpness = nn.Parameter(torch.empty(self.heads, 1, 1))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        super().reset()
        self.bias.zero_()
        if self.role == "key":
            self.gain.zero_()
            self.log_gain.zero_()
            if self.sharpness is not None:
                self.sharpness.zero_()

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        # One product for both signs, with the bias in it: fewer passes than negating and joining.
        batch, heads, length, width = x.shape
        both = torch.cat([self.weight, -self.weight], dim=-1).to(x.dtype).repeat(batch, 1, 1)
        bias = self.bias.to(x.dtype).repeat(batch, 1, 1)  # (batch * heads, 1, features)
        signed = torch.baddbmm(bias, x.reshape(batch * heads, length, width), both)
        phi = signed.softmax(-1).view(batch, heads, length, -1)
        if self.role != "key":
            return phi
        log_gain = x @ self.gain.to(x.dtype) + self.log_gain.to(x.dtype)
        log_gain = sharpened(log_gain, self.sharpness, count)
        if self.report:
            self.report(log_gain.squeeze(-1))
        return phi * torch.exp(log_gain)


def sharpened(log_gain: Tensor, sharpness: Tensor | None, count: Tensor | None) -> Tensor:
    """The log-gain of a key, bounded, and in long texts larger either way.

    ``g (1 + s_h log(n / 64))`` for n > 64 tokens: a gain that suffices against a few tokens of
    filler is outweighed by n of them, one that grows with log n is not (as Scalable-Softmax, arXiv
    2501.19399, does for softmax).

    Args:
        log_gain: (batch, heads, length, 1).
        sharpness: s, (heads, 1, 1); None: nothing is sharpened.
        count: n of each text, (batch,).
    """
    bounded = LOG_GAIN_BOUND * torch.tanh(log_gain / LOG_GAIN_BOUND)
    if sharpness is None or count is None:
        return bounded
    more = longer(count, USUAL, log_gain.dtype)
    return (bounded * (1 + sharpness.to(log_gain.dtype) * more)).clamp(-MOST, MOST)


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    "elu": Elu,
    "relu": Relu,
    "exp": Exp,
    "hedgehog": Hedgehog,
    "gated": Gated,
}
