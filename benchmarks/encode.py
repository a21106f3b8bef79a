"""``make bench``: tokens per second and peak memory at every length, ours and others', one run.

Every side encodes the same token ids on the same weights (all-MiniLM-L6-v2) in a process of its
own; sides take turns at each length and the best turn counts. Others get their position table
tiled, as ours is, and no length limit. A side stops where one text would take longer than
``--limit`` seconds (told from its last two lengths, attention growing with the square) or fails.

Writes ``results/bench.json``, ``docs/speed.png`` and the tables of ``docs/speed.md`` and README.
Needs ``pip install 'twinline[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from twinline.files import into_marks, write_whole
from twinline.machine import describe, free_memory, keep_memory

BASE = "all-MiniLM-L6-v2"
LENGTHS = (32, 128, 512, 2048, 8192, 32768, 131072, 1_000_000)
TRAIN_LENGTHS = (128, 512, 2048, 8192)
TURNS = 4
LONG = 20.0
"""Seconds above which one turn, without a warm-up, must do."""
BATCH_TOKENS = 8192
"""Tokens of a turn, or one text of more."""
MFLOP_PER_TOKEN = 21.2
"""Of this shape without attention: 6 layers of 2 * (4 * 384^2 + 2 * 384 * 1536) operations."""
SIDES = (
    "linear float32", "linear bfloat16", "linear int8", "hybrid float32", "hybrid int8",
    "softmax float32", "softmax bfloat16", "softmax int8", "sentence-transformers float32",
    "onnxruntime-int8 int8", "openvino-bf16 bfloat16",
)  # fmt: skip
TRAINED = ("linear float32", "hybrid float32", "softmax float32", "sentence-transformers float32")
README_SIDES = (
    "linear int8", "linear float32", "hybrid int8", "sentence-transformers float32",
    "onnxruntime-int8 int8", "openvino-bf16 bfloat16",
)  # fmt: skip
Rows = list[list[int]]
Work = Callable[[Rows], object]


def texts(length: int) -> Rows:
    """Distinct rows of ``length`` token ids, the same in every process."""
    generator = torch.Generator().manual_seed(length)
    count = max(1, BATCH_TOKENS // length)
    rows: Rows = torch.randint(1000, 20000, (count, length), generator=generator).tolist()
    return rows


# Sides: each makes a function that encodes rows of token ids of one length


def ours(attention: str, dtype: str) -> tuple[Work, Work]:
    """Encoding, and a training step's forward and backward pass."""
    import twinline

    encoder = twinline.Encoder(twinline.convert(BASE, attention=attention), dtype=dtype)

    def train(rows: Rows) -> None:
        encoder.model.zero_grad()
        encoder.embed(rows).square().mean().backward()

    return encoder.encode_ids, train


