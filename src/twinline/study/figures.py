"""The report's pictures, as SVG text that stands in the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from .table import Table, by_place, trained_pooling

COLOURS = {
    "softmax-cut512": "#9a9a9a",
    "softmax-windows512": "#555555",
    "softmax-full": "#000000",
    "linear": "#d1495b",
    "hybrid": "#00798c",
    "hybrid-off": "#7fc4cf",
    "lightning": "#edae49",
}


def drawn(paint: Callable[[Any], None], width: float = 6.4, height: float = 3.8) -> str:
    """An SVG of what ``paint`` puts on the axes, without a date or random names in it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: dict[Any, Any] = {
        "svg.hashsalt": "twinline",
        "svg.fonttype": "none",  # a page holds many: outlines would bring each glyph once for each
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


def by_length(table: Table, pooling: str, train_length: int | None, **wanted: Any) -> str:
    """Pearson against the evaluation length: means as lines, seeds as points; beside what is scored
    by late interaction the same arms by cosine, dotted."""

    def paint(axes: Any) -> None:
        ways = dict.fromkeys((pooling, trained_pooling(pooling)))
        named, colours = set(), dict(COLOURS)
        for how, arm in product(ways, table.names("arm")):
            rows = table.find(arm=arm, pooling=how, **wanted)
            trained = {r["train_length"] for r in rows}
            if not trained:
                continue
            at = train_length if train_length in trained else max(trained)
            rows = [r for r in rows if r["train_length"] == at and r["eval_length"]]
            lengths = sorted({r["eval_length"] for r in rows})
            if not lengths:
                continue
            seeds = [table.pearsons([r for r in rows if r["eval_length"] == n]) for n in lengths]
            label = None if arm in named else arm if how == pooling else f"{arm}, by cosine"
            named.add(arm)
            if label and at != train_length:
                label += f" (trained to {at:,})"
            line = "-" if how == pooling else ":"
            drawn_line = axes.plot(lengths, list(map(np.mean, seeds)), line,
                                   color=colours.get(arm), label=label, lw=1.8)[0]  # fmt: skip
            colour = colours.setdefault(arm, drawn_line.get_color())  # a variant's is the next free
            for length, values in zip(lengths, seeds, strict=True):
                axes.plot([length] * len(values), values, ".", color=colour, ms=5, alpha=0.7)
        if train_length:
            axes.axvline(train_length, color="#bbbbbb", ls=":", lw=1)
            axes.text(train_length, 0.02, " longest trained on", color="#888888", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens of each text")
        axes.set_ylabel("Pearson correlation")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 0.95)
        plain_powers(axes)
        legend(axes)
        axes.grid(alpha=0.25)

    return drawn(paint)


def legend(axes: Any) -> None:
    """Names beside the lines, where there are any."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def plain_powers(axes: Any) -> None:
    """Ticks of a length axis as numbers, not as powers of two."""
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def curves(table: Table, against: str, pooling: str) -> str:
    """Validation Pearson against one cost, a line a run, stages one after the other."""

    def paint(axes: Any) -> None:
        told, colours = set(), dict(COLOURS)
        for head, length, curve in table.curves:
            if head["pooling"] != pooling:
                continue
            arm = head["arm"]
            points = [p for p in curve if p[against] > 0]
            line = axes.plot([p[against] for p in points], [p["pearson"] for p in points],
                             color=colours.get(arm), lw=1.3, alpha=0.85,
                             label=None if arm in told else arm)[0]  # fmt: skip
            colour = colours.setdefault(arm, line.get_color())
            told.add(arm)
            if points:
                axes.annotate(f"{length:,}", (points[-1][against], points[-1]["pearson"]),
                              fontsize=7, color=colour)  # fmt: skip
        axes.set_xlabel({"flops": "floating-point operations"}.get(against, against)
                        + " so far")  # fmt: skip
        axes.set_ylabel("validation Pearson at the stage's length")
        legend(axes)
        axes.grid(alpha=0.25)

    return drawn(paint)


def trained_longest(table: Table, **wanted: Any) -> list[dict[str, Any]]:
    """Rows of the longest length that there is training on."""
    rows = table.find(**wanted)
    return [row for row in rows if row["train_length"] == max(r["train_length"] for r in rows)]


def pareto(table: Table, pooling: str, length: int, **wanted: Any) -> str:
    """Pearson against the pairs that a second scores, at one length."""

    def paint(axes: Any) -> None:
        for arm in table.names("arm"):
            rows = trained_longest(table, arm=arm, pooling=pooling, eval_length=length, **wanted)
            if not rows:
                continue
            speed = [r["pairs"] / max(r["seconds"], 1e-3) for r in rows]
            axes.plot(speed, table.pearsons(rows), "o", color=COLOURS.get(arm), label=arm)
        axes.set_xscale("log")
        axes.set_xlabel(f"pairs of {length:,} tokens scored a second")
        axes.set_ylabel("Pearson correlation")
        legend(axes)
        axes.grid(alpha=0.25, which="both")

    return drawn(paint)


UNITS = {"seconds": "seconds a pair", "memory": "MB a text, beside the weights"}


def costs(table: Table, cost: str, pooling: str, **wanted: Any) -> str:
    """A cost (``UNITS``) against length."""

    def each(row: dict[str, Any]) -> float:
        return float(row["seconds"] / row["pairs"] if cost == "seconds" else row["memory"] / 1e6)

    def paint(axes: Any) -> None:
        for arm in table.names("arm"):
            rows = [r for r in table.find(arm=arm, pooling=pooling, **wanted)
                    if r["eval_length"] and r.get(cost)]  # fmt: skip
            lengths = sorted({r["eval_length"] for r in rows})
            if not lengths:
                continue
            middle = [np.median([each(r) for r in rows if r["eval_length"] == n]) for n in lengths]
            axes.plot(lengths, middle, "o-", color=COLOURS.get(arm), label=arm, ms=3)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens of each text")
        axes.set_ylabel(UNITS[cost])
        plain_powers(axes)
        legend(axes)
        axes.grid(alpha=0.25, which="both")

    return drawn(paint)


def places(table: Table, pooling: str, length: int, **wanted: Any) -> str:
    """Pearson by where in the text the sentences stand."""

    def paint(axes: Any) -> None:
        for arm in table.names("arm"):
            rows = trained_longest(table, arm=arm, pooling=pooling, eval_length=length, **wanted)
            if not rows:
                continue
            parts = np.array([by_place(table, row) for row in rows])
            axes.plot(range(4), parts.mean(axis=0), "o-", color=COLOURS.get(arm), label=arm, ms=4)
        axes.set_xticks(range(4), ["first quarter", "second", "third", "last"])
        axes.set_ylabel(f"Pearson at {length:,} tokens")
        axes.set_xlabel("where one of a pair's sentences stands")
        legend(axes)
        axes.grid(alpha=0.25)

    return drawn(paint)
