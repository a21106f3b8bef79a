"""Short convolutions: what linear attention is told of a token's neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention.spec import real_first, reorder


class Local(nn.Module):
    """What a depthwise convolution makes of each token and its neighbours; nothing at the start.

    Linear attention sums over a text and knows no places. A short convolution in front of it tells
    keys and queries their surroundings (as in Mamba, arXiv 2312.00752, sec. 3.4; here both ways),
    one beside it hands on its neighbours' values, which a global sum cannot (as in FLatten, arXiv
    2308.00442, sec. 3.3).
    """

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, hidden))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put the weights at their start: no effect."""
        self.weight.zero_()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(b, n, hidden) to the same; neighbours are real tokens, wherever padding stands."""
        order = None if mask is None else real_first(mask)
        real = x if mask is None else x * mask[:, :, None].to(x.dtype)
        if order is not None:
            real = reorder(real[:, None], order[0])[:, 0]
        mix = convolved if x.device.type == "cpu" else shifted
        added = mix(real, self.weight.to(x.dtype))
        if order is not None:
            added = reorder(added[:, None], order[1])[:, 0]
        return added


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Each of x (b, n, hidden) with its neighbours, by weight (size, hidden): (b, n, hidden)."""
    size, hidden = weight.shape
    # In two dimensions, one of them of one: on a processor its gradient is the faster.
    kernel = weight.T[:, None, None]  # (hidden, 1, 1, size)
    flat = x.transpose(1, 2).unsqueeze(2)  # (b, hidden, 1, n)
    made = F.conv2d(flat, kernel, padding=(0, size // 2), groups=hidden)
    return made.squeeze(2).transpose(1, 2)


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """``convolved`` for a GPU, where the gradient of a depthwise kernel is slow."""
    size, n = len(weight), x.shape[1]
    wide = F.pad(x, (0, 0, size // 2, size // 2))
    added = wide[:, :n] * weight[0]
    for i in range(1, size):
        added = torch.addcmul(added, wide[:, i : i + n], weight[i])
    return added
