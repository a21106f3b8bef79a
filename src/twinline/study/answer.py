"""A study's answer in plain words, each sentence with the numbers that carry it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from ..statistics import Correlation
from .arms import trained_as
from .grid import NATIVE
from .measure import COMMON, Reached, reached
from .page import amount, interval, number
from .table import (
    LATE_TOO,
    LINEAR_TIME,
    Table,
    against_native,
    by_genre,
    chosen_student,
    longest,
    main_pooling,
    main_test,
    on_common,
    reported_split,
    scored,
    trained_pooling,
)


def conclusion(table: Table) -> list[str]:
    """The sentences; the first three are the answer in short."""
    student = chosen_student(table)
    if student is None:
        return ["No linear-time arm is finished yet; the tables below show what is."]
    told = [
        best(table, *student), by_itself(table, *student),
        convergence(table, student[0], trained_pooling(student[1])),
        whole_split(table, *student), genres(table, *student), *against_others(table, *student),
        *keyed(table), *length_alone(table), *far_branch(table),
    ]  # fmt: skip
    return [one for one in told if one]


def yardstick(table: Table) -> float | None:
    """The softmax student's Pearson on the native pairs of the reported split."""
    return table.mean(arm=NATIVE, construction="native", split=reported_split(table))


def kept(value: float | None, native: float | None) -> str:
    return "" if value is None or native is None else f" ({value / native:.0%})"


def told_lengths(table: Table, arm: str, pooling: str) -> list[int]:
    """At which the arm, trained to its longest, has been scored on the main test."""
    at = main_test(table, reported_split(table))
    found = table.lengths(arm=arm, pooling=pooling, train_length=longest(table), **at)
    return [n for n in found if n]


def value(table: Table, arm: str, pooling: str, length: int) -> float | None:
    """Mean over seeds on the main test."""
    at = main_test(table, reported_split(table))
    return table.mean(
        arm=arm, pooling=pooling, eval_length=length, train_length=longest(table), **at
    )


def difference(
    table: Table, arm: str, other: str, pooling: str, length: int, same_seeds: bool = True,
    **at: Any,
) -> Correlation | None:  # fmt: skip
    """``arm`` less ``other``, each as trained to its longest length (``Table.difference``)."""
    sides = []
    for name in (arm, other):
        found = table.find(arm=name, pooling=pooling, eval_length=length, **at)
        trained = max((r["train_length"] for r in found), default=None)
        sides.append({"arm": name, "pooling": pooling, "eval_length": length,
                      "train_length": trained, **at})  # fmt: skip
    return table.difference(sides[0], sides[1], same_seeds)


def best(table: Table, arm: str, pooling: str) -> str:
    native = yardstick(table)
    told = ", ".join(
        f"{number(found)}{kept(found, native)} at {n:,} tokens"
        for n in told_lengths(table, arm, pooling)
        for found in [value(table, arm, pooling, n)]
    )
    base = (
        ""
        if native is None
        else f" The softmax student reads the unmodified pairs at {native:.3f}; in brackets is "
        "what is kept of that."
    )
    branch = (
        " (hybrid with its linear branch switched off: softmax within blocks)"
        if arm == "hybrid-off"
        else ""
    )
    return (
        f"Best linear-time student (chosen on validation): {arm}{branch} with {spelled(pooling)}, "
        f"trained on texts of up to {longest(table):,} tokens{virtual(table, arm, pooling)}. Its "
        f"{reported_split(table)} Pearson "
        f"on sentences in unrelated prose: {told}.{fewer(table, arm, pooling)}{base}"
        f"{by_cosine(table, arm, pooling)}"
    )


def fewer(table: Table, arm: str, pooling: str) -> str:
    """Where the student has read fewer pairs than elsewhere: how it reads these at the longest
    length of which it has read the most."""
    at = {**main_test(table, reported_split(table)), "arm": arm, "pooling": pooling,
          "train_length": longest(table)}  # fmt: skip
    found = {n: table.find(**at, eval_length=n) for n in told_lengths(table, arm, pooling)}
    counts = {n: min(row["pairs"] for row in rows) for n, rows in found.items()}
    most = max((n for n in counts if counts[n] == max(counts.values())), default=0)
    said = ""
    for n, count in counts.items():
        if count < counts[most]:
            # Of the same seeds, too: else seeds and pairs would differ at once.
            seeds = {row["seed"] for row in found[n]}
            every = [on_common([scored(table, row), *(scored(table, r) for r in found[n])])[0]
                     for row in found[most] if row["seed"] in seeds]  # fmt: skip
            if not every:
                continue
            same = np.mean([one.pearson(np.ones(len(one.rows), dtype=np.bool_)) for one in every])
            said += (
                f" Of {n:,} tokens it has read {count:,} pairs, and of {most:,} these "
                f"at {same:.3f}."
            )
    return said


