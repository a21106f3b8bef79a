"""From two vectors to a score (cosine, dot product, learned heads), from scores to a ranking.

A similarity is an ``nn.Module`` called as ``similarity(u, v)`` on ``(batch, width)`` twice; it
returns ``(batch,)``, or ``(batch, outputs)`` for a head with several outputs. One that
``reads_states``, of "blocks" or of "sentences", is called on two ``Stored`` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .stca import STCA
from .stored import FAINT, Stored


class Cosine(nn.Module):
    """``u·v / (|u| |v|)``: what a vector index can search."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return F.cosine_similarity(u, v, dim=-1)


class Dot(nn.Module):
    """``u·v``."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(dim=-1)


class DSEHead(nn.Module):
    """``[u, v, u⊙v, |u−v|] -> 512 -> ReLU -> outputs`` (DSE, arXiv 1908.05161, sec. 3.2).

    The head is not symmetric; scoring both orders and averaging is the caller's choice.
    """

    def __init__(self, width: int, outputs: int = 1, hidden: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * width, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        features = torch.cat([u, v, u * v, (u - v).abs()], dim=-1)  # (batch, 4 * width)
        scores: Tensor = self.out(F.relu(self.hidden(features)))  # (batch, outputs)
        return scores.squeeze(-1)


class STCAHead(nn.Module):
    """Cosine, and beside it what one text's vector reads in the other's stored block states.

    ``(1 − g) cos(u, v) + g (|V| cos(u, read(u, V)) + |U| cos(v, read(v, U))) / (|U| + |V|)`` with
    ``read`` the stacked target-to-history cross attention of arXiv 2511.06077 (``stca``): the
    target is a text's vector, the history the other's states, of which there are ``|U|`` and
    ``|V|``. Each direction counts by what there is to choose from: a short query has one state, in
    which a long document finds nothing. It starts *matching*, with g at one: a vector reads the
    blocks that are most like it.
    """

    reads_states = "blocks"

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()
        # One head: a match is one of whole vectors.
        self.stca = STCA(width, heads=1, matching=True)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, u: Stored, v: Stored) -> Tensor:
        reads = [
            F.cosine_similarity(one.vectors, self.stca(one.vectors, other.states, other.mask)[0])
            for one, other in ((u, v), (v, u))
        ]
        plain = F.cosine_similarity(u.vectors, v.vectors)
        sizes = [one.mask.sum(dim=1).to(plain.dtype) for one in (u, v)]
        share = sizes[1] / (sizes[0] + sizes[1]).clamp_min(1.0)  # of u, which reads v's states
        return plain + self.gate * (share * reads[0] + (1 - share) * reads[1] - plain)


NEAREST = 4
"""Sentences of its own text that one is held against: chosen on 200 validation pairs of 2,048
tokens (docs/architecture.md has what others give)."""


class LateInteraction(nn.Module):
    """The cosine of those two sentences that likely matter and are alike.

    With sentences ``x_i`` and ``y_j`` of two texts, ``a_i`` and ``b_j`` what the texts' poolings
    weigh them, and ``o`` how common each is, the mean of its cosines to the ``NEAREST`` others of
    its own text:

        score = Σ_ij p_ij cos(x_i, y_j)
        p = softmax_ij(c (log a_i + log b_j) + s (cos(x_i, y_j) − d (o_i + o_j)))

    A pooling that reads one text alone cannot know for sure which of its sentences another text
    will be about. Where it wavers between some, the one counts here that the other text has
    something like. It is ColBERT's late interaction (arXiv 2004.12832) of sentences in the place of
    tokens, with a soft maximum over both texts and a prior. With s = 0 and c = 1 it is the mean of
    cosines by the poolings, with s and c going to infinity together the cosine of a single pair of
    sentences.

    Some sentences are like all others ("he said nothing"), the more so the less an encoder makes of
    them: of those a likeness says little. Taking ``o`` away is cross-domain similarity local
    scaling (arXiv 1710.04087, sec. 2.3), with the neighbours in a sentence's own text.

    c, s and d are learned (``training.matching``); where they start was chosen on 200 validation
    pairs of 2,048 tokens (docs/architecture.md).
    """

    reads_states = "sentences"

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.full((1,), 2.0))  # c
        self.sharpness = nn.Parameter(torch.full((1,), 32.0))  # s
        self.discount = nn.Parameter(torch.full((1,), 0.5))  # d

    @torch.no_grad()
    def set(self, prior: float, sharpness: float, discount: float) -> None:
        """Give c, s and d other values."""
        self.prior.fill_(prior)
        self.sharpness.fill_(sharpness)
        self.discount.fill_(discount)

    def forward(self, u: Stored, v: Stored) -> Tensor:
        x, y = (F.normalize(one.states, dim=-1) for one in (u, v))
        alike = x @ y.transpose(1, 2)  # (batch, of u, of v)
        first, second = (
            self.prior * torch.log(one.shares.clamp_min(FAINT))
            - self.sharpness * self.discount * common(states, one.mask)
            for one, states in ((u, x), (v, y))
        )
        logits = first[:, :, None] + second[:, None] + self.sharpness * alike
        both = u.mask[:, :, None] & v.mask[:, None]
        logits = logits.masked_fill(~both, torch.finfo(logits.dtype).min)
        weights = logits.flatten(1).softmax(dim=1)
        return (weights * alike.flatten(1)).sum(dim=1)


def common(states: Tensor, mask: Tensor) -> Tensor:
    """Of each sentence the mean cosine to the ``NEAREST`` others of its text, of which there may be
    fewer; 0 for the only one.

    Args:
        states: unit vectors (batch, sentences, width).
        mask: (batch, sentences), True where a text has one.
    Returns: (batch, sentences).
    """
    most = min(NEAREST, states.shape[1] - 1)
    if not most:
        return states.new_zeros(mask.shape)
    alone = torch.eye(states.shape[1], dtype=torch.bool, device=states.device)
    alike = (states @ states.transpose(1, 2)).masked_fill(~mask[:, None] | alone, -2.0)
    near = alike.topk(most, dim=2).values
    some = near > -2.0  # no cosine
    return (near * some).sum(dim=2) / some.sum(dim=2).clamp_min(1)


SIMILARITIES: dict[str, type[nn.Module]] = {
    "cosine": Cosine,
    "dot": Dot,
    "dse": DSEHead,
    "stca": STCAHead,
    "late": LateInteraction,
}


@dataclass(frozen=True)
class Ranked:
    """One candidate of a ranking."""

    corpus_id: int
    """Its place in the list that was given."""
    score: float
    text: str | None = None


def ranking(
    scores: np.ndarray[Any, Any], documents: Sequence[str], top_k: int | None, with_text: bool
) -> list[Ranked]:
    """``documents`` by their ``scores`` (documents,), best first; ties in the order given."""
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return [Ranked(i, float(scores[i]), documents[i] if with_text else None) for i in order]
