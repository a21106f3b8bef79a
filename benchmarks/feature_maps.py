"""Feature maps after attention transfer alone: how close to softmax, and STS-B validation Pearson.

The same texts, steps and seeds for each map; elu, relu and exp learn nothing. Writes
``results/feature_maps.json``.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np

import twinline
from twinline.data import load_task, load_texts
from twinline.evaluate import evaluate
from twinline.files import write_whole
from twinline.machine import describe

MAPS = ("softmax", "gated", "hedgehog", "exp", "elu", "relu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    parser.add_argument("--results", type=Path, default=Path("results/feature_maps.json"))
    options = parser.parse_args()
    texts, pairs = load_texts("stsb"), load_task("stsb", "validation")
    rows = []
    print("| feature map | relative error | validation Pearson, no label seen |\n|---|---|---|")
    for name in options.maps:
        errors, scores = [], []
        for seed in options.seeds:
            if name == "softmax":
                model = twinline.convert("all-MiniLM-L6-v2", attention="softmax")
            else:
                model = twinline.convert("all-MiniLM-L6-v2", attention="linear", feature_map=name)
            transfer = twinline.TransferOptions(steps=options.steps, seed=seed)
            run = twinline.transfer(model, texts, transfer)
            if run.log:
                errors.append(np.mean([r.loss for r in run.log[-50:]]))
            scores.append(evaluate(twinline.Encoder(model), pairs).pearson.value)
            if not run.log:  # nothing is drawn: every seed is the same
                break
        error = round(float(np.mean(errors)), 4) if errors else None
        spread = round(float(np.std(scores, ddof=1)), 5) if len(scores) > 1 else None
        told = f" ± {spread:.4f}" if spread is not None else ""
        print(f"| {name} | {error or '–'} | {np.mean(scores):.4f}{told} |", flush=True)
        rows.append(
            {
                "feature_map": name, "relative_error": error, "steps": options.steps,
                "pearson": round(float(np.mean(scores)), 5), "pearson_sd": spread,
                "seeds": len(scores), "machine": describe(), "date": date.today().isoformat(),
            }
        )  # fmt: skip
    write_whole(options.results, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
