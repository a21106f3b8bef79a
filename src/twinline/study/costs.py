"""The report's parts on what training and encoding cost, and the laws they follow."""

from __future__ import annotations

from typing import Any

from . import figures
from .measure import COMMON, COSTS, SHARES, TARGETS, PowerLaw, power_law, reached
from .page import amount, number, part
from .table import (
    Table,
    law_of_length,
    main_pooling,
    main_test,
    reported_split,
    trained_pooling,
)

FEWEST_POINTS = 6
"""Of a curve, for a law."""
ENOUGH = 100
"""Pairs that a length should have, for a law."""
COST_NAMES = ("steps", "pairs", "tokens", "seconds", "FLOP")
"""As a table's head has them."""


def curve_part(table: Table) -> dict[str, Any]:
    pictures = [
        {"svg": figures.curves(table, against, pooling),
         "caption": f"{pooling} pooling; at each curve's end the length that its stage reached."}
        for pooling in dict.fromkeys(map(trained_pooling, table.poolings))
        for against in COSTS
    ]  # fmt: skip
    rows = []
    for head, length, curve in table.curves:
        final = curve[-1]["pearson"]
        for label, target in [
            *((f"{share:.0%} of its own {final:.3f}", share * final) for share in SHARES),
            *((f"{t:.2f}", t) for t in TARGETS),
        ]:
            costs = reached(curve, target).costs
            most = "≤ " if target <= curve[0]["pearson"] else ""
            cells = ["not reached"] + ["–"] * 4 if costs is None else [
                most + amount(costs[name]) for name in COSTS
            ]  # fmt: skip
            rows.append([f"{head['arm']}, {head['pooling']}, seed {head['seed']}", f"{length:,}",
                         label, *cells])  # fmt: skip
    head_row = ["run", "length", "target", *COST_NAMES]
    tables: list[dict[str, Any]] = [
        {"caption": "Cost to targets, validation", "head": head_row, "rows": rows}
    ]
    if both := protocols(table):
        tables.append(both)
    if tried := pilots(table):
        columns = ["run", "rate: Pearson", "chosen"]
        told = "Learning rates, chosen on validation by pilots of the first stage"
        tables.append({"caption": told, "head": columns, "rows": tried})
    return part(
        "Convergence", pictures=pictures, tables=tables,
        texts=["Costs count from the pretrained encoder: the softmax student of native length that "
               "every arm starts from, and attention transfer, are in tokens, seconds and FLOP, "
               "the earlier stages in all of them. The teacher is not, it is the same for all; nor "
               "are pilots, which choose a learning rate. ≤: it was there already where its stage "
               "started. The rate is constant but for a cooldown at each stage's end, behind "
               "which the curve's last point lies; each point is of few validation pairs (the "
               "grid's curve_pairs). Seconds are as they came, on machines that did other things "
               "too; compare tokens and FLOP.",
               *filter(None, (transfers(table), softened(table), matched(table)))],
    )  # fmt: skip


def protocols(table: Table) -> dict[str, Any] | None:
    """The same training by steps of equal tokens and of equal pairs, where a grid has both."""
    runs: dict[tuple[Any, ...], dict[str, list[list[Any]]]] = {}
    for head, length, curve in table.curves:
        if "equal" not in head:
            continue  # the yardstick
        costs = reached(curve, COMMON).costs
        cells = [amount(costs[name]) for name in COSTS] if costs else ["not reached", *["–"] * 4]
        key = (head["kind"], head["pooling"], head["seed"], length)
        row = [f"{curve[-1]['pearson']:.3f}", *cells]
        runs.setdefault(key, {}).setdefault(head["equal"], []).append(row)
    rows = [
        [f"{kind}, {pooling}, seed {seed}", f"{length:,}", equal, *row]
        for (kind, pooling, seed, length), found in sorted(runs.items()) if len(found) > 1
        for equal, each in sorted(found.items(), reverse=True)
        for row in each
    ]  # fmt: skip
    head_row = ["run", "length", "equal", "validation Pearson at its end", *COST_NAMES]
    told = f"Two protocols: cost to {COMMON:.2f} with as many tokens, or pairs, in every step"
    return {"caption": told, "head": head_row, "rows": rows} if rows else None


