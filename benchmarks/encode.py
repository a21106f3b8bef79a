"""``make bench``: tokens per second of the attention kinds and of sentence-transformers, one run.

Every side encodes one text of the same tokens, on the same weights (all-MiniLM-L6-v2, fp32); sides
take turns at each length, the best of several turns counts, and a side stops where one text takes
longer than it may. Writes ``results/bench.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

import twinline
from twinline.files import write_whole
from twinline.machine import describe

BASE = "all-MiniLM-L6-v2"
LENGTHS = (32, 128, 512, 2048, 4096, 8192, 16384)
TURNS = 3
MFLOP_PER_TOKEN = 21.2
"""Of this shape without attention: 6 layers of 2 * (4 * 384^2 + 2 * 384 * 1536) operations."""


def product_rate() -> float:
    """Floating-point operations a second of this shape's largest product: the limit."""
    x, w = torch.randn(8192, 384), torch.randn(1536, 384)
    best = min(timed(lambda: torch.nn.functional.linear(x, w)) for _ in range(20))
    return 2 * 8192 * 384 * 1536 / best


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def repeat(encode: Callable[[list[int]], object], row: list[int], times: int) -> None:
    for _ in range(times):
        encode(row)


def ours(attention: str) -> Callable[[list[int]], object]:
    encoder = twinline.Encoder(twinline.convert(BASE, attention=attention))
    # Equal texts are encoded once, so one row stands for itself.
    return lambda row: encoder.encode_ids([row])


def sentence_transformers() -> Callable[[list[int]], object]:
    """As installed, but with its positions tiled: it has 512 and fails beyond them."""
    from sentence_transformers import SentenceTransformer

    from twinline.sources import find_model

    model = SentenceTransformer(str(find_model(BASE)), device="cpu")
    bert = model[0].auto_model
    table = bert.config.max_position_embeddings

    @torch.inference_mode()
    def encode(row: list[int]) -> object:
        ids = torch.tensor([row])
        places = torch.arange(len(row))[None] % table
        mask = torch.ones_like(ids)
        kinds = torch.zeros_like(ids)
        made = bert(input_ids=ids, attention_mask=mask, token_type_ids=kinds, position_ids=places)
        return made.last_hidden_state.mean(1)

    return encode


SIDES: dict[str, Callable[[], Callable[[list[int]], object]]] = {
    "linear": lambda: ours("linear"),
    "hybrid": lambda: ours("hybrid"),
    "lightning": lambda: ours("lightning"),
    "softmax": lambda: ours("softmax"),
    "sentence-transformers": sentence_transformers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds one text may take")
    parser.add_argument("--results", type=Path, default=Path("results/bench.json"))
    options = parser.parse_args()
    sides = {name: make() for name, make in SIDES.items()}
    rate = product_rate()
    print(f"{describe()}; products at {rate / 1e9:.0f} GFLOP/s (fp32)")
    rows = []
    print("| tokens | " + " | ".join(SIDES) + " |\n" + "|---" * (len(SIDES) + 1) + "|")
    for length in options.lengths:
        row = (list(range(2000, 3000)) * (1 + length // 1000))[:length]
        best = dict.fromkeys(sides, float("inf"))
        for turn in range(TURNS + 1):  # the first warms up and is not counted
            for name, encode in sides.items():
                repeats = max(1, 4096 // length)
                seconds = (
                    timed(lambda e=encode, n=repeats, r=row: [e(r) for _ in range(n)]) / repeats
                )
                if turn:
                    best[name] = min(best[name], seconds)
        cells = []
        for name, seconds in list(best.items()):
            speed = length / seconds
            cells.append(f"{speed:,.0f}")
            rows.append(
                {
                    "side": name, "dtype": "fp32", "length": length,
                    "tokens_per_second": round(speed, 1),
                    "fraction_of_limit": round(speed * MFLOP_PER_TOKEN * 1e6 / rate, 4),
                    "peak_memory_mb": None, "mode": "encode", "machine": describe(),
                    "date": date.today().isoformat(),
                }
            )  # fmt: skip
            if seconds > options.limit:
                print(f"{name} stops: one text of {length} tokens took {seconds:.0f} s")
                del sides[name]
        print(f"| {length:,} | " + " | ".join(cells) + " |", flush=True)
    write_whole(options.results, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
