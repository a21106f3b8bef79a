"""Decayed linear attention by tiles, both directions: Lightning Attention-2, arXiv 2401.04658.

The paper's algorithm is causal: quadratic inside a tile, a running key-value state between tiles.
Here a second state runs backwards, and the tile's own product covers both directions at once, so
that every pair of tokens (the diagonal included) is counted exactly once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .feature_maps import FEATURE_MAPS
from .linear import TINY
from .spec import AttentionSpec, in_fp32, masked, real_first, reorder


def slopes(spec: AttentionSpec) -> Tensor:
    """``s_h = decay · 8h/H · (1 - l/L)`` for heads h = 0..H-1 in layer l of L: (heads,).

    TransNormerLLM's formula (arXiv 2307.14995, eq. 9) times ``decay``; head 0 never decays.
    """
    head = torch.arange(spec.heads, dtype=torch.float32)
    return spec.decay * 8 * head / spec.heads * (1 - spec.layer / spec.layers)


def lightning_sums(
    q_features: Tensor, k_features: Tensor, v: Tensor, slope: Tensor, tile: int
) -> Tensor:
    """``Σ_j exp(-s_h |i-j|) (φ(q_i)·φ(k_j)) v_j`` for every i, in N · tile.

    Args:
        q_features, k_features: (batch, heads, length, features).
        v: (batch, heads, length, width).
        slope: (heads,), s_h ≥ 0.
        tile: tokens in a tile; changes the speed, not the result.
    Returns: (batch, heads, length, width).
    """
    batch, heads, length, width = v.shape
    tile = min(tile, length)
    tiles = -(-length // tile)
    pad = tiles * tile - length  # zero keys add nothing to any sum

    def tiled(x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, 0, 0, pad)) if pad else x
        return x.reshape(batch, heads, tiles, tile, x.shape[-1])

    qt, kt, vt = tiled(q_features), tiled(k_features), tiled(v)
    place = torch.arange(tile, device=v.device, dtype=slope.dtype)
    s = slope[:, None]  # (heads, 1)
    inside = torch.exp(-s[:, :, None] * (place[:, None] - place).abs())  # (heads, tile, tile)
    scores = (qt @ kt.transpose(-1, -2)) * inside[:, None].to(v.dtype)
    out = scores @ vt  # (batch, heads, tiles, tile, width)
    if tiles == 1:
        return out[:, :, 0, :length]

    # What a token at place p has decayed by when it reaches its tile's last or first place, and
    # the same from there to a query in the next tile or the one before.
    to_end = torch.exp(-s * (tile - 1 - place))[:, None, :, None].to(v.dtype)
    to_start = torch.exp(-s * place)[:, None, :, None].to(v.dtype)
    step = torch.exp(-s * 1.0)[:, :, None].to(v.dtype)  # (heads, 1, 1): into the next tile
    across = torch.exp(-s * tile)[:, :, None]  # (heads, 1, 1)
    wide = torch.promote_types(v.dtype, torch.float32)
    ahead = ((kt * to_end).transpose(-1, -2) @ vt).to(wide)  # (b, h, tiles, f, width)
    behind = ((kt * to_start).transpose(-1, -2) @ vt).to(wide)

    def running(states: Tensor, order: range) -> Tensor:
        """Before each tile, the decayed sum of the tiles that come earlier in ``order``."""
        state = torch.zeros_like(states[:, :, 0])
        before: dict[int, Tensor] = {}
        for n in order:
            before[n] = state
            state = across.to(wide) * state + states[:, :, n]
        return torch.stack([before[n] for n in range(tiles)], dim=2).to(v.dtype)

    out = out + (qt * (to_start * step[:, None])) @ running(ahead, range(tiles))
    out = out + (qt * (to_end * step[:, None])) @ running(behind, range(tiles - 1, -1, -1))
    return out.reshape(batch, heads, tiles * tile, width)[:, :, :length]


def lightning_attention(
    q_features: Tensor,
    k_features: Tensor,
    v: Tensor,
    slope: Tensor,
    mask: Tensor | None = None,
    tile: int = 128,
    gain: Tensor | None = None,
) -> Tensor:
    """Decayed linear attention, normalised by the decayed denominator or, with ``gain``, by RMS.

    With ``gain`` (heads, head_dim) the sums are divided by their root mean square over head_dim in
    fp32 (TransNormer, arXiv 2210.10340); without it by ``Σ_j exp(-s_h |i-j|) φ(q_i)·φ(k_j)``.
    ``|i-j|`` counts real tokens. Shapes as ``linear_attention``.
    """
    order = None if mask is None else real_first(mask)
    k_features = masked(k_features, mask)
    if order is not None:
        q_features, k_features, v = (reorder(x, order[0]) for x in (q_features, k_features, v))
    wide = torch.promote_types(v.dtype, torch.float32)
    if gain is None:
        with_one = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        sums = lightning_sums(q_features, k_features, with_one, slope, tile).to(wide)
        out = sums[..., :-1] / sums[..., -1:].clamp_min(TINY)
    else:
        sums = lightning_sums(q_features, k_features, v, slope, tile).to(wide)
        scale = torch.rsqrt(sums.square().mean(dim=-1, keepdim=True) + 1e-6)
        out = sums * scale * gain[:, None].to(wide)
    out = out.to(v.dtype)
    return out if order is None else reorder(out, order[1])


class LightningAttention(nn.Module):
    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.q_map = FEATURE_MAPS[spec.feature_map](spec, "query")
        self.k_map = FEATURE_MAPS[spec.feature_map](spec, "key")
        # The slope is its square: never negative, and a head at 0 stays there. A fixed one is a
        # buffer: loading a checkpoint makes every parameter trainable.
        self.root_slope: Tensor
        if spec.learn_decay:
            self.root_slope = nn.Parameter(torch.empty(spec.heads))
        else:
            self.register_buffer("root_slope", torch.empty(spec.heads))
        if spec.normalisation == "rms":
            self.gain: nn.Parameter | None = nn.Parameter(torch.empty(spec.heads, spec.head_dim))
        else:
            self.register_parameter("gain", None)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put this module's own parameters at their start."""
        self.root_slope.copy_(slopes(self.spec).sqrt())
        if self.gain is not None:
            self.gain.fill_(1.0)

    @in_fp32
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        slope = self.root_slope.float().square()
        return lightning_attention(
            self.q_map(q), self.k_map(k), v, slope, mask, self.spec.block_size, self.gain
        )
