"""What late interaction learns of labelled pairs: how much to believe a pooling, and a likeness."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import torch

from ..data import Pairs
from ..encoder import Encoder
from ..errors import TwinlineError
from ..similarity import LateInteraction
from ..statistics import UndefinedCorrelation, pearson

PRIORS = (0.5, 1.0, 1.5, 2.0, 3.0)
SHARPNESS = (2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
DISCOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def learn_to_match(
    student: Encoder, pairs: Pairs, *, show_progress: bool | None = None
) -> dict[str, float]:
    """Give the late interaction of ``student`` that ``prior``, ``sharpness`` and ``discount`` whose
    scores of ``pairs`` correlate best with their labels; the encoder stays as it is.

    Three numbers are tried out rather than trained: texts are read a single time.

    Args:
        pairs: labelled ones, as long as those that will be scored, and none of these.
    Returns: those three, and the ``pearson`` correlation that they reach.
    Raises: TwinlineError if the student's similarity is another, or scores do not vary.
    """
    head = late_of(student)
    texts = [*pairs.sentence1, *pairs.sentence2]
    stored = student.stored(student.store(texts, show_progress_bar=show_progress))
    first, second = stored[: len(pairs)], stored[len(pairs) :]
    found = {}
    with torch.no_grad():
        for tried in product(PRIORS, SHARPNESS, DISCOUNTS):
            head.set(*tried)
            with suppress(UndefinedCorrelation):  # other numbers may tell the pairs apart
                found[tried] = pearson(head(first, second).cpu().numpy(), pairs.unit_score)
    best = max(found, key=found.__getitem__, default=(1.0, 1.0, 0.0))
    head.set(*best)
    if not found:
        raise UndefinedCorrelation(
            f"Late interaction cannot learn from {pairs.name}: all its scores, or all labels, are "
            "the same but for rounding; give pairs of different texts."
        )
    names = ("prior", "sharpness", "discount")
    return {**dict(zip(names, best, strict=True)), "pearson": round(found[best], 5)}


def late_of(student: Encoder) -> LateInteraction:
    """Raises: TwinlineError if the student's similarity is another."""
    head = student.head
    if not isinstance(head, LateInteraction):
        raise TwinlineError(
            f"The similarity {student.similarity_name!r} has no prior to learn: load the student "
            "with similarity='late'."
        )
    return head
