"""What each part of the processor path gives: tokens a second of ``linear`` with and without it.

Variants take turns at each length; the best turn counts. Writes the table of ``docs/speed.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

import twinline
from twinline.encoder import Encoder
from twinline.files import into_marks
from twinline.machine import describe
from twinline.precision import product_rates

BASE = "all-MiniLM-L6-v2"
LENGTHS = (32, 128, 512, 4096)
TOKENS = 8192
TURNS = 3


def encoder(dtype: str, folded: bool = True, compiled: bool = False) -> Encoder:
    with patch("twinline.precision.can_fold", lambda attention: folded):
        made = Encoder(twinline.convert(BASE, attention="linear"), dtype=dtype)
    if compiled:
        for layer in made.model.each_layer():
            layer.whole = torch.compile(layer.whole, dynamic=True)  # type: ignore[method-assign]
    return made


@contextmanager
def pieces(tokens: int) -> Iterator[None]:
    with patch("twinline.model.PIECE", tokens):
        yield


def variants() -> dict[str, Callable[[list[list[int]]], object]]:
    int8, plain = encoder("int8"), encoder("float32")
    unfolded, compiled = encoder("int8", folded=False), encoder("float32", compiled=True)

    def in_pieces(tokens: int, batch: int) -> Callable[[list[list[int]]], object]:
        def encode(rows: list[list[int]]) -> object:
            with pieces(tokens):
                return int8.encode_ids(rows, max(batch, len(rows[0])))

        return encode

    return {
        "int8": int8.encode_ids,
        "int8, maps not folded": unfolded.encode_ids,
        "int8, pieces and batches of 512": in_pieces(512, 512),
        "int8, pieces and batches of 16,384": in_pieces(16384, 16384),
        "float32": plain.encode_ids,
        "float32, torch.compile": compiled.encode_ids,
        "bfloat16": encoder("bfloat16").encode_ids,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in product_rates().items())
    made = variants()
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for length in LENGTHS:
        generator = torch.Generator().manual_seed(length)
        shape = (max(1, TOKENS // length), length)
        rows = torch.randint(1000, 20000, shape, generator=generator).tolist()
        best = dict.fromkeys(made, float("inf"))
        for turn in range(TURNS + 1):
            for name, encode in made.items():
                started = time.perf_counter()
                encode(rows)
                if turn:  # the first warms up, and compiles
                    best[name] = min(best[name], time.perf_counter() - started)
        for name, seconds in best.items():
            speeds[name].append(shape[0] * length / seconds)
    lines = ["| tokens/s at | " + " | ".join(f"{n:,} tokens" for n in LENGTHS) + " |"]
    lines += ["|---" * (len(LENGTHS) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{s:,.0f}" for s in row) + " |" for name, row in speeds.items()
    ]
    text = "\n".join(lines) + f"\n\nProducts, GFLOP/s: {rates}. {describe()}."
    print(text)
    into_marks(options.docs / "speed.md", "parts", text)


if __name__ == "__main__":
    main()
