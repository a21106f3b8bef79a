"""What late interaction adds to cosine, and of how many sentences, on long validation pairs.

    python benchmarks/late.py STUDENT --length 2048 --pairs 200

``cosine`` is of the vectors. ``one way`` lets each text's vector read the other's sentences,
weighed by the pooling and by their likeness to it (target-to-history cross attention, arXiv
2511.06077, of one layer without weights of its own), and is the mean of both ways. ``late`` is
``similarity.LateInteraction``, without and with its discount of sentences that are like others of
their own text. Each at its best prior, sharpness and discount. STUDENT pools by the sentence; every
text is read once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch.nn import functional as F

from twinline import similarity
from twinline import stored as storing
from twinline.data import load
from twinline.data.carriers import load_carrier
from twinline.data.long import long_pairs
from twinline.encoder import Encoder
from twinline.statistics import pearson
from twinline.stored import FAINT, Stored
from twinline.training.matching import DISCOUNTS, PRIORS, SHARPNESS, late_of

KEPT = (4, 8, 16, 32, 64)
NEAREST = (1, 4, 8, 32)


def one_way(u: Stored, v: Stored, prior: float, sharpness: float, _: float) -> torch.Tensor:
    """Cosines (pairs,) of what each vector reads of the other text with that vector."""
    cosines = []
    for one, other in ((u, v), (v, u)):
        alike = F.cosine_similarity(one.vectors[:, None], other.states, dim=-1)
        logits = prior * torch.log(other.shares.clamp_min(FAINT)) + sharpness * alike
        weights = logits.masked_fill(~other.mask, -1e9).softmax(dim=1)
        read = (weights[:, None] @ other.states)[:, 0]
        cosines.append(F.cosine_similarity(one.vectors, read))
    return (cosines[0] + cosines[1]) / 2


def weightiest(texts: Stored, kept: int) -> Stored:
    """Texts with only so many of their sentences, which are sorted."""
    some = slice(kept)
    return replace(texts, states=texts.states[:, some], mask=texts.mask[:, some],
                   shares=texts.shares[:, some])  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--carrier", default="novels")
    parser.add_argument("--windows", type=int, help="read in windows of so many tokens")
    given = parser.parse_args()
    student = Encoder(given.student, similarity="late", windows=given.windows)
    head = late_of(student)
    starts = [number.item() for number in (head.prior, head.sharpness, head.discount)]
    pairs = load("stsb", "validation")
    rows = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[: given.pairs]
    made = long_pairs(
        pairs, "context", given.length, student.tokenizer,
        load_carrier(given.carrier, "validation", student.tokenizer), rows=rows.tolist(),
        skip_longer=True, show_progress=True,
    )  # fmt: skip
    usually, storing.KEPT = storing.KEPT, given.length  # all
    texts = [*made.pairs.sentence1, *made.pairs.sentence2]
    every = student.stored(student.store(texts, show_progress_bar=True))
    gold = made.pairs.unit_score

    def late(u: Stored, v: Stored, *numbers: float) -> torch.Tensor:
        head.set(*numbers)
        return head(u, v)

    def best(
        score: Callable[..., torch.Tensor], texts: Stored, discounts: Sequence[float] = (0.0,)
    ) -> str:
        first, second = texts[: len(made.pairs)], texts[len(made.pairs) :]
        found, c, s, d = max((pearson(score(first, second, *tried).numpy(), gold), *tried)
                             for tried in product(PRIORS, SHARPNESS, discounts))  # fmt: skip
        return f"{found:.3f}   prior {c:g}, sharpness {s:g}, discount {d:g}"

    u, v = every.vectors.chunk(2)
    print(f"cosine             {pearson(F.cosine_similarity(u, v).numpy(), gold):.3f}")
    print(f"one way, all       {best(one_way, every)}")
    for kept in (*KEPT, given.length):
        name = f"{kept} sentences" if kept in KEPT else "all"
        some = weightiest(every, kept)
        print(f"late, {name:13}{best(late, some)}", flush=True)
        print(f"  with a discount  {best(late, some, DISCOUNTS)}", flush=True)
    usual = weightiest(every, usually)
    began = late(usual[: len(gold)], usual[len(gold) :], *starts)
    print(f"late, as it starts {pearson(began.numpy(), gold):.3f}")
    for similarity.NEAREST in NEAREST:
        print(f"nearest {similarity.NEAREST:<10} {best(late, usual, DISCOUNTS)}", flush=True)
    usual = usual[torch.arange(1000) % len(usual)].halved()
    size = usual.states[0].nbytes + usual.shares[0].nbytes
    started = time.perf_counter()
    student.similarity(usual[:1], usual)
    seconds = time.perf_counter() - started
    print(
        f"{usually} sentences: {size:,} bytes a text; one against 1,000 scored in {seconds:.3f} s"
    )


if __name__ == "__main__":
    main()
