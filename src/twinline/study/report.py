"""The report of a study: flat rows, one self-contained page, and the tables of README."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TwinlineError
from ..files import into_marks, write_whole
from ..sources import read_json
from . import figures
from .answer import conclusion, difference, overview
from .costs import arm_part, cost_part, curve_part, growth_part, law_part
from .grid import CELL, NATIVE
from .page import interval, number, part, render
from .retrieval import BOTH, published, table_of
from .table import (
    BUT_FORUMS,
    GENRES,
    Table,
    against_native,
    by_genre,
    flat,
    longest,
    main_pooling,
    main_test,
    reported_split,
    retained,
    same_native,
    trained_pooling,
    unseen,
)

PAGE_TITLE = "Linear attention beyond 512 tokens:"
"""In every page that is written here, and by it they are known."""
RUN_AGAIN = (
    "twinline study run recipes/{name}.yaml --results again --work again/work && "
    "twinline study report {name} --results again --docs again"
)
"""In a folder of its own: where results are, finished runs are not made again."""


def make(name: str | None, results: Path, docs: Path) -> list[Path]:
    """Write RESULTS/NAME.json and DOCS/NAME/index.html, and the tables of README and of the page on
    the study that have the grid's name.

    Raises: TwinlineError if no run is finished, or the extra ``report`` is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise TwinlineError(
            f"The report needs {error.name}: pip install 'twinline[report]'."
        ) from error
    folder = results / name if name else newest(results)
    table = Table.read(folder)
    written = [results / f"{folder.name}.json", docs / folder.name / "index.html"]
    refuse_foreign(written[0], written[1], docs / folder.name / "pearson.svg")
    write_whole(written[0], json.dumps(flat(table.rows), indent=0) + "\n")
    answer = conclusion(table)
    others = (longer_part(table, results), search_part(results, folder.name))
    parts = [p for p in (*sections(table), *others) if p is not None]
    page = render(
        f"{PAGE_TITLE} {table.name}", answer, parts,
        RUN_AGAIN.format(name=table.name), machines="; ".join(table.names("machine")),
        runs=", ".join(lines[0]["run"] for lines in table.runs if lines[0]["arm"] != NATIVE),
    )  # fmt: skip
    write_whole(written[1], page)
    pooling = main_pooling(table)
    picture = docs / folder.name / "pearson.svg"
    split = reported_split(table)
    write_whole(
        picture, figures.by_length(table, pooling, longest(table), **main_test(table, split))
    )
    written.append(picture)
    # Where one of them has the grid's marks; those of other names belong to other commands.
    if docs == Path("docs") and folder.name.startswith("study"):
        into_marks(Path("README.md"), folder.name, overview(table, short=True))
        told = "\n\n".join([*answer[:3], overview(table)])
        into_marks(docs / "study" / "README.md", folder.name, told)
    return written


def refuse_foreign(rows: Path, page: Path, picture: Path) -> None:
    """Refuse to write a report over files that are none.

    Raises: TwinlineError naming the file.
    """
    text = page.read_text(encoding="utf-8", errors="replace") if page.exists() else PAGE_TITLE
    found = read_json(rows) if rows.exists() else []
    lines = found if isinstance(found, list) else [None]
    for file, ours in (
        (page, PAGE_TITLE in text),
        (picture, page.exists() or not picture.exists()),
        (rows, all(isinstance(line, dict) and "arm" in line for line in lines)),
    ):
        if not ours:
            raise TwinlineError(f"{file} is no report of Twinline: move it, or name other folders.")


def newest(results: Path) -> Path:
    """The folder of the grid whose results are newest.

    Raises: TwinlineError if there is none.
    """
    found = sorted(results.glob("*/pairs.jsonl"), key=lambda f: f.stat().st_mtime)
    if not found:
        raise TwinlineError(
            f"{results} holds no results of a study: give twinline study run a grid first."
        )
    return found[-1].parent


def sections(table: Table) -> list[dict[str, Any] | None]:
    """The page's parts in their order."""
    return [
        length_part(table),
        trained_part(table),
        retention_part(table),
        difference_part(table),
        branch_part(table),
        late_part(table),
        arm_part(table),
        curve_part(table),
        growth_part(table),
        cost_part(table),
        law_part(table),
        place_part(table),
        genre_part(table),
        other_part(table),
        native_part(table),
    ]