def spelled(pooling: str) -> str:
    late = " and late interaction of sentences" if pooling.endswith(LATE_TOO) else ""
    return f"{trained_pooling(pooling)} pooling{late}"


def by_cosine(table: Table, arm: str, pooling: str) -> str:
    """What the student's vectors are worth alone, where more than these is scored."""
    plain = trained_pooling(pooling)
    if plain == pooling:
        return ""
    native, told = yardstick(table), []
    for n in told_lengths(table, arm, plain):
        found = value(table, arm, plain, n)
        told.append(f"{number(found)}{kept(found, native)} at {n:,}")
    at = {**main_test(table, reported_split(table)), "arm": arm, "train_length": longest(table)}
    less = []
    for n in told_lengths(table, arm, pooling):
        seeds = {r["seed"] for r in table.find(**at, pooling=pooling, eval_length=n)}
        for seed in sorted(seeds):
            same = {**at, "eval_length": n, "seed": seed}
            gap = table.difference({**same, "pooling": pooling}, {**same, "pooling": plain})
            less += [f"{interval(gap)} at {n:,} (seed {seed})"] if gap else []
    return (
        f" Its vectors alone, by cosine: {', '.join(told)}. What late interaction adds to them, "
        f"the same weights and pairs: {'; '.join(less)}."
    )


def virtual(table: Table, arm: str, pooling: str) -> str:
    """What of an arm's longest texts was really read in training."""
    for lines in table.runs:
        head = lines[0]
        real = head.get("real") or longest(table)
        same = (head["arm"], head["pooling"]) == (trained_as(arm), trained_pooling(pooling))
        if same and real < longest(table):
            return f" (of which it reads {real}: the rest is lent by other texts of its batch)"
    return ""


def by_itself(table: Table, arm: str, pooling: str) -> str:
    """linear's own sentence."""
    if arm == "linear":
        return "linear by itself is that student."
    at = main_test(table, reported_split(table))
    lines = [n for n in told_lengths(table, arm, pooling)
             if value(table, "linear", pooling, n) is not None]  # fmt: skip
    if not lines:
        return f"linear by itself is not finished with {spelled(pooling)}."
    told = ", ".join(f"{number(value(table, 'linear', pooling, n))} at {n:,}" for n in lines)
    gaps = [(n, difference(table, "linear", arm, pooling, n, **at)) for n in lines]
    less = "; ".join(f"{interval(gap)} at {n:,}" for n, gap in gaps if gap)
    return f"linear by itself: {told}; less {arm}, with 95 % intervals: {less}."


def convergence(table: Table, arm: str, pooling: str) -> str:
    """What training tokens a common target cost, by length: means and ranges over seeds."""
    at_length: dict[int, dict[str, list[Reached]]] = {}
    for head, length, curve in table.curves:
        if head["pooling"] == pooling:
            arms = at_length.setdefault(length, {})
            arms.setdefault(head["arm"], []).append(reached(curve, COMMON))
    told, bounded = [], False
    for length, arms in sorted(at_length.items()):
        each = []
        for name in dict.fromkeys([trained_as(arm), "linear", "softmax-windows512", *arms]):
            seeds = arms.get(name, [])
            some = [one.costs["tokens"] for one in seeds if one.costs]
            most = any(one.at_start for one in seeds)
            bounded |= most
            if some:
                range_of = f" ({amount(min(some))}–{amount(max(some))})" if len(some) > 1 else ""
                few = f" ({len(some)} of {len(seeds)} seeds)" if len(some) < len(seeds) else ""
                mean = amount(float(np.mean(some)))
                each.append(f"{name} {'≤ ' if most else ''}{mean}{range_of}{few}")
            elif seeds:
                each.append(f"{name} never")
        told.append(f"at {length:,} tokens {', '.join(each)}")
    transfers = {
        amount(line["transfer_tokens"])
        for lines in table.runs for line in lines
        if line["what"] == "transfer" and line["transfer_tokens"]
    }  # fmt: skip
    return (
        f"Convergence ({pooling} pooling): tokens read, from the pretrained encoder on and all "
        f"stages in one, until {COMMON:.2f} on validation: {'; '.join(told)}."
        + (" ≤: at least one seed's stage starts above it." if bounded else "")
        + (f" Attention transfer, which softmax has none of, is {' or '.join(sorted(transfers))} "
           "of them." if transfers else "")
    )  # fmt: skip


