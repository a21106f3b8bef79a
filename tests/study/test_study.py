"""A tiny study from end to end: stopped, resumed, refused, reported."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline.cli import main
from twinline.conversion import convert
from twinline.data import load
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.files import read_lines
from twinline.study import run as run_module
from twinline.study.alone import finish, validated
from twinline.study.answer import conclusion, fewer, overview, whole_split
from twinline.study.costs import protocols
from twinline.study.grid import NATIVE, read_grid, trained_as
from twinline.study.plan import run_grid, said
from twinline.study.report import longer_part, make
from twinline.study.run import memory_of, missing, packed, settle
from twinline.study.table import (
    BUT_FORUMS,
    FIELDS,
    Table,
    against_native,
    by_genre,
    by_place,
    chosen_student,
    law_of_length,
    retained,
    same_native,
    scored,
    set_key,
    trained_pooling,
    unpacked,
)
from twinline.study.workshop import Workshop
from twinline.training.finding import pooling_of
from twinline.windows import cut

GRID = """
name: tiny
base: {base}
data: builtin
carrier: builtin
train_carriers: [builtin, {prose}]
teach: {{epochs: 0.1, pairs: 16}}
twin: {{alpha: 0.0, epochs: 0.1, pairs: 16}}
softmax: {{epochs: 0.1, pairs: 16}}
transfer: {{steps: 2, texts: 8}}
transfer_texts: [builtin]
train: {{match: 1.0, states: 1.0, attend: 0.1, pairs: 8, schedule: constant, keep_best: false}}
lengths: {{least: 32, mean: 0.4, edge: 0.3, equal: tokens, native: 0.2}}
train_lengths: [48, 128]
find: {{pairs: 10, least: 32, greatest: 48, prose: 500, texts: 4, inside: 2}}
pooling_steps: [3, 2]
finish:
  steps: 2
  find: {{pairs: 10, least: 32, greatest: 48, prose: 500, texts: 4}}
  sources: [builtin]
  planted: 5
  keep: 0.5
  soften: [0.5, 0.25]
  pairs: 6
  constructions: [context, repeat]
  settle: 2
steps: [{steps}, 2]
curve_points: [1, 1]
curve_pairs: 10
arms:
  - {{name: hybrid, poolings: [latent, sentence], model: {{block_size: 16, sentences: true}},
      real: 64, seeds: [0, 1]}}
  - {{name: softmax-windows512, poolings: [sentence], real: 64, steps: [0, 0],
      model: {{sentences: true}}}}
  - {{name: softmax-windows512, poolings: [mean], real: 64}}
  - {{name: softmax-full, poolings: [mean], train_lengths: [48]}}
  - {{name: linear, label: linear-real, poolings: [mean], virtual: false, equal: pairs}}
rates: [1.0e-4, 1.0e-3]
pilot: 1
validation:
  - {{construction: native, last: false}}
  - {{construction: context, lengths: [64], pairs: 12}}
  - {{construction: context, lengths: [64], pairs: 12, similarity: late}}
test:
  - {{construction: native}}
  - {{construction: native, similarity: late}}
  - {{construction: context, lengths: [64, 200], pairs: 30, similarity: late}}
  - {{construction: context, lengths: [64, 200, 600], pairs: 30}}