def pearson_table(table: Table, **wanted: Any) -> dict[str, Any] | None:
    """Pearson by arm (rows) and evaluation length (columns): mean and, of several seeds, range."""
    lengths = [n for n in table.lengths(**wanted)]
    rows = []
    for pooling in table.poolings:
        for arm in table.names("arm"):
            for trained in sorted({r["train_length"] for r in table.find(arm=arm, pooling=pooling,
                                                                        **wanted)}):  # fmt: skip
                cells = []
                for length in lengths:
                    found = table.find(arm=arm, pooling=pooling, train_length=trained,
                                       eval_length=length, **wanted)  # fmt: skip
                    values = table.pearsons(found)
                    cell = "–" if not values else f"{np.mean(values):.3f}"
                    if len(values) > 1:
                        cell += f" ({min(values):.3f}–{max(values):.3f}, {len(values)} seeds)"
                    cells.append(cell)
                rows.append([f"{arm}, {pooling}", f"{trained:,}", *cells])
    if not rows:
        return None
    head = ["arm, pooling", "trained to", *(f"{n:,}" if n else "native" for n in lengths)]
    named = ", ".join(str(v) for v in wanted.values() if v)
    return {"caption": f"Pearson, {named}; tokens of each text in the head", "head": head,
            "rows": rows}  # fmt: skip


def length_part(table: Table) -> dict[str, Any]:
    split = reported_split(table)
    pictures = [
        {
            "svg": figures.by_length(table, pooling, longest(table), **main_test(table, split)),
            "caption": f"{pooling} pooling, {split} split; lines are means over seeds, points "
            "seeds, on the pairs that all seeds of an arm have scored"
            + ("; dotted: by cosine." if pooling != trained_pooling(pooling) else "."),
        }
        for pooling in table.poolings
    ]
    tables = [pearson_table(table, **main_test(table, s)) for s in table.names("split")]
    return part(
        "Pearson against length", pictures=pictures, tables=[t for t in tables if t],
        texts=["Each text is a sentence of a pair at a random place in a stretch of prose "
               "of its own, exactly so many tokens long (docs/long-pairs.md). An arm that is "
               "trained to less than others was scored when that stage had ended, before what "
               "the grid's finish adds behind the last one."],
    )  # fmt: skip


def retention_part(table: Table) -> dict[str, Any] | None:
    """What is kept of the softmax student's native correlation."""
    split = reported_split(table)
    rows = []
    found = table.find(train_length=longest(table), **main_test(table, split))
    for row in sorted(found, key=lambda r: (r["pooling"], r["arm"], r["seed"], r["eval_length"])):
        made = retained(table, row)
        if made and row["eval_length"]:
            rows.append([f"{row['arm']}, {row['pooling']}, seed {row['seed']}",
                         f"{row['eval_length']:,}", f"{row['pearson']:.3f}", f"{made.whole:.0%}",
                         f"{made.same:.0%} [{made.low:.0%}, {made.high:.0%}]",
                         str(row["pairs"]), str(row.get("left_out", 0))])  # fmt: skip
    if not rows:
        return None
    head = ["run", "tokens", "Pearson", "of native, all pairs", "of the same pairs, 95 % interval",
            "pairs", "left out (a sentence longer than the text)"]  # fmt: skip
    return part(
        "What is kept", tables=[{"caption": f"{split} split", "head": head, "rows": rows}],
        texts=["Against the softmax student on the unmodified pairs of the split: of all of them, "
               "and of those alone that the long pairs were made from, both correlations "
               "bootstrapped together."],
    )  # fmt: skip


def difference_part(table: Table) -> dict[str, Any] | None:
    split = reported_split(table)
    main = main_test(table, split)
    every = {(r["construction"], r["carrier"]) for r in table.rows if r["split"] == split}
    rows = []
    for construction, carrier in sorted(every - {("native", None)}, key=str):
        at = {"construction": construction, "carrier": carrier, "split": split}
        others = ["softmax-windows512", "hybrid-off", "hybrid"]
        if at == main:
            others += ["softmax-cut512", "softmax-full"]
        for pooling, arm, other, length in product(
            table.poolings, own_arms(table), others, table.lengths(**at)
        ):
            if arm == other or (arm, other) == ("hybrid-off", "hybrid"):
                continue  # a branch is switched off, not on
            made = difference(table, arm, other, pooling, length, **at)
            if made is not None:
                rows.append([f"{arm} − {other}", pooling, f"{construction}, {carrier}",
                             f"{length:,}", interval(made)])  # fmt: skip
    if not rows:
        return None
    head = ["difference", "pooling", "construction, prose", "tokens", "Pearson, 95 % interval"]
    return part(
        "Differences", tables=[{"caption": f"{split} split", "head": head, "rows": rows}],
        texts=["Means over the seeds that both sides have, bootstrapped over pairs (the spread "
               "between seeds is not in the interval); every arm as trained to its longest "
               "length, which the table above names. hybrid − "
               "hybrid-off is what the linear branch is worth: the same weights, the branch "
               "switched off."],
    )  # fmt: skip


