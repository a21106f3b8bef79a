"""Losses over a query's candidates: contrast in the batch, and a teacher's whole ranking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def in_batch_negatives(
    queries: Tensor, documents: Tensor, temperature: float = 0.05, known: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each query's own document against the batch's others (InfoNCE, 1807.03748).

    Args:
        queries, documents: unit vectors (batch, width), the i-th of each belonging together.
        temperature: what scores are divided by.
        known: (batch, batch), True where a document other than its own is right for a query too and
            must not be pushed away.
    Returns: a scalar, in both directions averaged.
    """
    logits = queries @ documents.T / temperature  # (batch, batch)
    if known is not None:
        same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(known & ~same, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def listwise(scores: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """Kullback-Leibler divergence of the student's ranking from the teacher's.

    Both become distributions over a query's candidates by a softmax (ListNet, Cao et al. 2007).

    Args:
        scores, teacher: (queries, candidates); the teacher's on any one scale, -inf where it knows
            no score.
    Returns: a scalar, the mean over queries.
    """
    known = torch.isfinite(teacher)
    least = torch.finfo(scores.dtype).min
    own = F.log_softmax((scores / temperature).masked_fill(~known, least), dim=-1)
    goal = F.softmax((teacher / temperature).masked_fill(~known, least), dim=-1)
    return (torch.xlogy(goal, goal) - goal * own).sum(dim=-1).mean()