"""


def grid_of(folder: Path, base: Path, steps: int = 2) -> Path:
    """A grid whose runs take seconds."""
    file = folder / "grid.yaml"
    prose = folder / "prose.txt"
    prose.write_text("\n\n".join(f"In year {i} the river rose. Nobody saw it." for i in range(900)))
    file.write_text(GRID.format(base=base, steps=steps, prose=prose))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Results of the tiny grid, whose first run was stopped in a test and in a stage."""
    folder = tmp_path_factory.mktemp("study")
    grid = grid_of(folder, tiny_bert)
    score = run_module.score
    calls = 0

    def stopped(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return score(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "score", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, folder / "results", folder / "work")
    left = folder / "results" / "tiny" / "hybrid-latent-0.jsonl"
    before = left.read_text()
    assert '"split": "test"' not in before
    done = run_grid(grid, folder / "results", folder / "work")
    assert done == [
        "hybrid-latent-0", "hybrid-sentence-0", "softmax-windows512-sentence-0",
        "softmax-windows512-mean-0", "softmax-full-mean-0", "linear-real-mean-0",
        "hybrid-latent-1", "hybrid-sentence-1",
    ]  # fmt: skip
    assert left.read_text().startswith(before)  # what was known was not made again
    assert run_grid(grid, folder / "results", folder / "work") == []
    return folder


def test_what_finishes_a_run_is_told_where_something_does(finished: Path) -> None:
    for run in ("hybrid-latent-0", "hybrid-sentence-0", "softmax-windows512-sentence-0"):
        lines = read_lines(finished / "results" / "tiny" / f"{run}.jsonl")
        curves = {line["train_length"]: line for line in lines if line["what"] == "curve"}
        assert "softened" not in curves[48]
        assert (curves[128].get("softened") in (0.5, 0.25)) == ("latent" not in run)
    costs = [point["tokens"] for point in curves[128]["points"]]
    assert costs == sorted(set(costs))
    assert len(costs) == 3
    assert [point["steps"] for point in curves[128]["points"]] == [0, 2, 4]


def test_finishing_takes_the_pooling_part_of_the_way_back(finished: Path, tmp_path: Path) -> None:
    grid = read_grid(finished / "grid.yaml")
    trained: dict[float, dict[str, Any]] = {}
    for keep in (0.0, 0.25):
        there = replace(grid, finish=replace(grid.finish, keep=keep, soften=()))
        plan = next(run for run in there.runs() if run.key == "hybrid-sentence-0")
        shop = Workshop(there, finished / "work")
        student, _ = shop.start(plan)
        before = {k: v.clone() for k, v in pooling_of(student).state_dict().items()}
        curve, factor = finish(plan, student, shop, tmp_path / str(keep))
        assert factor is None
        assert curve[-1]["pearson"] == round(validated(plan, 1, student, shop), 5)
        trained[keep] = pooling_of(student).state_dict()
    moved = [k for k in before if not trained[0.0][k].equal(before[k])]
    assert moved
    for name in moved:
        wanted = 0.75 * trained[0.0][name] + 0.25 * before[name]
        torch.testing.assert_close(trained[0.25][name], wanted)


def test_settling_trains_encoder_and_pooling_once_more(finished: Path, tmp_path: Path) -> None:
    grid = read_grid(finished / "grid.yaml")
    plan = next(run for run in grid.runs() if run.key == "hybrid-sentence-0")
    shop = Workshop(grid, finished / "work")
    student, _ = shop.start(plan)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    curve = settle(plan, student, shop, tmp_path, 1e-3)
    assert [point["steps"] for point in curve] == [0, 2]
    assert 0 < curve[-1]["tokens"] <= 2 * 2 * grid.train.pairs * plan.arm.real
    moved = {k for k, v in student.model.state_dict().items() if not v.equal(before[k])}
    assert any(name.startswith("layers.") for name in moved)
    assert any(name.startswith("pool") for name in moved)
    last = next(run for run in grid.runs() if run.key == "softmax-windows512-sentence-0")
    assert plan.settles(1)
    assert not plan.settles(0)
    assert not last.settles(1)  # its encoder has no steps


def test_other_texts_are_planted_beside_the_training_pairs(finished: Path, tmp_path: Path) -> None:
    shop = Workshop(read_grid(finished / "grid.yaml"), finished / "work")
    own = {*shop.train.sentence1, *shop.train.sentence2}
    other = tmp_path / "other.csv"
    other.write_text("sentence1,sentence2\n" + "".join(f"a {i}, b {i}\n" for i in range(30)))
    options = replace(shop.grid.finish, sources=(str(other),))
    pairs = shop.planted(options)
    assert len(pairs) == 15
    assert pairs.score is None
    planted = [*pairs.sentence1[10:], *pairs.sentence2[10:]]
    assert all(text.strip().startswith("b ") for text in planted)
    assert len(set(planted)) == 10
    assert own.issuperset([*pairs.sentence1[:10], *pairs.sentence2[:10]])
    assert len(shop.planted(replace(options, planted=400))) == 25  # as many as there are


def test_every_test_of_the_grid_is_a_row_with_the_promised_fields(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    assert {r["arm"] for r in table.rows} == {
        "softmax-native", "hybrid", "hybrid-off", "softmax-windows512", "softmax-full",
        "softmax-cut512", "linear-real",
    }  # fmt: skip
    assert set(FIELDS) <= set(table.rows[0])
    lengths = {r["eval_length"] for r in table.rows if r["construction"] == "context"}
    assert lengths == {64, 200, 600}
    row = table.find(arm="hybrid", split="test", eval_length=600)[0]
    assert row["train_length"] == 128
    assert row["ci_low"] <= row["pearson"] <= row["ci_high"]
    about = table.sets[("context", "builtin", 600, "test", row["pairs"])]
    gold, scores = unpacked(about["gold"], "<f2"), unpacked(row["scores"], "<f2")
    assert np.corrcoef(gold, scores)[0, 1] == pytest.approx(row["pearson"], abs=5e-3)
    assert len(by_place(table, row)) == 4
    cut = table.find(arm="softmax-cut512", split="test", eval_length=600)[0]
    full = table.find(arm="softmax-full", split="test", eval_length=600)[0]
    assert cut["scores"] != full["scores"]  # what lies behind 512 tokens was not read
    short = {"split": "test", "eval_length": 64, "construction": "context"}
    assert (
        table.find(arm="softmax-cut512", **short)[0]["scores"]
        == table.find(arm="softmax-full", **short)[0]["scores"]
    )


def test_curves_count_from_the_pretrained_encoder(finished: Path) -> None:
    table = Table.read(finished / "results" / "tiny")
    transfer = {
        lines[0]["run"]: next(line for line in lines if line["what"] == "transfer")
        for lines in table.runs
        if lines[0]["arm"] != "softmax-native"
    }
    native = transfer["softmax-full-mean-0"]["tokens"]  # what all arms start from
    own = transfer["hybrid-latent-0"]["transfer_tokens"]
    assert native > 0 < own
    assert transfer["softmax-full-mean-0"]["transfer_tokens"] == 0
    assert transfer["hybrid-latent-0"]["tokens"] == native + own
    ends: dict[str, float] = {}
    for head, _, curve in table.curves:
        start = ends.get(head["run"], transfer[head["run"]]["tokens"])
        assert curve[0]["tokens"] == start
        assert [p["steps"] for p in curve] == sorted(p["steps"] for p in curve)
        ends[head["run"]] = curve[-1]["tokens"]


def test_a_curve_counts_what_the_pooling_learned_alone(finished: Path) -> None:
    steps = {
        name: [
            line["points"][-1]["steps"]
            for line in read_lines(finished / "results" / "tiny" / f"{name}.jsonl")
            if line["what"] == "curve"
        ]
        for name in ("hybrid-sentence-0", "softmax-windows512-sentence-0", "hybrid-latent-0")
    }
    assert list(steps.values()) == [
        [3 + 2, 2 + 2 + 2 + 2],  # the pooling's, its own, the pooling's once more, and both's
        [3, 2 + 2],  # its encoder has no steps
        [2, 2],
    ]


def test_the_first_seed_chooses_the_rate(finished: Path, tiny_bert: Path) -> None:
    folder = finished / "results" / "tiny"
    lines = {name: read_lines(folder / f"hybrid-latent-{name}.jsonl") for name in (0, 1)}
    tried = [line["rate"] for line in lines[0] if line["what"] == "pilot"]
    assert tried == [1e-4, 1e-3]
    assert not [line for line in lines[1] if line["what"] == "pilot"]
    with pytest.raises(TwinlineError, match="hybrid-latent-0 chooses: name that run too"):
        run_grid(finished / "grid.yaml", finished / "r2", finished / "work2", ("hybrid-latent-1",))
    of_another = finished / "r3" / "tiny" / "hybrid-latent-0.jsonl"
    of_another.parent.mkdir(parents=True)
    text = (folder / of_another.name).read_text()
    of_another.write_text(text.replace(read_lines(folder / of_another.name)[0]["identity"], "old"))
    with pytest.raises(TwinlineError, match=r"hybrid-latent-0\.jsonl holds results of another"):
        run_grid(finished / "grid.yaml", finished / "r3", finished / "work3", ("hybrid-latent-1",))


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


def test_all_windows_of_a_text_take_memory(tiny_bert: Path) -> None:
    model = convert(tiny_bert, attention="softmax")
    windows = Encoder(model, windows=16)
    one = model.memory_for(16)
    assert memory_of(windows, 16) == one
    for length in (17, 30, 31):  # 14 tokens of a window are the text's
        count = len(cut([[2, *[5] * (length - 2), 3]], 16, {2, 3}).ids)
        assert memory_of(windows, length) == count * one
    assert memory_of(Encoder(model), 31) == model.memory_for(31)
    assert memory_of(windows, 0) is None


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


def test_an_arm_is_left_as_late_interaction_scores_it(finished: Path) -> None:
    """Numbers, similarity and the branch are the folder's own."""
    table, pairs = Table.read(finished / "results" / "tiny"), load("builtin", "test")
    for arm in ("hybrid", "hybrid-off"):
        (folder,) = (finished / "work").glob(f"hybrid-sentence-0-*/late-{arm}-128")
        encoder = Encoder(folder)
        assert encoder.similarity_name == "late"
        found = encoder.similarity_pairwise(*map(encoder.store, (pairs.sentence1, pairs.sentence2)))
        at = {"arm": arm, "pooling": "sentence, late", "construction": "native", "split": "test"}
        known = unpacked(table.find(**at, seed=0)[0]["scores"], "<f2")
        assert np.corrcoef(found.numpy(), known)[0, 1] > 0.9999
        assert encoder.model.config.far == (arm == "hybrid")


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
    assert f"{trained} never" in said[2] or f"{trained} " in said[2]
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
    for told in ("Convergence", "hybrid", "not reached", "<svg", "Laws of length and of training",
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


def test_a_split_with_more_rows_than_results_can_tell_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(read_grid(finished / "grid.yaml"), finished / "work")
    monkeypatch.setattr("twinline.study.workshop.MOST_PAIRS", 5)
    with pytest.raises(TwinlineError, match="pairs in test; results tell the rows of up to 5"):
        shop.long("context", 64, "builtin", "test", 3)


def test_results_of_another_grid_are_refused(finished: Path, tiny_bert: Path) -> None:
    other = finished / "other"
    other.mkdir(exist_ok=True)
    grid = grid_of(other, tiny_bert, steps=3)
    with pytest.raises(TwinlineError, match="another version of the grid"):
        run_grid(grid, finished / "results", finished / "work")


def test_another_grids_yardstick_is_refused(finished: Path, tiny_bert: Path) -> None:
    other = finished / "yardstick" / "tiny" / "softmax-native.jsonl"
    other.parent.mkdir(parents=True)
    text = (finished / "results" / "tiny" / other.name).read_text()
    identity = json.loads(text.splitlines()[0])["identity"]
    other.write_text(text.replace(identity, "another"))
    with pytest.raises(TwinlineError, match=r"softmax-native\.jsonl holds results of another"):
        run_grid(finished / "grid.yaml", finished / "yardstick", finished / "work")
    assert "another" in other.read_text()


def test_the_plan_names_runs_and_hours(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "plan", str(finished / "grid.yaml"), "--results", str(finished / "results")])
    told = capsys.readouterr().out
    assert "| hybrid-latent-0 |" in told
    assert told.count("done") == 8
    assert "0.0 hours to go" in told


def test_the_plan_names_what_a_run_lacks(finished: Path, tmp_path: Path) -> None:
    plan = next(read_grid(finished / "grid.yaml").runs())
    assert missing(plan, tmp_path / "none") is None
    lines = read_lines(finished / "results" / "tiny" / f"{plan.key}.jsonl")
    left = [one for one in lines if one.get("construction") != "context"]
    (tmp_path / "some").write_text("".join(json.dumps(one) + "\n" for one in left))
    lacks = missing(plan, tmp_path / "some")
    assert lacks is not None
    assert "hybrid-off test context builtin 600" in lacks
    assert said(lacks).endswith(f" and {len(lacks) - 3} more")
    assert said(None) == ""


def test_what_is_not_there_is_told(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(TwinlineError, match="holds no results of a study"):
        make(None, tmp_path, tmp_path)
    with pytest.raises(TwinlineError, match="no finished run"):
        make("nothing", tmp_path, tmp_path)
    with pytest.raises(TwinlineError, match="has no run 'linear-latent-9'"):
        run_grid(finished / "grid.yaml", tmp_path, tmp_path, ("linear-latent-9",))
    broken = tmp_path / "b"
    (broken / "tiny").mkdir(parents=True)
    (broken / "tiny" / "pairs.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(TwinlineError, match=r"pairs.jsonl, line 2, is not JSON"):
        run_grid(finished / "grid.yaml", broken, tmp_path)