def trained_part(table: Table) -> dict[str, Any] | None:
    """What a student gains from longer training texts, on the pairs that all its stages have
    scored."""
    at = main_test(table, reported_split(table))
    rows = []
    for pooling, arm, length in product(table.poolings, table.names("arm"), table.lengths(**at)):
        found = table.find(arm=arm, pooling=pooling, eval_length=length, **at)
        for seed in sorted({r["seed"] for r in found}):
            stages = [r for r in found if r["seed"] == seed]
            if len(stages) < 2:
                continue
            stages.sort(key=lambda r: r["train_length"])
            ends = [{k: r[k] for k in ("pooling", "seed", *CELL)} for r in (stages[0], stages[-1])]
            less = table.difference(ends[1], ends[0])
            values = zip(stages, table.pearsons(stages), strict=True)
            told = "; ".join(f"{r['train_length']:,} tokens {value:.3f}" for r, value in values)
            rows.append([f"{arm}, {pooling}, seed {seed}", f"{length:,}", told, interval(less),
                         f"{less.count if less else 0:,}"])  # fmt: skip
    if not rows:
        return None
    head = ["run", "tokens of a test's texts", "trained to", "longest less shortest", "pairs"]
    return part(
        "Pearson by training length",
        tables=[{"caption": "The same pairs", "head": head, "rows": rows}],
        texts=["A run is scored after the stages that the grid names: later stages have learned "
               "more, too, and not of longer texts alone, and what finishes a run follows the last "
               "one. Stages may have been scored in different numbers (dtype in results)."],
    )  # fmt: skip


def branch_part(table: Table) -> dict[str, Any] | None:
    """Seed by seed what the linear branch is worth to late interaction, with what late interaction
    has learned for each side."""
    numbers = {
        (lines[0]["seed"], lines[0]["pooling"], line["arm"], line["train_length"]):
            f"{line['prior']:g}, {line['sharpness']:g}, {line['discount']:g}"
        for lines in table.runs for line in lines if line["what"] == "match"
    }  # fmt: skip
    rows = []
    for off in table.find(arm="hybrid-off", split=reported_split(table)):
        if off["pooling"] == trained_pooling(off["pooling"]):
            continue
        same = {k: off[k] for k in ("pooling", "seed", *CELL)}
        made = table.difference({**same, "arm": "hybrid"}, same)
        plain = {**same, "pooling": trained_pooling(off["pooling"])}
        cosine = table.difference({**plain, "arm": "hybrid"}, plain)
        learned = [numbers.get((off["seed"], plain["pooling"], arm, off["train_length"]), "–")
                   for arm in ("hybrid", "hybrid-off")]  # fmt: skip
        if made is not None:
            prose = f", {off['carrier']}" if off["carrier"] else ""
            rows.append([f"{off['construction']}{prose}", f"{off['eval_length'] or 'native'}",
                         str(off["seed"]), interval(made), *learned, interval(cosine)])  # fmt: skip
    if not rows:
        return None
    head = ["construction, prose", "tokens", "seed", "hybrid − hybrid-off, late",
            "c, s, d of hybrid", "of hybrid-off", "the same by cosine"]  # fmt: skip
    return part(
        "What the linear branch is worth, seed by seed",
        tables=[{"caption": "The same weights, the branch switched off", "head": head,
                 "rows": sorted(rows)}],
        texts=["Late interaction learns its three numbers for each side by itself, on context: "
               "where they differ, so does more than the branch."],
    )  # fmt: skip


