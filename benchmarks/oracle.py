"""Where a student loses the sentence of a long text: is it not found, or found and changed?

    python benchmarks/oracle.py STUDENT TWIN --length 2048 --pairs 100

``student`` is its own score. ``told`` pools by its own weights, but over the sentence's tokens
alone: what it would be worth if the sentence were always found. ``twin`` reads the sentence by
itself: what is missing from ``told`` to it was changed by the text around it. STUDENT pools by a
learned query. With ``--construction repeat`` it is told the whole copies alone,
without the last one, which is cut. ``--prose test`` asks whether it is the pairs or the prose of a
split that is harder.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from twinline.bysentence import SentencePooling
from twinline.data import load
from twinline.data.carriers import load_carrier
from twinline.data.long import Builder
from twinline.encoder import Encoder
from twinline.reading import Reading


def told_by(pool: Any, read: Reading, inside: torch.Tensor) -> torch.Tensor:
    """(1, width), of the states (1, n, width) that are ``inside`` (1, n) alone."""
    if not isinstance(pool, SentencePooling):
        return pool([read.states], inside)[0]
    weights = read.weights[-1] * inside[:, None]  # by the text's sentences: they are not told again
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    return pool.layers[-1].own(weights, read.states)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("twin")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--carrier", default="novels")
    parser.add_argument("--prose", help="the carrier's split, if not the pairs'")
    parser.add_argument("--construction", default="context", choices=("context", "repeat"))
    given = parser.parse_args()
    student, twin = Encoder(given.student), Encoder(given.twin)
    pairs = load("stsb", given.split)
    carrier = load_carrier(given.carrier, given.prose or given.split, student.tokenizer)
    builder = Builder(pairs, given.construction, student.tokenizer, carrier)
    rows = np.random.default_rng(0).permutation(len(pairs))[: given.pairs].tolist()
    vectors: dict[str, list[torch.Tensor]] = {"student": [], "told": [], "twin": []}
    shares, changed = [], []
    for row in rows:
        long = builder.pair(row, given.length)
        both = (long.text1, pairs.sentence1[row]), (long.text2, pairs.sentence2[row])
        for (text, sentence), (start, end) in zip(both, long.spans, strict=True):
            read = student.read(student.tokenize([text])[0])
            alone = twin.read(twin.tokenize([sentence])[0])
            if given.construction == "repeat":
                size = alone.states.shape[1] - 2
                start, end = 1, 1 + (given.length - 2) // size * size
            inside = torch.zeros(1, read.states.shape[1], dtype=torch.bool)
            inside[0, start:end] = True
            told = told_by(student.model.pool, read, inside)
            vectors["student"].append(read.vectors[0])
            vectors["told"].append(F.normalize(told[0], dim=-1))
            vectors["twin"].append(alone.vectors[0])
            shares.append(float(read.weights[-1][0, :, start:end].sum(dim=-1).mean()))
            goal = alone.states[0, 1:-1]
            if len(goal) == end - start:
                off = (read.states[0, start:end] - goal).square().sum() / goal.square().sum()
                changed.append(float(off))
    gold = np.array([float(pairs.unit_score[row]) for row in rows])
    for name, made in vectors.items():
        sides = torch.stack(made).unflatten(0, (-1, 2))
        scores = F.cosine_similarity(sides[:, 0], sides[:, 1], dim=-1).numpy()
        print(f"{name:8} Pearson {np.corrcoef(scores, gold)[0, 1]:.3f}")
    tenth = float(np.quantile(shares, 0.1))
    print(f"share of the pooling's weights on the sentence: mean {np.mean(shares):.2f}, "
          f"a tenth of the texts below {tenth:.2f}")  # fmt: skip
    if changed:
        off = float(np.mean(changed))
        print(f"relative squared distance of the sentence's states to the twin's: {off:.2f}")


if __name__ == "__main__":
    main()