def whole_split(table: Table, arm: str, pooling: str) -> str:
    """The same question to the runs that have scored more pairs than others of their arm."""
    at = {**main_test(table, reported_split(table)), "train_length": longest(table)}
    told = []
    for length in told_lengths(table, arm, pooling):
        here = {**at, "pooling": pooling, "eval_length": length}
        counts = {r["pairs"] for r in table.find(arm=arm, **here)}
        if len(counts) < 2:
            continue
        here["pairs"] = max(counts)
        seeds = [r["seed"] for r in table.find(arm=arm, **here)]
        each = [f"{name} {number(table.mean(arm=name, **here))}"
                for name in dict.fromkeys([arm, "linear", "softmax-windows512"])
                if table.find(arm=name, **here)]  # fmt: skip
        for one, other in (("linear", arm), (arm, "softmax-windows512")):
            found = table.difference({"arm": one, **here}, {"arm": other, **here})
            if found is not None and one != other:
                each.append(f"{one} less {other} {interval(found)}")
        told.append(f"{length:,} tokens (seed {', '.join(map(str, seeds))}; {here['pairs']:,} "
                    f"pairs) {', '.join(each)}")  # fmt: skip
    if not told:
        return ""
    return (
        "Seeds are compared on the pairs that all of them have scored; on all that one has: "
        f"{'; '.join(told)}."
    )