def late_part(table: Table) -> dict[str, Any] | None:
    """What late interaction adds to the cosine of the same weights, on the same pairs."""
    rows = []
    for late in table.rows:
        if late["pooling"] == trained_pooling(late["pooling"]):
            continue
        same = {k: late[k] for k in ("seed", *CELL)}
        plain = {**same, "pooling": trained_pooling(late["pooling"])}
        made = table.difference({**same, "pooling": late["pooling"]}, plain)
        if made is not None:
            values = table.pearsons([late, *table.find(**plain)])
            prose = f", {late['carrier']}" if late["carrier"] else ""
            rows.append([f"{late['arm']}, {plain['pooling']}, seed {late['seed']}", late["split"],
                         f"{late['construction']}{prose}", f"{late['eval_length'] or 'native'}",
                         *(f"{one:.3f}" for one in values), interval(made),
                         f"{made.count:,}"])  # fmt: skip
    if not rows:
        return None
    head = ["run", "split", "construction, prose", "tokens", "late interaction", "cosine",
            "difference, 95 % interval", "pairs"]  # fmt: skip
    return part(
        "Late interaction and cosine",
        tables=[{"caption": "The same weights and pairs", "head": head, "rows": rows}],
        texts=["A pooling reads a text by itself and must say which of its sentences counts. Late "
               "interaction keeps the sentences that the pooling weighs most, and of two texts "
               "compares those that both may mean and that are alike (similarity.LateInteraction). "
               "Encoding is the same, and a text is still read once; what is stored of it are up "
               "to 32 states in the place of one vector, which no vector index searches."],
    )  # fmt: skip


def own_arms(table: Table) -> list[str]:
    """The linear-time arms, and what a grid calls their variants."""
    others = {"softmax-windows512", "softmax-cut512", "softmax-full", NATIVE}
    return [arm for arm in table.names("arm") if arm not in others]


def place_part(table: Table) -> dict[str, Any] | None:
    split = reported_split(table)
    at = main_test(table, split)
    lengths = [n for n in table.lengths(**at) if n]
    length = min(lengths, key=lambda n: abs(n - 2048)) if lengths else 0
    if not length:
        return None
    pooling = main_pooling(table)
    svg = figures.places(table, pooling, length, **at)
    told = "each point is of the pairs of which a sentence stands in that quarter of its text"
    picture = {"svg": svg, "caption": f"{pooling} pooling, {length:,} tokens; {told}."}
    return part("Pearson by the sentence's place", pictures=[picture])


def genre_part(table: Table) -> dict[str, Any] | None:
    """Captions, forums and news: what is lost where a sentence looks like the prose around it."""
    split = reported_split(table)
    rows, columns = [], [*GENRES[1379], BUT_FORUMS]
    for wanted in ({"construction": "native", "split": split}, main_test(table, split)):
        for row in table.find(train_length=longest(table), **wanted):
            found = by_genre(table, row)
            if found:
                rows.append([f"{row['arm']}, {row['pooling']}, seed {row['seed']}",
                             f"{row['eval_length'] or 'native'}", f"{row['pearson']:.3f}",
                             *(number(found.get(name)) for name in columns)])  # fmt: skip
    if not rows:
        return None
    head = ["run", "tokens", "all", *columns]
    return part(
        "Pearson by genre", tables=[{"caption": f"{split} split", "head": head, "rows": rows}],
        texts=["STS-B has three genres. A caption between sentences of a novel is told by its "
               "style; a sentence from a forum, in the first person and about anything, is not: "
               "nothing in context says which of hundreds of sentences counts. Where captions keep "
               "what forums lose, it is not the length that loses it; what is lost without forums "
               "is not lost to pairs that cannot be told."],
    )  # fmt: skip


def other_part(table: Table) -> dict[str, Any] | None:
    """Other constructions and other prose than the main question's."""
    split = reported_split(table)
    own = main_test(table, split)
    tables = []
    for construction in table.names("construction"):
        for carrier in table.names("carrier"):
            wanted = {"construction": construction, "carrier": carrier, "split": split}
            if wanted != own and construction != "native":
                tables.append(pearson_table(table, **wanted))
    rows = []
    for row in table.find(construction="repeat", split=split):
        made = same_native(table, row)
        same = None if made is None else made.pearson(np.ones(len(made.rows), dtype=np.bool_))
        rows.append([f"{row['arm']}, {row['pooling']}, seed {row['seed']}",
                     f"{row['eval_length']:,}", f"{row['pearson']:.3f}", number(same),
                     interval(against_native(table, row)), str(row["pairs"])])  # fmt: skip
    if rows:
        head = ["run", "tokens", "repeat", "native, the same pairs", "difference, 95 % interval",
                "pairs"]  # fmt: skip
        tables.append({"caption": "Does length alone harm?", "head": head, "rows": rows})
    tables = [t for t in tables if t]
    if not tables:
        return None
    told = (
        "Trained on are the constructions and the prose that the grid names (constructions, "
        "train_carriers, and what finish has of its own); the rest is scored only."
    )
    return part("Other constructions, other prose", tables=tables, texts=[told])


