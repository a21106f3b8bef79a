"""A tiny study from end to end: stopped, resumed, refused, reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import grid_of

from twinline.cli import main
from twinline.conversion import convert
from twinline.data import load
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.files import read_lines
from twinline.study import run as run_module
from twinline.study.alone import finish, validated
from twinline.study.grid import read_grid
from twinline.study.plan import Speed, estimate, named, run_grid, said
from twinline.study.report import make
from twinline.study.run import memory_of, missing, settle
from twinline.study.table import (
    FIELDS,
    Table,
    by_place,
    unpacked,
)
from twinline.study.workshop import Workshop
from twinline.training.finding import pooling_of
from twinline.training.matching import late_of
from twinline.windows import cut


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


def test_a_split_with_more_rows_than_results_can_tell_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(read_grid(finished / "grid.yaml"), finished / "work")
    monkeypatch.setattr("twinline.study.workshop.MOST_PAIRS", 5)
    with pytest.raises(TwinlineError, match="pairs in test; results tell the rows of up to 5"):
        shop.long("context", 64, "builtin", "test", 3)


def test_late_interaction_learns_on_pairs_that_are_scored_last(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = read_grid(finished / "grid.yaml")
    shop = Workshop(grid, finished / "work")
    plan = next(run for run in grid.runs() if run.key == "hybrid-sentence-0")
    encoder = Encoder(finished / "work" / plan.folder / "stage-128", similarity="late")
    learned: list[Any] = []

    def learn(_: Encoder, pairs: Any, **__: Any) -> dict[str, float]:
        learned.append(pairs)
        return {"prior": 1.0, "sharpness": 8.0, "discount": 0.5, "pearson": 0.5}

    monkeypatch.setattr(run_module, "learn_to_match", learn)
    lines = run_module.Results(tmp_path / "run.jsonl", plan)
    run_module.match(plan, 1, "hybrid", encoder, shop, lines)
    run_module.match(plan, 1, "hybrid", encoder, shop, lines)
    assert len(learned) == 1  # what is known is taken
    assert len(learned[0]) == grid.finish.pairs
    assert late_of(encoder).sharpness.item() == 8.0
    for text in learned[0].sentence1:
        assert text not in shop.long("context", 128, "builtin", "validation", 12).pairs.sentence1
    whole = len(shop.pairs("validation"))
    every = shop.long("context", 64, "builtin", "validation", whole + 1, others=True)
    assert every.rows.tolist() == list(range(whole))


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
    assert "hybrid-off test context builtin 600" in map(named, lacks)
    assert said(lacks).endswith(f" and {len(lacks) - 3} more")
    pairs, speed = {"validation": 10, "test": 10}, Speed(1, 1)
    whole, rest = estimate(plan, speed, pairs), estimate(plan, speed, pairs, lacks)
    assert rest.training == whole.training
    assert 0 < rest.testing < whole.testing
    (tmp_path / "trained").write_text("".join(
        json.dumps(one) + "\n" for one in lines if one["what"] != "curve"
    ))  # fmt: skip
    assert said(missing(plan, tmp_path / "trained")).startswith("lacks training to ")
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