def overview(table: Table, short: bool = False) -> str:
    """Arms and poolings by length, in other prose, and ``keyed``: means over seeds, as a Markdown
    table.

    In brackets are the pairs of a cell that has fewer than others of its column.

    Args:
        short: only the main pooling, its vectors' cosine beside what reads more of it.
    """
    split = reported_split(table)
    poolings, compared = table.poolings, table.names("arm")
    if short:
        pooling = main_pooling(table)
        poolings = list(dict.fromkeys((pooling, trained_pooling(pooling))))
        compared = [arm for arm in compared if table.find(arm=arm, pooling=pooling, split=split)]
    main = main_test(table, split)
    lengths = [n for n in table.lengths(**main) if n]
    tests = [(f"{n:,}", {**main, "eval_length": n}) for n in lengths]
    for carrier in table.names("carrier"):
        other = {**main, "carrier": carrier}
        if carrier and other != main:
            lengths = table.lengths(**other)
            tests += [(f"in {carrier}, {n:,}", {**other, "eval_length": n}) for n in lengths]
    for n in table.lengths(construction="keyed", split=split):
        tests.append(
            (f"`keyed`, {n:,}", {"construction": "keyed", "split": split, "eval_length": n})
        )
    head = ["arm, pooling (seeds)", *(name for name, _ in tests)]
    lines = [head, ["---"] * len(head)]
    most = [max(r["pairs"] for r in table.find(**test)) for _, test in tests]
    for pooling, arm in product(poolings, compared):
        mine = {"arm": arm, "pooling": pooling}
        trained = max((r["train_length"] for r in table.find(**mine, split=split)), default=0)
        found = [table.find(**mine, train_length=trained, **test) for _, test in tests]
        if any(found):
            cells = [told_cell(table, rows, count) for rows, count in zip(found, most, strict=True)]
            lines.append([f"{arm}, {pooling} ({max(map(len, found))})", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told_cell(table: Table, rows: list[dict[str, Any]], most: int) -> str:
    """Mean over seeds, and of how many pairs if these are fewer than ``most``."""
    if not rows:
        return "–"
    few = min(row["pairs"] for row in rows)
    return f"{np.mean(table.pearsons(rows)):.3f}" + (f" ({few:,})" if few < most else "")


def genres(table: Table, arm: str, pooling: str) -> str:
    """At the longest length that has enough pairs of each."""
    split = reported_split(table)
    mine = {"arm": arm, "pooling": pooling, "train_length": longest(table)}
    native = table.find(construction="native", split=split, **mine)[:1]
    for length in reversed(told_lengths(table, arm, pooling)):
        rows = table.find(eval_length=length, **mine, **main_test(table, split))[:1]
        found = [by_genre(table, row) for row in (*rows, *native)]
        if len(found) == 2 and found[0] and all(of == of for one in found for of in one.values()):
            told = ", ".join(
                f"{name} {of:.2f} ({found[1][name]:.2f})" for name, of in found[0].items()
            )
            return (
                "What is lost depends on whether a sentence can be told from its surroundings: by "
                f"genre at {length:,} tokens (in brackets the unmodified pairs) {told}."
            )
    return ""


def against_others(table: Table, arm: str, pooling: str) -> list[str]:
    at = main_test(table, reported_split(table))
    said = []
    for other in ("softmax-windows512", "softmax-cut512", "softmax-full"):
        for how in dict.fromkeys((pooling, trained_pooling(pooling))):
            made = [
                (n, difference(table, arm, other, how, n, **at))
                for n in told_lengths(table, arm, how)
            ]
            told = "; ".join(f"{interval(found)} at {n:,}" for n, found in made if found)
            trained = max((r["train_length"] for r in table.find(arm=other, pooling=how, **at)),
                          default=0)  # fmt: skip
            if told:
                short = "" if trained == longest(table) else f" (trained to {trained:,} tokens)"
                cosine = "" if how == pooling else ", by cosine"
                said.append(f"Against {other}{short}{cosine}: {told}.")
    return said


def keyed(table: Table) -> list[str]:
    """Where one sentence says which other counts, which no average of windows can know."""
    split = reported_split(table)
    said = []
    for pooling in table.poolings:
        rows = [r for r in table.find(construction="keyed", split=split, pooling=pooling)
                if r["train_length"] == longest(table)]  # fmt: skip
        for length, carrier in sorted({(r["eval_length"], r["carrier"]) for r in rows}):
            at = {"construction": "keyed", "carrier": carrier, "split": split}
            mine = {"pooling": pooling, "train_length": longest(table)}
            arms = list(dict.fromkeys(r["arm"] for r in rows if r["eval_length"] == length))
            told = ", ".join(
                f"{name} {number(table.mean(arm=name, eval_length=length, **mine, **at))}"
                for name in arms
            )
            made = [
                (name, difference(table, name, "softmax-windows512", pooling, length, **at))
                for name in arms if name in LINEAR_TIME
            ]  # fmt: skip
            less = "; ".join(f"{name} {interval(found)}" for name, found in made if found)
            said.append(
                f"Where one sentence names the one that counts (keyed, {length:,} tokens, "
                f"{spelled(pooling)}): {told}" + (f"; less windows: {less}." if less else ".")
            )
    return said


def length_alone(table: Table) -> list[str]:
    """repeat against the same weights on the unmodified pairs."""
    asked = {"construction": "repeat", "train_length": longest(table)}
    rows = [r for r in table.find(**asked, split=reported_split(table))
            if r["arm"] in LINEAR_TIME]  # fmt: skip
    told = [
        f"{row['arm']}, {row['pooling']}, seed {row['seed']}, {row['eval_length']:,} tokens "
        f"{interval(found)}"
        for row in sorted(rows, key=lambda r: (r["arm"], r["pooling"], r["eval_length"], r["seed"]))
        for found in [against_native(table, row)]
        if found
    ]
    if not told:
        return []
    return [f"A sentence over and over (repeat), less its unmodified pairs: {'; '.join(told)}."]


def far_branch(table: Table) -> list[str]:
    """Whether hybrid's linear branch helps: the same weights with it switched off."""
    split = reported_split(table)
    told = []
    for pooling in table.poolings:
        cells = sorted(
            {(r["construction"], str(r["carrier"] or ""), r["eval_length"])
             for r in table.find(arm="hybrid-off", pooling=pooling, split=split)
             if r["eval_length"]}
        )  # fmt: skip
        words: dict[str, list[str]] = {"helps": [], "harms": []}
        none = 0
        for construction, carrier, length in cells:
            at = {"construction": construction, "carrier": carrier or None, "split": split}
            found = difference(table, "hybrid", "hybrid-off", pooling, length, **at)
            if found is None:
                continue
            if found.low <= 0 <= found.high:
                none += 1
                continue
            words["helps" if found.low > 0 else "harms"].append(
                f"{construction}, {carrier}, {length:,} tokens {interval(found)}"
            )
        says = [f"it {word} on {'; '.join(each)}" for word, each in words.items() if each]
        if none:
            says.append(f"in {none} {'tests' if none > 1 else 'test'} the interval includes 0")
        if says:
            told.append(f"With {spelled(pooling)} {', and '.join(says)}")
    if not told:
        return []
    return [
        f"What hybrid's linear branch is worth, by switching it off: {'. '.join(told)}. The part "
        "on differences has all of them."
    ]
