"""What arms of one grid read above arms of another, on the pairs that both have scored.

``python benchmarks/grids.py study study-sentence``: each arm of the first less each of the second,
at equal pooling, on the main test; means over seeds, 95 % intervals bootstrapped over pairs.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from twinline.study.page import interval
from twinline.study.table import Table, longest, main_test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("one", help="a grid's name")
    parser.add_argument("other", help="another's")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    table, other = (Table.read(options.results / name) for name in (options.one, options.other))
    both, named = table.beside(other, f" of {options.other}")
    at = main_test(table, "test")
    print(f"| {options.one} less {options.other} | pooling | tokens | Pearson | pairs |")
    print("|---|---|---|---|---|")
    arms = [arm for arm in table.names("arm") if not arm.startswith("softmax")]
    for pooling, arm, less, length in product(both.poolings, arms, named, both.lengths(**at)):
        same = {"pooling": pooling, "eval_length": length, **at}
        found = both.difference(
            {"arm": arm, "train_length": longest(table), **same},
            {"arm": less, "train_length": longest(other), **same}, same_seeds=False,
        )  # fmt: skip
        if found is not None:
            print(f"| {arm} − {less} | {pooling} | {length:,} | {interval(found)} | "
                  f"{found.count:,} |")  # fmt: skip


if __name__ == "__main__":
    main()