def arm_part(table: Table) -> dict[str, Any]:
    """What arms have beside their attention, and how they were trained."""
    rows = []
    for lines in table.runs:
        head = lines[0]
        if "model" not in head:
            continue  # the yardstick
        given = ", ".join(
            name if value is True else f"{name} {value}" for name, value in head["model"].items()
        )
        stages = [line for line in lines if line["what"] == "curve"]
        rates = {f"{line['rate']:g}" for line in stages if "rate" in line}
        rows.append([head["run"], given or "–", f"{head['real'] or 'whole'}", head["equal"],
                     ", ".join(f"{line['train_length']:,}" for line in stages),
                     " ".join(sorted(rates)) or "–", head["date"]])  # fmt: skip
    head_row = ["run", "model options", "longest text really read", "equal a step", "stages",
                "rate", "date"]  # fmt: skip
    return part(
        "The runs", tables=[{"caption": "As trained", "head": head_row, "rows": rows}],
        texts=["Arms may differ in more than attention: in the options that their entry of the "
               "grid gives. A rate is chosen by the pilots of an arm's first run, below; poolings "
               "of one entry share it."],
    )  # fmt: skip


def pilots(table: Table) -> list[list[str]]:
    """What each arm's pilots reached, and the learning rate taken."""
    rows = []
    for lines in table.runs:
        tried = [line for line in lines if line["what"] == "pilot"]
        if tried:
            best = max(tried, key=lambda line: float(line["pearson"]))
            told = ", ".join(f"{line['rate']:g}: {line['pearson']:.3f}" for line in tried)
            rows.append([lines[0]["run"], told, f"{best['rate']:g}"])
    return rows


def transfers(table: Table) -> str:
    """What attention transfer cost each arm, in words."""
    found = {
        lines[0]["arm"]: line
        for lines in table.runs
        for line in lines
        if line["what"] == "transfer"
    }
    told = ", ".join(
        f"{arm} {amount(line['transfer_tokens'])} tokens in {line['transfer_seconds']:,.0f} s"
        for arm, line in found.items() if line["transfer_tokens"]
    )  # fmt: skip
    return f"Attention transfer by itself: {told or 'none'}."


def softened(table: Table) -> str:
    """By what each run's pooling was softened, in words."""
    told = ", ".join(
        f"{lines[0]['run']} {line['softened']:g}"
        for lines in table.runs for line in lines
        if line["what"] == "curve" and line.get("softened") is not None
    )  # fmt: skip
    return told and (
        "At the end of its curve the sharpness of a pooling by the sentence was multiplied by what "
        f"reads validation best: {told}."
    )


def matched(table: Table) -> str:
    """What each run's late interaction learned, in words."""
    told = ", ".join(
        f"{lines[0]['run']}{'' if line['arm'] == lines[0]['arm'] else ' as ' + line['arm']} "
        f"{line['prior']:g}, {line['sharpness']:g} and {line['discount']:g}"
        for lines in table.runs for line in lines if line["what"] == "match"
    )  # fmt: skip
    return told and (
        "Late interaction learned on validation how much to believe the pooling, how sharply to "
        "look for likeness, and how much of it to discount that a sentence has to its own text "
        f"(similarity.LateInteraction, c, s and d): {told}."
    )


def growth_part(table: Table) -> dict[str, Any] | None:
    """What training on short texts mostly costs, and what it gives at the longest."""
    rows = []
    for lines in table.runs:
        for line in lines:
            if line["what"] != "curve" or not line.get("mean_length"):
                continue
            last, mean, most = line["points"][-1], line["mean_length"], line["train_length"]
            rows.append(
                [
                    lines[0]["run"],
                    f"{most:,}",
                    f"{mean:,} ({mean / most:.0%})",
                    f"{last['tokens'] / last['pairs'] / 2:,.0f}",
                    amount(last["tokens"]),
                    f"{last['seconds'] / last['steps']:.1f}",
                    f"{last['pearson']:.3f}",
                ]
            )
    if not rows:
        return None
    head = ["run", "up to", "mean length drawn (native: 0)", "tokens read a text", "tokens",
            "seconds a step", "validation Pearson at the longest"]  # fmt: skip
    return part(
        "Mean length against cost",
        tables=[{"caption": "Each stage by itself", "head": head, "rows": rows}],
        texts=["Lengths are drawn from a U-shaped Beta (arXiv 2511.06077, sec. 3.4): mostly short "
               "texts or the longest. Fewer tokens are read than drawn where texts are virtual: "
               "those of a step lend one another their prose (docs/architecture.md)."],
    )  # fmt: skip


