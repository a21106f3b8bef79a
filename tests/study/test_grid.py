"""Grids: what is refused before anything starts, and which runs one means."""

from pathlib import Path

import pytest

from twinline.errors import TwinlineError
from twinline.options import ModelOptions
from twinline.study.grid import ArmOptions, EvalOptions, FinishOptions, Grid, read_grid


def grid_file(folder: Path, text: str) -> Path:
    file = folder / "grid.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trian_lengths: [64]", "no option 'trian_lengths'; known: name, base"),
        ("arms: [{name: liner}]", "arms, number 1: an arm's name must be among softmax-full"),
        ("arms: [{name: linear, sedes: [1]}]", "number 1 has no option 'sedes'"),
        ("arms: {name: linear}", "arms must be a list of options"),
        ("arms: [{name: linear}, {name: linear}]", "linear-latent-0 twice: give one a label"),
        ("rates: [0.0001, 0.0002]", "set pilot to their steps"),
        ("arms: [{name: linear, poolings: [cls]}]", "among latent, sentence, mean, not 'cls'"),
        ("arms: []", "at least one arm"),
        ("steps: [10]", "one number for each of 3"),
        ("pooling_steps: [10]", "one number for each of 3"),
        ("arms: [{name: hybrid, steps: [9, 9, 0]}]", "only pooling by the sentence learns without"),
        ("arms: [{name: hybrid, steps: [9, 9]}]", "one number of steps for each of 3"),
        (
            "arms: [{name: hybrid, steps: [9, 9, 0], poolings: [sentence], model: {sentences: "
            "true}}]",
            "learns nothing there",
        ),
        ("arms: [{name: hybrid, poolings: [sentence]}]", "set its model's sentences to true"),
        ("finish: {steps: 9, keep: 1.5}", "finish: keep must be at least 0 and below 1"),
        ("finish: {keep: 0.5}", "finish: .*needs steps"),
        ("finish: {soften: [0.5]}", "finish: .*needs steps"),
        ("finish: {steps: 9, sources: [mnly]}", "finish: sources must be among .*not 'mnly'"),
        ("finish: {constructions: [repeat]}", "finish: .*needs steps"),
        ("finish: {settle: 5}", "finish: .*needs steps"),
        ("finish: {steps: 5, settle: -1}", "finish: settle must be at least 0"),
        ("finish: {steps: 9, constructions: [composite]}", "must be among context, keyed, .*not"),
        ("finish: {steps: 9, soften: [1]}", "soften must be a list of floats"),
        ("find: {texts: 0}", "find: texts must be at least 1"),
        ("pooling_steps: [10, -1, 10]", "pooling_steps must be a list of ints of at least 0"),
        ("train_lengths: [512, 128, 2048]", "train_lengths must rise"),
        ("train_lengths: [128, 128, 512]", "train_lengths must rise"),
        ("arms: [{name: linear, train_lengths: 128}]", "number 1: train_lengths must be a list"),
        ("arms: [{name: linear, train_lengths: [16, 32, 64, 128]}]", "more train_lengths than"),
        ("rates: [1e-4]", "write 1.0e-4 for 1e-4"),
        (
            "test: [{construction: context, lengths: 64}]",
            "test, number 1: lengths must be a list, not",
        ),
        ("arms: [{name: linear, real: '128'}]", "number 1: real must be a whole number, not '128'"),
        ("arms: [{name: linear, seeds: 1}]", "number 1: seeds must be a list, not 1"),
        ("arms: [{name: linear, virtual: 'no'}]", "virtual must be true or false, not 'no'"),
        ("arms: [{name: linear, equal: token}]", "equal must be one of pairs, tokens or null, not"),
        ("arms: [{name: linear, real: 8}]", "real must be at least 16"),
        ("arms: [{name: linear, label: hybrid-off}]", "label 'hybrid-off' is an arm's own name"),
        ("arms: [{name: linear, label: a/b}]", "label must be letters, digits and hyphens"),
        ("arms: [{name: linear, model: {attention: softmax}}]", "attention and pooling are the"),
        ("name: ../x", "name must be letters, digits and hyphens"),
        ("pilot: x", "pilot must be a whole number, not 'x'"),
        ("curve_pairs: x", "curve_pairs must be a whole number, not 'x'"),
        ("dtype: int9", "dtype must be one of float32, bfloat16, int8, auto, not 'int9'"),
        ("train: {precision: bf8}", "train: precision must be one of .*, not 'bf8'"),
        ("train: {learning_rate: 1e-4}", "a number, not '1e-4' .write 1.0e-4 for 1e-4."),
        ("transfer_texts: [novel]", "transfer_texts must be among .*, not 'novel'"),
        ("constructions: [composite]", "constructions must be among context, .*not 'composite'"),
        ("test: [{construction: context, lengths: [8]}]", "a test's lengths must be .*at least 16"),
        ("test: [{construction: native, train_lengths: [64]}]", "train_lengths must be among 128"),
        ("test: [{construction: native, pairs: -5}]", "a test's pairs must be"),
        ("test: [{construction: contxt, lengths: [64]}]", "must be among context, keyed"),
        (
            "test: [{construction: context}]",
            "a test's lengths must be a list of ints of at least 16",
        ),
        ("test: [{construction: native, arms: [linaer]}]", "a test's arms must be among"),
        ("data: sts", "data must be among stsb, mrpc, builtin, not 'sts'"),
        ("data: qqp", "data must be among stsb, mrpc, builtin, not 'qqp'"),
        ("train: {accumulate: 2}", "train.accumulate must be 1"),
        ("pilot: -1", "pilot must be at least 0"),
        ("rates: [0.0]\npilot: 1", "rates must be above 0"),
        ("carrier: novles", "carrier must be among novels, qmsum, squality, qnli, builtin, or"),
        ("train_carriers: [novels, gone.txt]", "train_carriers must be among .*, not 'gone.txt'"),
        (
            "test: [{construction: context, lengths: [64], carrier: qsum}]",
            "a test's carrier must be among",
        ),
        ("test: [{construction: native, seeds: [3]}]", "a test's seeds must be among 0, not 3"),
        (
            "test: [{construction: native, poolings: [cls]}]",
            "a test's poolings must be among .*, not 'cls'",
        ),
        ("train: {learning_rate: -1}", "train: learning_rate must be above 0"),
    ],
)
def test_a_typo_is_refused_with_what_is_allowed(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(TwinlineError, match=told):
        read_grid(grid_file(tmp_path, text))


def test_runs_come_seed_by_seed_and_have_identities_of_their_own() -> None:
    arms = (ArmOptions("linear", seeds=(0, 1)), ArmOptions("hybrid", poolings=("latent",)))
    runs = list(Grid(arms=arms).runs())
    assert [run.key for run in runs] == [
        "linear-latent-0", "hybrid-latent-0", "linear-mean-0", "linear-latent-1", "linear-mean-1",
    ]  # fmt: skip
    assert len({run.identity for run in runs}) == len(runs)


def test_what_finishes_a_pooling_by_the_sentence_changes_no_other_run() -> None:
    arms = (
        ArmOptions("hybrid", poolings=("sentence", "latent"), model=ModelOptions(sentences=True)),
    )
    plain, more = (Grid(arms=arms, finish=FinishOptions(steps=n)) for n in (0, 9))
    one, other = ([run.identity for run in grid.runs()] for grid in (plain, more))
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_a_run_depends_on_what_it_reads_not_on_the_other_arms() -> None:
    one = Grid(arms=(ArmOptions("linear"),))
    more = Grid(arms=(ArmOptions("linear", seeds=(0, 1)), ArmOptions("hybrid")))
    other = Grid(arms=(ArmOptions("linear", real=128),))
    longer = Grid(arms=(ArmOptions("linear"),), steps=(300, 300, 400))
    first = next(one.runs()).identity
    assert first == next(more.runs()).identity
    assert first not in (next(other.runs()).identity, next(longer.runs()).identity)


def test_a_test_may_be_of_some_seeds_and_poolings() -> None:
    arm = ArmOptions("linear", seeds=(0, 1), poolings=("latent", "mean"))
    tests = (EvalOptions("native", seeds=(0,), poolings=("latent",)), EvalOptions("native"))
    counts = {run.key: len(list(run.tests(2))) for run in Grid(arms=(arm,), test=tests).runs()}
    assert counts == {
        "linear-latent-0": 2, "linear-mean-0": 1, "linear-latent-1": 1, "linear-mean-1": 1,
    }  # fmt: skip


def test_tests_follow_stages_and_the_arms_that_share_weights() -> None:
    grid = Grid(
        arms=(ArmOptions("hybrid"),),
        validation=(EvalOptions("native", last=False),),
        test=(
            EvalOptions("context", (64,), arms=("hybrid",), train_lengths=(512,)),
            EvalOptions("context", (64,), arms=("hybrid-off",)),
        ),
    )
    run = next(grid.runs())
    early = [(split, name) for split, name, _ in run.tests(0)]
    late = [(split, name) for split, name, _ in run.tests(2)]
    assert early == [("validation", "hybrid"), ("validation", "hybrid-off")]
    assert late == [*early, ("test", "hybrid-off")]
    assert [name for _, name, _ in run.tests(1)] == ["hybrid", "hybrid-off", "hybrid"]


def test_what_is_read_once_is_asked_for_one_number_of_pairs(tmp_path: Path) -> None:
    """Late interaction gives the cosine of all its pairs, which a smaller test would replace."""
    file = tmp_path / "grid.yaml"
    text = """
arms: [{name: linear, poolings: [sentence], seeds: [0, 1], model: {sentences: true}}]
test:
  - {lengths: [64], similarity: late, seeds: [1]}
  - {lengths: [64], pairs: 30, seeds: [SEEDS]}
"""
    file.write_text(text.replace("SEEDS", "0"))
    assert read_grid(file).test[0].similarity == "late"
    file.write_text(text.replace("SEEDS", "0, 1"))
    with pytest.raises(TwinlineError, match="linear, seed 1, is asked twice for context of 64"):
        read_grid(file)


def test_what_is_scored_in_other_numbers_is_not_scored_again() -> None:
    """A grid's tests may be scored on processors and on a GPU, which has no int8."""
    exact, rounded = (
        next(Grid(arms=(ArmOptions("linear"),), test=(EvalOptions("native"),), dtype=dtype).runs())
        for dtype in ("float32", "int8")
    )
    assert exact.identity == rounded.identity
    assert exact.wanted(2) == rounded.wanted(2)
