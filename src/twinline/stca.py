"""Stacked target-to-history cross attention: one query reads a long history, linear in its length.

STCA (arXiv 2511.06077, sec. 3.1). With the history ``X`` (length, width) and the target ``t``,
layer i = 1..m makes

    q_i = LN(SwiGLU([o_1; ...; o_{i-1}; t])),    o_i = W_o concat_h(Σ_j a_hj W_v,h x_j),
    a_h = softmax_j(s_h log(n) · (W_k,h^T q_ih)·x_j / √d)

so a layer's query has seen what earlier layers read. SwiGLU is ``W_2 (silu(W_1 x) ⊙ W_3 x)``
(arXiv 2002.05202). Three things differ from the paper:

- Keys and values are never made: ``W_k`` goes to the one query's side and ``W_v`` behind the sum,
  so that a layer reads the history twice and writes nothing of its length but the weights.
- Weights are sharpened by ``log n``, n being the real tokens, with a learned ``s`` a head
  (Scalable-Softmax, arXiv 2501.19399): else whatever one token says drowns in n others.
- The history is read as it is; the paper transforms it in each layer. Here it comes out of an
  encoder, whose last step is a feed-forward already.

At the start ``W_k`` is zero, ``W_v`` and ``W_o`` are the identity: the output is the mean.

Where target and history come from one space, as a query's vector and a candidate's states do, a
*matching* STCA starts as a search instead: the query is ``LN(t + SwiGLU(...))`` with ``W_2`` zero
and ``W_k`` the identity, so that the target reads what is most like it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 4096
"""Tokens of the history that are read at a time."""
USUAL = 64
"""Length at which ``s_h log(n)`` starts at one."""
MATCHING = 16.0
"""What it starts at where a target reads what is like it. Means of token states are about one long,
and a document's cosines to a question lie a few tenths apart: with 4 it reads nearly their mean.
Chosen among 4, 8, 16, 24 and 32 on 83 validation questions about 25 stories (SQuALITY)."""


class CrossAttention(nn.Module):
    """One layer: the query from what is known, and what it reads."""

    def __init__(self, width: int, heads: int, known: int, matching: bool = False) -> None:
        super().__init__()
        self.width, self.heads, self.matching = width, heads, matching
        each = width // heads
        self.gate = nn.Parameter(torch.empty(width, known * width))  # W_1
        self.up = nn.Parameter(torch.empty(width, known * width))  # W_3
        self.down = nn.Parameter(torch.empty(width, width))  # W_2
        self.norm = nn.LayerNorm(width)
        self.key = nn.Parameter(torch.empty(heads, each, width))
        self.value = nn.Parameter(torch.empty(heads, each, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.sharpness = nn.Parameter(torch.empty(heads, 1))  # s_h
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Put every parameter at its start."""
        generator = torch.Generator().manual_seed(0)
        for weight in (self.gate, self.up, self.down):
            spread = weight.shape[1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        self.norm.reset_parameters()
        self.key.zero_()
        identity = torch.eye(self.width)
        if self.matching:
            self.down.zero_()
            self.key.copy_(identity.view_as(self.key))
        self.value.copy_(identity.view_as(self.value))
        self.out.copy_(identity)
        self.sharpness.fill_((MATCHING if self.matching else 1.0) / math.log(USUAL))

    def query(self, known: Tensor) -> Tensor:
        """(batch, width) from (batch, known * width)."""
        wide = known.dtype
        fed = F.silu(known @ self.gate.T.to(wide)) * (known @ self.up.T.to(wide))
        scale, shift = self.norm.weight.to(wide), self.norm.bias.to(wide)
        asked = fed @ self.down.T.to(wide)
        if self.matching:
            asked = asked + known[:, -self.width :]
        return F.layer_norm(asked, (self.width,), scale, shift)

    def forward(self, known: Tensor, history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What is read, (batch, width), and by which weights, (batch, heads, n).

        ``known`` is (batch, known * width), the history (batch, n, width), or (n, width) if all
        read the same one.
        """
        wide = known.dtype
        each = self.width // self.heads
        q = self.query(known).unflatten(-1, (self.heads, each))  # (b, h, d)
        asked = torch.einsum("bhd,hdx->bhx", q, self.key.to(wide)) * each**-0.5
        count = mask.sum(dim=1, dtype=wide).clamp_min(2.0)[:, None, None]
        asked = asked * (self.sharpness.to(wide) * torch.log(count))  # (b, h, width)
        parts = history.split(PIECE, dim=-2)
        logits = torch.cat([asked @ part.to(wide).transpose(-1, -2) for part in parts], dim=-1)
        least = torch.finfo(wide).min
        weights = logits.masked_fill(~mask[:, None], least).softmax(dim=-1)  # (b, h, n)
        weights = weights * mask[:, None]  # a text without a token reads nothing
        sums = [
            share @ part.to(wide)
            for share, part in zip(weights.split(PIECE, dim=-1), parts, strict=True)
        ]
        read = torch.stack(sums).sum(dim=0) if len(sums) > 1 else sums[0]  # (b, h, width)
        joined = torch.einsum("bhx,hdx->bhd", read, self.value.to(wide)).flatten(1)
        return joined @ self.out.T.to(wide), weights


class STCA(nn.Module):
    """``layers`` of ``CrossAttention``, each knowing the target and what the earlier ones read.

    Called with a target (batch, width), a history (batch, n, width), or (n, width) that all read,
    and the mask (batch, n) of what each may read; returns (batch, width) in fp32 or wider, zeros
    where that is nothing, and the weights of the layers, each (batch, heads, n).
    """

    def __init__(self, width: int, heads: int, layers: int = 2, matching: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CrossAttention(width, heads, i + 1, matching) for i in range(layers)
        )

    def forward(
        self, target: Tensor, history: Tensor, mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        known = [target.to(torch.promote_types(history.dtype, torch.float32))]
        weights = []
        # In fp32 also under autocast: what one token weighs among thousands is a small number.
        with torch.autocast(target.device.type, enabled=False):
            for layer in self.layers:
                read, by = layer(torch.cat(known, dim=-1), history, mask)
                known.insert(len(known) - 1, read)
                weights.append(by)
        return known[-2], tuple(weights)