def cost_part(table: Table) -> dict[str, Any]:
    split = reported_split(table)
    at = main_test(table, split)
    length = max(table.lengths(**at), default=0)
    pooling = main_pooling(table)
    common = [n for n in table.lengths(**at)
              if len({r["arm"] for r in table.find(eval_length=n, **at)}) > 2]  # fmt: skip
    length = max(common, default=length)
    return part(
        "Cost", pictures=[
            {"svg": figures.costs(table, "seconds", pooling, **at),
             "caption": "Time to encode and score a pair; docs/speed.md has speed and memory in "
             "one quiet run against other libraries."},
            {"svg": figures.costs(table, "memory", pooling, **at),
             "caption": "Memory, as it is estimated before a text is read (measured peaks lie "
             "within a tenth)."},
            {"svg": figures.pareto(table, pooling, length, **at),
             "caption": f"What a second buys, at {length:,} tokens."},
        ],
    )  # fmt: skip


def law_part(table: Table) -> dict[str, Any] | None:
    split = reported_split(table)
    at = main_test(table, split)
    rows = []
    for pooling in table.poolings:
        for arm in table.names("arm"):
            found = [r for r in table.find(arm=arm, pooling=pooling, **at) if r["eval_length"]]
            trained = max((r["train_length"] for r in found), default=0)
            found = [r for r in found if r["train_length"] == trained]
            if len({r["eval_length"] for r in found if r["pairs"] >= ENOUGH}) >= 3:
                found = [r for r in found if r["pairs"] >= ENOUGH]
            if len({r["eval_length"] for r in found}) < 3:
                continue  # through two lengths goes any law
            law, within, pairs = law_of_length(table, found)
            if law:
                told = "–" if within is None else f"[{within[0]:+.3f}, {within[1]:+.3f}]"
                rows.append([f"{arm}, {pooling}", f"{trained:,}", *law_cells(law, told), pairs])
    curves: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for head, length, curve in table.curves:
        curves.setdefault((head["arm"], head["pooling"], length), []).extend(curve[1:])
    learnt = []
    for (arm, pooling, length), points in curves.items():
        law = power_law([p["tokens"] for p in points], [p["pearson"] for p in points])
        if law and law.points >= FEWEST_POINTS:
            cells = law_cells(law, f"± {law.b_error:.3f}")
            if abs(law.b) < 2 * law.b_error:
                cells[:2] = ["–", "cannot be told"]
            learnt.append([f"{arm}, {pooling}", f"{length:,}", *cells])
    if not rows and not learnt:
        return None
    cells = ["a", "b", "error of b", "spread", "points"]
    return part(
        "Laws of length and of training",
        tables=[
            {"caption": "1 − Pearson = a · length^b", "rows": rows,
             "head": ["arm, pooling", "trained to", *cells, "pairs"]},
            {"caption": "1 − validation Pearson = a · training tokens^b",
             "head": ["arm, pooling", "length", *cells], "rows": learnt},
        ],
        texts=["Fitted to logarithms by least squares. By length: over lengths and seeds, on the "
               f"pairs that all lengths have, without lengths of fewer than {ENOUGH} pairs where "
               "three are left; b is how fast the loss of correlation grows with the "
               "text, its 95 % interval bootstrapped over pairs. By training: along the curves of "
               "all seeds of a stage without their starts, ± its standard error; the more "
               f"negative b, the faster it converges. With fewer than {FEWEST_POINTS} points no "
               "law is fitted, and one whose b is less than two errors from 0 is not told."],
    )  # fmt: skip


def law_cells(law: PowerLaw, error: str) -> list[str]:
    return [f"{law.a:.3g}", f"{law.b:+.3f}", error, number(law.spread), str(law.points)]