class Peer(torch.nn.Module):
    """all-MiniLM-L6-v2 as sentence-transformers installs it, its positions tiled."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        from twinline.sources import find_model

        super().__init__()
        self.bert = SentenceTransformer(str(find_model(BASE)), device="cpu")[0].auto_model
        self.table = self.bert.config.max_position_embeddings

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1])[None] % self.table
        kinds = torch.zeros_like(ids)
        made = self.bert(
            input_ids=ids, attention_mask=mask, token_type_ids=kinds, position_ids=places
        )
        weights = mask.unsqueeze(-1).to(torch.float32)
        vectors: torch.Tensor = (made.last_hidden_state * weights).sum(1) / weights.sum(1)
        return vectors


def sentence_transformers() -> tuple[Work, Work]:
    peer = Peer()

    def forward(rows: Rows) -> torch.Tensor:
        ids = torch.tensor(rows)
        made: torch.Tensor = peer(ids, torch.ones_like(ids))
        return made

    def train(rows: Rows) -> None:
        peer.zero_grad()
        forward(rows).square().mean().backward()

    return in_batches(torch.inference_mode()(forward)), train


def in_batches(work: Work, tokens: int = 2048) -> Work:
    """As many rows at a time as suit a processor's cache: what is best for the others too."""

    def each(rows: Rows) -> None:
        count = max(1, tokens // len(rows[0]))
        for start in range(0, len(rows), count):
            work(rows[start : start + count])

    return each


def exported(folder: Path) -> Path:
    """The peer as ONNX, any batch and length."""
    ids = torch.randint(1000, 2000, (2, 128))
    axes = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    file = folder / "model.onnx"
    torch.onnx.export(
        Peer().eval(), (ids, torch.ones_like(ids)), str(file), input_names=["ids", "mask"],
        output_names=["vectors"], dynamic_axes=axes, dynamo=False, opset_version=17,
    )  # fmt: skip
    return file


def arrays(rows: Rows) -> dict[str, Any]:
    ids = torch.tensor(rows)
    return {"ids": ids.numpy(), "mask": torch.ones_like(ids).numpy()}


def onnxruntime_int8() -> tuple[Work, None]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "int8.onnx"
        quantize_dynamic(exported(Path(folder)), small, weight_type=QuantType.QInt8)
        session = onnxruntime.InferenceSession(
            str(small), options, providers=["CPUExecutionProvider"]
        )
    return in_batches(lambda rows: session.run(None, arrays(rows))), None


def openvino_bf16() -> tuple[Work, None]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        core = openvino.Core()
        model = core.compile_model(
            core.read_model(str(exported(Path(folder)))), "CPU",
            {"INFERENCE_PRECISION_HINT": "bf16",
             "INFERENCE_NUM_THREADS": torch.get_num_threads()},
        )  # fmt: skip
    return in_batches(lambda rows: model(arrays(rows))), None


OTHERS: dict[str, Callable[[], tuple[Work, Work | None]]] = {
    "sentence-transformers": sentence_transformers,
    "onnxruntime-int8": onnxruntime_int8,
    "openvino-bf16": openvino_bf16,
}


# A side's process: reads "mode length" lines, answers with seconds and peak memory


def serve(side: str) -> None:
    name, dtype = side.split()
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    free = free_memory()
    if free:  # fail by oneself rather than be killed with everything else
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * free), resource.RLIM_INFINITY))
    encode, train = OTHERS[name]() if name in OTHERS else ours(name, dtype)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        mode, length = line.split()
        if mode == "train":
            keep_memory()  # as twinline's training loop; the others gain by it too
        work = encode if mode == "encode" else train
        rows = texts(int(length))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        try:
            assert work is not None
            started = time.perf_counter()
            work(rows)
            answer = {"seconds": time.perf_counter() - started, "peak": peak_memory()}
        except Exception as error:  # the side stops, whatever it was
            traceback.print_exc()
            answer = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:80]}
        print(json.dumps(answer), file=out, flush=True)


def peak_memory() -> float:
    """Peak of this process's memory in MB since it was last cleared."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Side:
    """A side's process, and what it has shown at each length."""

    def __init__(self, name: str, limit: float, log: Path) -> None:
        self.name, self.limit = name, limit
        self.stopped: str | None = None
        self.seen: list[tuple[int, float]] = []
        command = [sys.executable, __file__, "--serve", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("ab"), text=True
        )
        if self.process.stdout is None or self.process.stdout.readline().strip() != "ready":
            self.stopped = f"did not start, see {log}"

    def expected(self, length: int) -> float:
        """Seconds a text of ``length`` would take, by the last two: a + b n + c n², c from them."""
        if not self.seen:
            return 0.0
        last, seconds = self.seen[-1]
        per_token = seconds / last
        growth = 0.0
        if len(self.seen) > 1:
            before, earlier = self.seen[-2]
            growth = max(0.0, (per_token - earlier / before) / (last - before))
        return (per_token + growth * (length - last)) * length

    def turn(self, mode: str, length: int) -> dict[str, Any] | None:
        """One turn; None, and the side stops, if it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{mode} {length}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            self.stopped = f"failed at {length:,} tokens: {answer['error']}"
            return None
        return answer

    def close(self) -> None:
        """End the side's process."""
        self.process.kill()
        self.process.wait()


def product_rate() -> float:
    """Operations a second of this shape's products in bfloat16: the limit."""
    from twinline.precision import product_rates

    product_rates.cache_clear()
    return product_rates()["bfloat16"]