def native_part(table: Table) -> dict[str, Any]:
    split = reported_split(table)
    rows = []
    for wanted in ({"construction": "native", "split": split}, main_test(table, split)):
        for row in table.find(**wanted):
            rows.append([f"{row['arm']}, {row['pooling']}, seed {row['seed']}",
                         f"{row['train_length']:,}", f"{row['eval_length'] or 'native'}",
                         f"{row['pearson']:.3f}", f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
                         number(unseen(table, row))])  # fmt: skip
    head = ["run", "trained to", "tokens", "Pearson", "95 % interval", "without shared sentences"]
    told = "The last column leaves out pairs that share a sentence with training."
    tables = [{"caption": split, "head": head, "rows": rows}]
    return part("The unmodified pairs, and sentences seen in training", texts=[told], tables=tables)


def longer_part(table: Table, results: Path) -> dict[str, Any] | None:
    """Arms of the study against those that NAME-gpu trained more, where there are any."""
    folder = results / f"{table.name}-gpu"
    if not any(f.stem != "pairs" for f in folder.glob("*.jsonl")):
        return None
    both, named = table.beside(Table.read(folder), ", more training")
    split, at = reported_split(table), main_test(table, reported_split(table))
    rows = []
    for pooling, arm, other, length in product(
        table.poolings, own_arms(table), named, both.lengths(**at)
    ):
        found = figures.trained_longest(both, arm=arm, pooling=pooling, eval_length=length, **at)
        most = max((r["pairs"] for r in found), default=0)
        for given in ({}, {"pairs": most}):  # all seeds; those that have scored the most pairs
            made = difference(both, arm, other, pooling, length, same_seeds=False, **at, **given)
            seeds = ", ".join(str(r["seed"]) for r in found if r["pairs"] == most or not given)
            row = [f"{arm} − {other}", pooling, f"{length:,}", interval(made), seeds]
            if made is not None and (row := [*row, f"{made.count:,}"]) not in rows:
                rows.append(row)
    if not rows:
        return None
    head = ["difference", "pooling", "tokens", "Pearson, 95 % interval", "seeds", "pairs"]
    again = RUN_AGAIN.format(name=folder.name)
    return part(
        "Against more training", tables=[{"caption": f"{split} split", "head": head, "rows": rows}],
        command=again,
        texts=[f"recipes/{folder.name}.yaml trains longer, on texts that are really read, than the "
               "study does: where an arm's lead over windows ends when these learn more, the lead "
               "was one of training. Means over the seeds named, on the pairs that all sides have "
               "scored."],
    )  # fmt: skip


def search_part(results: Path, name: str) -> dict[str, Any] | None:
    """Real long documents, where they have been searched: they belong to the main study."""
    file = published(results)
    if name != "study" or not file.is_file():
        return None
    rows = json.loads(file.read_text(encoding="utf-8"))
    tables = [{"caption": f"{s} queries", **table_of(rows, s)} for s in ("validation", "test")]
    dropped = ", ".join(
        f"{c} {s} {n}"
        for c, s, n in dict.fromkeys(
            (r["collection"], r["split"], r["ambiguous"]) for r in rows if r["asked"] == BOTH
        )
    )
    return part(
        "Real long documents", tables=tables,
        command="twinline study retrieval recipes/retrieval.yaml --results again "
        "--work again/work",
        texts=["Which meeting (QMSum) or story (SQuALITY) is a question, or an answer, about? "
               "Documents of all splits are searched, training has seen the training split's "
               "alone; intervals and differences are bootstrapped over documents. Both: questions "
               "and answers together. Queries that serve more than one document are dropped: "
               f"{dropped}."],
    )  # fmt: skip
