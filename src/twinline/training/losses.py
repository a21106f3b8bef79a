"""Losses beside the scores': contrast in the batch, a teacher's ranking, a pooling's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention import Lent


def in_batch_negatives(
    scores: Tensor, temperature: float = 0.05, known: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each query's own document against the batch's others (InfoNCE, 1807.03748).

    Args:
        scores: (batch, batch), of each query with every document; the i-th belong together.
        temperature: what scores are divided by.
        known: (batch, batch), True where a document other than its own is right for a query too and
            must not be pushed away.
    Returns: a scalar, in both directions averaged.
    """
    logits = scores / temperature
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


def overlooked(weights: Sequence[Tensor], spans: Tensor, length: int) -> Tensor:
    """Negative log of the share of a pooling's weights that lies on what counts.

    Args:
        weights: a learned pooling's, layer by layer, (texts, heads, length), or where texts lend
            one another their prose (texts, heads, texts * length).
        spans: (texts, 2), what counts in each text, from and to; texts whose is empty do not count.
        length: of the padded texts.
    Returns: a scalar, the mean over texts, heads and layers.
    """
    place = torch.arange(length, device=spans.device)
    inside = (place >= spans[:, :1]) & (place < spans[:, 1:])  # (texts, length)
    some = torch.nonzero(spans[:, 1] > spans[:, 0]).squeeze(1)
    lost = []
    for layer in weights:
        if layer.shape[-1] == length:
            own = layer[some]
        else:
            own = layer.unflatten(-1, (len(spans), length))[some, :, some]
        share = (own * inside[some, None]).sum(dim=-1)  # (some, heads)
        lost.append(-torch.log(share.clamp_min(1e-9)).mean())
    return torch.stack(lost).mean()


def scattered(
    log_gains: Sequence[Tensor], spans: Tensor, real: Tensor, lent: Lent | None = None
) -> Tensor:
    """Negative log of the share of keys' gains that lies on what counts.

    A key's gain is what it weighs in a global sum. Where nearly all of it lies on one sentence,
    linear attention over a long text is attention within that sentence, whatever the length.

    Args:
        log_gains: of some layers, each (texts, heads, length).
        spans: (texts, 2), what counts in each text, from and to; texts whose is empty do not count.
        real: (texts, length), True where a token is real.
        lent: what texts read of one another.
    Returns: a scalar, the mean over texts, heads and layers; 0 without a layer.
    """
    place = torch.arange(real.shape[1], device=spans.device)
    inside = (place >= spans[:, :1]) & (place < spans[:, 1:])  # (texts, length)
    some = spans[:, 1] > spans[:, 0]
    lost = [spans.new_zeros((), dtype=torch.float32)]
    for layer in log_gains:
        gain = layer.float()
        total = summed_where(gain, real)  # (texts, heads)
        if lent is not None:
            read = lent.gathered(torch.exp(summed_where(gain, lent.tokens)))
            total = torch.logaddexp(total, torch.log(read.clamp_min(1e-30)))
        lost.append((total - summed_where(gain, inside))[some].mean())
    return torch.stack(lost).sum() / max(1, len(log_gains))


def summed_where(log_gain: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum of gains where ``mask`` (texts, length) is True: (texts, heads)."""
    least = torch.finfo(log_gain.dtype).min
    return torch.logsumexp(log_gain.masked_fill(~mask[:, None], least), dim=-1)


def astray(states: Tensor, spans: Tensor, goal: Tensor, sizes: Tensor) -> Tensor:
    """How far the states of a sentence's tokens are from those of the sentence alone.

    ``‖state − goal‖² / ‖goal‖²``, the mean over the tokens of all sentences.

    Args:
        states: (rows, length, hidden), of the long texts.
        spans: (rows, 2), of each text what counts; its sentence stands at the end of it.
        goal: (texts, longest, hidden), of the sentences between two special tokens; rows beyond
            them have none.
        sizes: (texts,), tokens of the sentences with the special ones.
    Returns: a scalar; 0 if no sentence keeps its number of tokens in its long text.
    """
    made, want = [], []
    for row, size in enumerate(sizes.tolist()):
        start, end = spans[row].tolist()
        tokens = size - 2
        if 0 < tokens <= end - start:
            made.append(states[row, end - tokens : end])
            want.append(goal[row, 1 : 1 + tokens])
    if not made:
        return states.sum() * 0.0
    wanted = torch.cat(want).float()
    off = (torch.cat(made).float() - wanted).square().sum(dim=-1)
    return (off / wanted.square().sum(dim=-1).clamp_min(1e-9)).mean()