def measure(sides: list[Side], mode: str, length: int) -> dict[str, tuple[float, float]]:
    """Tokens a second and peak memory of every side that still runs, by name."""
    tokens = length * max(1, BATCH_TOKENS // length)
    best: dict[str, dict[str, Any]] = {}
    for turn in range(TURNS + 1):
        for side in sides:
            if side.stopped:
                continue
            if turn == 0 and (seconds := side.expected(length)) > side.limit:
                side.stopped = f"{length:,} tokens would take about {seconds:,.0f} s"
                continue
            if turn and best[side.name]["seconds"] > LONG:
                continue
            answer = side.turn(mode, length)
            if answer is None:
                best.pop(side.name, None)
            elif turn <= 1 or answer["seconds"] < best[side.name]["seconds"]:
                best[side.name] = answer  # turn 1 replaces the warm-up
    for side in sides:
        if mode == "encode" and side.name in best:
            side.seen.append((length, best[side.name]["seconds"] * length / tokens))
    return {name: (tokens / b["seconds"], b["peak"]) for name, b in best.items()}


def table(found: dict[int, dict[str, tuple[float, float]]], names: list[str], what: int) -> str:
    """A Markdown table, lengths down and sides across; ``what``: 0 tokens/s, 1 peak memory."""
    lines = ["| tokens | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for length, row in found.items():
        cells = [f"{row[name][what]:,.0f}" if name in row else "–" for name in names]
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(found: dict[int, dict[str, tuple[float, float]]], names: list[str], to: Path) -> None:
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in names:
        points = [(n, row[name][0]) for n, row in found.items() if name in row]
        kind, dtype = name.split()
        style = {"float32": "-", "bfloat16": "--", "int8": ":"}[dtype]
        mine = kind in ("linear", "hybrid", "softmax")
        axes.plot(*zip(*points, strict=True), style, label=name, lw=2 if mine else 1, marker=".")
    axes.set(xscale="log", yscale="log", xlabel="tokens in a text", ylabel="tokens a second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    write_whole(to, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", metavar="SIDE", help="be one side's process")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--train", type=int, nargs="*", default=list(TRAIN_LENGTHS))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds one text may take")
    parser.add_argument("--results", type=Path, default=Path("results/bench.json"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    log = Path(tempfile.gettempdir()) / "twinline-bench.log"
    sides = [Side(name, options.limit, log) for name in options.sides]
    print(f"{describe()}; sides' own words in {log}")
    rows: list[dict[str, Any]] = []
    found: dict[str, dict[int, dict[str, tuple[float, float]]]] = {"encode": {}, "train": {}}
    rate = product_rate()
    for mode, lengths in (("encode", options.lengths), ("train", options.train)):
        taking_part = sides
        if mode == "train":
            taking_part = [s for s in sides if s.name in TRAINED and s.process.poll() is None]
            for side in taking_part:
                side.stopped, side.seen = None, []
        for length in lengths:
            rate = max(rate, product_rate())
            made = found[mode][length] = measure(taking_part, mode, length)
            for side in taking_part:
                if side.stopped and side.name not in TRAINED:
                    side.close()  # its memory is wanted by the others
            told = ", ".join(f"{name} {speed:,.0f}" for name, (speed, _) in made.items())
            print(f"{mode} {length:,} tokens: {told}", flush=True)
        for side in taking_part:
            if side.stopped:
                print(f"{side.name} stopped: {side.stopped}")
    for mode, by_length in found.items():
        for length, made in by_length.items():
            for name, (speed, peak) in made.items():
                side, dtype = name.split()
                rows.append(
                    {
                        "side": side, "dtype": dtype, "length": length,
                        "tokens_per_second": round(speed, 1),
                        "fraction_of_limit": round(speed * MFLOP_PER_TOKEN * 1e6 / rate, 4),
                        "peak_memory_mb": round(peak), "mode": mode, "machine": describe(),
                        "date": date.today().isoformat(),
                    }
                )  # fmt: skip
    write_whole(options.results, json.dumps(rows, indent=1) + "\n")
    print(f"\nlimit: bfloat16 products at {rate / 1e9:.0f} GFLOP/s, "
          f"{rate / MFLOP_PER_TOKEN / 1e6:,.0f} tokens/s")  # fmt: skip
    names, trained = options.sides, [name for name in TRAINED if name in options.sides]
    for mark, text in (
        ("encode", table(found["encode"], names, 0)),
        ("memory", table(found["encode"], names, 1)),
        ("train", table(found["train"], trained, 0)),
    ):
        print(f"\n{mark}\n{text}")
        into_marks(options.docs / "speed.md", mark, text)
    short = [name for name in README_SIDES if name in names]
    into_marks(Path("README.md"), "speed", table(found["encode"], short, 0))
    picture(found["encode"], names, options.docs / "speed.png")


if __name__ == "__main__":
    main()
