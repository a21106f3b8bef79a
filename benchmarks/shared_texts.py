"""What a batch spares by reading a text once that pairs share (RLB, arXiv 2511.06077, sec. 3.3).

Ranking data: each training meeting's opening with eight questions, its own first and others' behind
them. An epoch of ``distill`` on it; needs TWINLINE_DATA with qmsum.
"""

from __future__ import annotations

import argparse

import numpy as np

import twinline
from twinline.data import Pairs
from twinline.data.retrieval import load_retrieval
from twinline.options import DistillOptions
from twinline.training import distill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--meetings", type=int, default=48)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--words", type=int, default=400, help="of each meeting's opening")
    options = parser.parse_args()
    task = load_retrieval("qmsum", "train", "question", own_documents=True)
    first, second, score = [], [], []
    for place, document in enumerate(task.documents[: options.meetings]):
        own = [q for q, of in zip(task.queries, task.relevant, strict=True) if of == place]
        others = [q for q, of in zip(task.queries, task.relevant, strict=True) if of != place]
        for question in [*own, *others][: options.candidates]:
            first.append(" ".join(document.split()[: options.words]))
            second.append(question)
            score.append(float(question in own))
    pairs = Pairs(first, second, np.array(score), (0.0, 1.0), "qmsum", "train")
    student = twinline.Encoder(twinline.convert("all-MiniLM-L6-v2", attention="linear"))
    run = distill(student, pairs, options=DistillOptions(alpha=0.0, epochs=1.0, pairs=32))
    print(f"{len(pairs)} pairs, {options.candidates} candidates a query, 32 pairs a batch")
    print(f"tokens encoded: {run.tokens:,}, where pair by pair {run.tokens + run.spared:,}: "
          f"{1 + run.spared / run.tokens:.1f} times fewer")  # fmt: skip


if __name__ == "__main__":
    main()
