"""What a finished study says of itself: differences, its answer, its report."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest

from twinline.cli import main
from twinline.errors import TwinlineError
from twinline.files import read_lines
from twinline.study.answer import conclusion, fewer, overview, whole_split
from twinline.study.arms import trained_as
from twinline.study.costs import protocols
from twinline.study.grid import NATIVE
from twinline.study.report import longer_part, make
from twinline.study.run import packed
from twinline.study.table import (
    BUT_FORUMS,
    FIELDS,
    Table,
    against_native,
    by_genre,
    chosen_student,
    law_of_length,
    retained,
    same_native,
    scored,
    set_key,
    trained_pooling,
)


def test_a_difference_is_paired_and_of_one_test(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    one = {"arm": "hybrid", "pooling": "latent", "construction": "context", "split": "test",
           "eval_length": 600}  # fmt: skip
    assert len(table.find(**one)) == 2  # seeds
    same = table.difference(one, one)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert table.difference(one, {**one, "eval_length": 64}) is None
    assert table.difference(one, {**one, "arm": "lightning"}) is None


def test_a_difference_is_of_the_seeds_that_both_have(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    at = {"pooling": "latent", "construction": "native", "split": "test"}
    one, other = {**at, "arm": "hybrid"}, {**at, "arm": "hybrid-off"}
    fewer = replace(table)
    fewer.__dict__["rows"] = [r for r in table.rows if r not in table.find(**other)[:1]]
    made, same = fewer.difference(one, other), table.difference({**one, "seed": 1}, other)
    assert made == same == table.difference({**one, "seed": 1}, {**other, "seed": 1}) is not None


def with_fewer(table: Table, row: dict[str, Any], left_out: int) -> Table:
    """The table as if ``row`` had not scored its first pairs."""
    known = scored(table, row)
    fewer = known.on(known.rows[left_out:])
    less = {
        **table.sets[set_key(row)], "pairs": len(fewer.rows),
        "rows": packed(fewer.rows, "<u2"), "gold": packed(fewer.gold, "<f2"),
    }  # fmt: skip
    cut = {**row, "pairs": len(fewer.rows), "scores": packed(fewer.scores, "<f2")}
    cut["pearson"] = np.corrcoef(fewer.scores, fewer.gold)[0, 1]
    mixed = replace(table, sets={**table.sets, set_key(less): less})
    mixed.__dict__["rows"] = [cut if r is row else r for r in table.rows]
    return mixed


def test_a_difference_is_of_the_pairs_that_all_have_scored(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    at = {"construction": "native", "split": "test", "eval_length": 0, "pooling": "latent"}
    one, other = {**at, "arm": "hybrid"}, {**at, "arm": "hybrid-off"}
    row = table.find(**other)[0]
    common = scored(table, row).rows[5:]
    made = with_fewer(table, row, 5).difference(one, other)
    assert made is not None
    seeds = [scored(table, r).on(common) for side in (one, other) for r in table.find(**side)]
    values = [np.corrcoef(s.scores, s.gold)[0, 1] for s in seeds]
    half = len(values) // 2
    assert made.value == pytest.approx(np.mean(values[:half]) - np.mean(values[half:]), abs=1e-3)
    assert made.count == len(common)


def test_seeds_are_averaged_on_the_pairs_that_all_have_scored(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    at = {"arm": "hybrid", "pooling": "latent", "construction": "context", "split": "test",
          "eval_length": 600}  # fmt: skip
    first, second = table.find(**at)
    assert table.mean(**at) == np.mean([first["pearson"], second["pearson"]])
    assert "Seeds are compared" not in " ".join(conclusion(table))
    mixed = with_fewer(table, second, 3)
    common = scored(table, second).rows[3:]
    own = [scored(table, r).on(common) for r in (first, second)]
    assert mixed.mean(**at) == pytest.approx(
        np.mean([np.corrcoef(one.scores, one.gold)[0, 1] for one in own]), abs=1e-9
    )
    assert mixed.mean(**at) != table.mean(**at)
    told = whole_split(mixed, "hybrid", "latent")
    assert f"600 tokens (seed 0; {first['pairs']} pairs) hybrid {first['pearson']:.3f}" in told


def test_where_fewer_pairs_were_read_is_said(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    assert fewer(table, "hybrid", "latent") == ""
    assert "(27)" not in overview(table)
    at = {"arm": "hybrid", "pooling": "latent", "construction": "context", "split": "test"}
    mixed = table
    for row in table.find(**at, eval_length=600):
        mixed = with_fewer(mixed, row, 3)
    longest = mixed.find(**at, eval_length=200)
    rows = scored(mixed, mixed.find(**at, eval_length=600)[0]).rows
    assert len(rows) == 27
    own = [scored(table, row).on(rows) for row in longest]
    same = np.mean([np.corrcoef(one.scores, one.gold)[0, 1] for one in own])
    told = fewer(mixed, "hybrid", "latent")
    assert told == f" Of 600 tokens it has read 27 pairs, and of 200 these at {same:.3f}."
    (line,) = (one for one in overview(mixed).splitlines() if one.startswith("| hybrid, latent"))
    assert line.count("(27)") == 1
    one_seed = replace(mixed)
    one_seed.__dict__["rows"] = [
        row for row in mixed.rows if (row["seed"], row["eval_length"]) != (1, 600)
    ]
    same = np.corrcoef(own[0].scores, own[0].gold)[0, 1]  # of the seed that is left
    assert fewer(one_seed, "hybrid", "latent").endswith(f"these at {same:.3f}.")


def test_two_protocols_are_compared_where_a_grid_has_both(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    assert protocols(table) is None  # linear-real has steps of equal pairs, and no sibling
    lines = next(lines for lines in table.runs if lines[0]["run"] == "linear-real-mean-0")
    assert (lines[0]["kind"], lines[0]["equal"]) == ("linear", "pairs")
    sibling = [{**lines[0], "run": "linear-mean-0", "arm": "linear", "equal": "tokens"}, *lines[1:]]
    made = protocols(replace(table, runs=[*table.runs, sibling]))
    assert made is not None
    assert [row[:3] for row in made["rows"]] == [
        ["linear, mean, seed 0", length, equal]
        for length in ("48", "128") for equal in ("tokens", "pairs")
    ]  # fmt: skip


def test_a_run_that_is_not_tested_yet_is_not_the_chosen_student(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    chosen = chosen_student(table)
    assert chosen is not None
    ahead = [
        [line for line in lines if line.get("split") != "test"]
        if (lines[0]["arm"], lines[0]["pooling"]) == (chosen[0], trained_pooling(chosen[1]))
        else lines
        for lines in table.runs
    ]
    other = replace(table, runs=ahead)
    assert chosen_student(other) not in (chosen, None)
    assert conclusion(other)


def test_the_exponent_of_length_is_bootstrapped_over_the_pairs_that_all_lengths_have(
    finished: Path,
) -> None:
    table = Table.read(finished / "results" / "tiny")
    rows = table.find(
        arm="hybrid", pooling="sentence", construction="context", split="test", seed=0
    )
    assert len(rows) == 3
    law, within, pairs = law_of_length(table, rows)
    assert law is not None
    assert within is not None
    assert within[0] < law.b < within[1]
    assert pairs == 30


def test_late_interaction_is_scored_beside_the_cosine_of_the_same_vectors(finished: Path) -> None:
    lines = read_lines(finished / "results" / "tiny" / "hybrid-sentence-0.jsonl")
    learned = [line for line in lines if line["what"] == "match"]
    assert {line["arm"] for line in learned} == {"hybrid", "hybrid-off"}
    at = {"arm": "hybrid", "split": "test", "construction": "context", "eval_length": 200}
    both = [one for one in lines if at.items() <= one.items()]
    assert [one["similarity"] for one in both] == ["late", None]  # read once, by late interaction
    table = Table.read(finished / "results" / "tiny")
    late, plain = (table.find(**at, pooling=how) for how in ("sentence, late", "sentence"))
    assert [row["seed"] for row in late] == [row["seed"] for row in plain] == [0, 1]
    assert late[0]["scores"] != plain[0]["scores"]
    assert not table.find(**at, pooling="latent, late")
    assert table.difference({**at, "pooling": "sentence, late"}, {**at, "pooling": "sentence"})
    better = [
        [{**one, "pearson": 0.99} if one.get("similarity") == "late" else one for one in run]
        for run in table.runs
    ]
    other = replace(table, runs=better)
    assert (chosen_student(other) or ("", ""))[1] == "sentence, late"
    said = conclusion(other)
    assert "with sentence pooling and late interaction of sentences" in said[0]
    assert "Its vectors alone, by cosine" in said[0]
    assert "(sentence pooling)" in said[2]


def test_what_is_kept_is_a_share_of_the_yardsticks_own_pairs(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    row = table.find(arm="hybrid", construction="context", split="test", eval_length=600)[0]
    made = retained(table, row)
    assert made is not None
    assert made.low < made.same < made.high
    native = table.find(arm=NATIVE, construction="native", split="test")[0]
    assert made.whole == pytest.approx(row["pearson"] / native["pearson"], abs=1e-3)
    gap, alone = against_native(table, row), same_native(table, row)
    assert gap is not None
    assert alone is not None
    assert len(alone.rows) == row["pairs"]
    every = np.ones(len(alone.rows), dtype=bool)
    assert gap.value == pytest.approx(row["pearson"] - alone.pearson(every), abs=1e-3)


def test_hybrid_without_its_branch_is_a_student_of_its_own(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    better = [
        [{**line, "pearson": 0.99} if line.get("arm") == "hybrid-off" else line for line in lines]
        for lines in table.runs
    ]
    other = replace(table, runs=better)
    assert (chosen_student(other) or ("",))[0] == "hybrid-off"
    said = conclusion(other)
    assert "hybrid-off (hybrid with its linear branch switched off" in said[0]
    assert "less hybrid-off" in said[1] or "not finished" in said[1]
    assert "hybrid " in said[2]


def test_the_answer_says_what_each_sentence_rests_on(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    arm = (chosen_student(table) or ("",))[0]
    said = conclusion(table)
    assert said[0].startswith(f"Best linear-time student (chosen on validation): {arm}")
    assert "linear by itself" in said[1]
    assert "until 0.80 on validation" in said[2]
    trained = trained_as(arm)  # hybrid-off has no curve of its own
    assert re.search(rf"{trained} (never|(≤ )?[\d.]+)", said[2])
    off = [one for one in said if "by switching it off" in one]
    assert len(off) == 1
    every = {(r["pooling"], r["construction"], r["carrier"], r["eval_length"])
             for r in table.find(arm="hybrid-off", split="test") if r["eval_length"]}  # fmt: skip
    alike = sum(int(n) for n in re.findall(r"in (\d+) tests? the interval includes 0", off[0]))
    assert alike + off[0].count(" tokens ") == len(every) > 0
    lines = overview(table).splitlines()
    assert lines[0].startswith("| arm, pooling (seeds) | 64 | 200 | 600 |")
    assert any(line.startswith("| hybrid, latent (2) |") for line in lines)
    assert len({line.count("|") for line in lines}) == 1
    main = chosen_student(table)[1]
    told = {line.split(",", 1)[1] for line in overview(table, short=True).splitlines()[2:]}
    assert {one.split("(")[0].strip() for one in told} == {main, trained_pooling(main)}


def test_what_is_said_of_a_test_is_of_the_last_stage(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    row = table.find(arm="hybrid", pooling="latent", construction="context", split="test")[0]
    named = {**row, "construction": "keyed", "pearson": 0.9}
    early = {**named, "train_length": 48, "pearson": 0.1}
    both = replace(table, sets={**table.sets, set_key(named): table.sets[set_key(row)]})
    both.__dict__["rows"] = [*table.rows, named, early]
    assert any("hybrid 0.900" in one for one in conclusion(both) if "(keyed" in one)
    repeated = [{**one, "construction": "repeat"} for one in (named, early)]
    both.__dict__["rows"] = [*table.rows, *repeated]
    both.sets.update({set_key(one): table.sets[set_key(row)] for one in repeated})
    assert sum("over and over" in one for one in conclusion(both)) == 1
    (said,) = (one for one in conclusion(both) if "over and over" in one)
    assert said.count(" tokens ") == 1


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "linear-0.jsonl").write_text('{"arm": "linear"}\n')
    with pytest.raises(TwinlineError, match="is no run of a study"):
        make("search", tmp_path, tmp_path)


def test_genres_are_rows_of_sts_b_and_of_nothing_else(finished: Path) -> None:
    tiny = Table.read(finished / "results" / "tiny")
    assert by_genre(tiny, tiny.find(arm="hybrid", construction="context", split="test")[0]) == {}
    rows, gold = np.arange(0, 1379, 2), np.linspace(0, 1, 690)
    scores = np.where((rows < 625) | (rows >= 879), gold, -gold)  # wrong on forums alone
    about = {"construction": "context", "carrier": "novels", "eval_length": 64, "split": "test",
             "pairs": 690, "rows": packed(rows, "<u2"), "gold": packed(gold, "<f2")}  # fmt: skip
    head = {"what": "run", "pooling": "mean", "seed": 0, "machine": "one"}
    line = {"what": "test", "train_length": 64, "pearson": 0.5, "ci_low": 0.0, "ci_high": 1.0}
    native = {**line, "construction": "native", "carrier": None, "eval_length": 0,
              "arm": NATIVE, "split": "test", "pairs": 1379}  # fmt: skip
    long = {**line, **about, "arm": "linear", "scores": packed(scores, "<f2")}
    table = Table(
        "made",
        [[{**head, "run": NATIVE, "arm": NATIVE}, native], [{**head, "run": "a"}, long]],
        {set_key(about): about},
    )
    found = by_genre(table, table.find(arm="linear")[0])
    assert {name: round(value) for name, value in found.items()} == {
        "captions": 1, "forums": -1, "news": 1, BUT_FORUMS: 1
    }  # fmt: skip


def test_the_report_is_one_page_and_the_rows(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, docs = finished / "results", finished / "docs"
    main(["study", "report", "--results", str(results), "--docs", str(docs)])
    assert "tiny/index.html" in capsys.readouterr().out
    page = (docs / "tiny" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl", "")
    assert "src=" not in page  # nothing is loaded from elsewhere
    for told in ("Pearson by training length", "What the linear branch is worth, seed by seed",
                 "Convergence", "hybrid", "not reached", "<svg", "Laws of length and of training",
                 "Late interaction and cosine", "sharply to look for likeness",
                 "The runs", "Mean length against cost", "What is kept", "Learning rates, chosen",
                 "multiplied by what reads validation best: hybrid-sentence-0",
                 "twinline study report tiny"):  # fmt: skip
        assert told in page
    rows = json.loads((results / "tiny.json").read_text())
    assert {tuple(row) for row in rows} == {FIELDS}
    first = page
    make("tiny", results, docs)
    assert (docs / "tiny" / "index.html").read_text() == first


def test_arms_are_held_against_those_of_more_training(finished: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("tiny", "tiny-gpu"):
        shutil.copytree(finished / "results" / "tiny", results / name)
    table = Table.read(results / "tiny")
    made = longer_part(table, results)
    assert made is not None
    rows = {tuple(row[:3]): row[3:] for row in made["tables"][0]["rows"]}
    same = rows["hybrid − hybrid, more training", "latent", "600"]
    assert same[0].startswith("+0.000 [+0.000")
    assert ("hybrid − softmax-windows512, more training", "sentence", "600") in rows
    shutil.rmtree(results / "tiny-gpu")
    assert longer_part(table, results) is None


def test_two_grids_are_held_against_one_another(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("tiny", "twin"):
        shutil.copytree(finished / "results" / "tiny", tmp_path / name)
    script = Path(__file__).parents[2] / "benchmarks" / "grids.py"
    monkeypatch.setattr("sys.argv", [str(script), "tiny", "twin", "--results", str(tmp_path)])
    run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out.splitlines()
    at = "| sentence, late | 200 | "
    assert f"| hybrid − hybrid of twin {at}+0.000 [+0.000, +0.000] | 30 |" in told
    (other,) = (line for line in told if f"hybrid − hybrid-off of twin {at}" in line)
    table = Table.read(tmp_path / "tiny")
    mine = {"pooling": "sentence, late", "construction": "context", "eval_length": 200,
            "split": "test"}  # fmt: skip
    less = (table.mean(arm="hybrid", **mine) or 0) - (table.mean(arm="hybrid-off", **mine) or 0)
    assert f"| {less:+.3f} [" in other
