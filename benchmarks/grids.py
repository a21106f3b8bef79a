"""What arms of one grid read above arms of another, on the pairs that both have scored.

``python benchmarks/grids.py study study-sentence``: each linear-time arm of the first less each arm
of the second, and windows less windows, at equal pooling, on the main test, in means over seeds;
and, seed by seed, what an arm loses in both on ``repeat``, less the unmodified pairs. 95 %
intervals are bootstrapped over pairs.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from twinline.statistics import resampled_pearsons
from twinline.study.page import interval
from twinline.study.table import Table, longest, main_test, on_common, same_native, scored

WINDOWS = "softmax-windows512"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("one", help="a grid's name")
    parser.add_argument("other", help="another's")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    table, other = (Table.read(options.results / name) for name in (options.one, options.other))
    suffix = f" of {options.other}"
    both, named = table.beside(other, suffix)
    at = main_test(table, "test")
    print(f"| {options.one} less {options.other} | pooling | tokens | Pearson | pairs |")
    print("|---|---|---|---|---|")
    for pooling, arm, less, length in product(
        both.poolings, table.names("arm"), named, both.lengths(**at)
    ):
        if arm.startswith("softmax") and (arm, less) != (WINDOWS, WINDOWS + suffix):
            continue
        same = {"pooling": pooling, "eval_length": length, **at}
        found = both.difference(
            {"arm": arm, "train_length": longest(table), **same},
            {"arm": less, "train_length": longest(other), **same}, same_seeds=False,
        )  # fmt: skip
        if found is not None:
            print(f"| {arm} − {less} | {pooling} | {length:,} | {interval(found)} | "
                  f"{found.count:,} |")  # fmt: skip
    print(f"\n| repeat less native | pooling, seed | tokens | {options.one} | {options.other} | "
          f"{options.other} less {options.one} | pairs |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for row in table.find(construction="repeat", split="test"):
        same = {k: row[k] for k in ("arm", "pooling", "construction", "eval_length", "split")}
        for mended in other.find(**same):
            if (losses := losses_of(table, row, other, mended)) is not None:
                lost, gained, count = losses
                print(f"| {row['arm']} | {row['pooling']}, {row['seed']} | "
                      f"{row['eval_length']:,} | {lost[0]:+.3f} | {lost[1]:+.3f} | {gained} | "
                      f"{count:,} |")  # fmt: skip


def losses_of(
    table: Table, row: dict[str, Any], other: Table, mended: dict[str, Any]
) -> tuple[list[float], str, int] | None:
    """What two rows of ``repeat`` have less than native, on the pairs that both have scored; the
    second's less the first's, with its interval; and how many pairs these are."""
    first, second = same_native(table, row), same_native(other, mended)
    if first is None or second is None:
        return None
    every = on_common([scored(table, row), first, scored(other, mended), second])
    gold, all_of = every[0].gold, np.ones(len(every[0].rows), dtype=np.bool_)
    whole = [one.pearson(all_of) for one in every]
    drawn = resampled_pearsons([one.scores for one in every], gold)
    lost = [whole[0] - whole[1], whole[2] - whole[3]]
    low, high = np.percentile((drawn[2] - drawn[3]) - (drawn[0] - drawn[1]), (2.5, 97.5))
    return lost, f"{lost[1] - lost[0]:+.3f} [{low:+.3f}, {high:+.3f}]", len(gold)


if __name__ == "__main__":
    main()
