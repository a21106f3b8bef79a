"""The command line: every verb on a tiny model, and one sentence with status 2 for mistakes."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twinline.cli import main

HEAVY = {"torch", "transformers", "numpy", "datasets", "scipy"}
TINY = ["--train.epochs", "1", "--train.pairs", "16"]


def run(capsys: pytest.CaptureFixture[str], *tokens: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one call."""
    status = 0
    try:
        main([str(token) for token in tokens])
    except SystemExit as stop:
        status = int(stop.code or 0)
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_bert: Path, tiny_pairs: Path) -> Path:
    """A student made by the command line."""
    folder = tmp_path_factory.mktemp("student") / "model"
    main(
        ["distill", str(folder), "--base", str(tiny_bert), "--data", str(tiny_pairs), "--scale",
         "0", "1", "--texts", str(tiny_pairs), "--transfer.steps", "3", "--train.alpha", "0", *TINY]
    )  # fmt: skip
    return folder


def test_convert(capsys, tiny_bert: Path, tiny_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    status, told, _ = run(
        capsys, "convert", out, "--base", tiny_bert, "--attention", "lightning", "--decay", "0.5",
        "--texts", tiny_pairs, "--transfer.steps", "3",
    )  # fmt: skip
    assert status == 0
    assert "lightning attention, width 16" in told
    config = json.loads((out / "config.json").read_text())
    assert (config["attention"], config["decay"]) == ("lightning", 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["made"], "working files are gone"


def test_teach_then_distill_then_evaluate(
    capsys, tiny_bert: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    data = ["--data", tiny_pairs, "--scale", "0", "1"]
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    assert run(capsys, "teach", teacher, "--base", tiny_bert, *data, *TINY)[0] == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {tiny_bert}\ndata: {tiny_pairs}\nscale: [0, 1]\nvalidation: {tiny_pairs}\n"
        "model: {attention: linear}\ntransfer: {steps: 0}\ntrain: {epochs: 1, pairs: 16}\n"
    )
    status, told, err = run(
        capsys, "distill", out, "--recipe", recipe, "--teacher", teacher, "--train.pairs", "32"
    )
    assert status == 0, err
    assert "validation Pearson" in told
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2], "the command line overrides the recipe"
    assert set(lines[0]) >= {"step", "pairs", "tokens", "seconds", "loss", "learning_rate"}
    for model in (teacher, out):
        status, told, _ = run(capsys, "evaluate", model, *data)
        assert status == 0
        assert "64 pairs" in told
        assert "Pearson" in told


def test_encode(capsys, student: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a man plays\n\ngreen grass\na man plays\n" + "dogs run " * 300 + "\n")
    status, told, _ = run(capsys, "encode", student, texts, tmp_path / "v.npy")
    assert status == 0
    assert "5 texts" in told
    assert "longest 602" in told, "nothing was cut"
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (5, 16)
    assert (vectors[0] == vectors[3]).all()
    status, _, err = run(
        capsys, "encode", student, texts, tmp_path / "w.npy", "--max-tokens", "512"
    )
    assert status == 2
    assert "602 tokens" in err
    assert not (tmp_path / "w.npy").exists()


def test_encode_streams_and_says_its_dtype(capsys, student: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    lines = [f"a man plays {'fast ' * (n % 7)}" for n in range(5000)]
    texts.write_text("\n".join(lines))
    status, told, _ = run(
        capsys, "encode", student, texts, tmp_path / "v.npy", "--dtype", "bfloat16"
    )
    assert status == 0
    assert "5000 texts" in told
    assert "bfloat16" in told
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (5000, 16)
    assert (vectors[0] == vectors[4900]).all()


def test_inspect(capsys, student: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a man plays\n\n" + "dogs run " * 300 + "\n")
    call = ("inspect", texts, "--model", student, "--limits", "512", "--limits", "4")
    status, told, err = run(capsys, *call)
    assert status == 0, err
    assert "3 texts, 609 tokens, mean 203.0" in told
    assert "| tokens | 2 | 2 | 2 | 5 | 602 | 602 | 602 | 602 |" in told
    assert "| 512 | 1 (33.3%) | 90 (14.8%) |" in told
    assert "| 4 | 2 (66.7%) | 599 (98.4%) |" in told
    status, _, err = run(capsys, "inspect", texts, "--model", student, "--limits", "0")
    assert status == 2
    assert "limits must be at least 1" in err


def bad_calls(tmp: Path, student: Path, bert: Path, pairs: Path) -> dict[str, tuple[list, str]]:
    files = {
        "empty.csv": "",
        "columns.csv": "sentence1,text,score\na,b,1\n",
        "number.csv": "sentence1,sentence2,score\na,b,0.5\na,c,much\n",
        "nan.csv": "sentence1,sentence2,score\na,b,0.5\na,c,nan\n",
        "one.csv": "sentence1,sentence2,score\na,b,0.5\na,c,0.5\n",
        "gpt/config.json": '{"model_type": "gpt2"}',
        "typo.yaml": "bas: x\n",
        "alone.yaml": f"base: {bert}\ndata: {pairs}\nscale: [0, 1]\ntransfer: {{steps: 0}}\n",
        "long.yaml": f"base: {bert}\ndata: {pairs}\nscale: [0, 1]\ntransfer: {{steps: 2}}\n",
        "file": "",
    }
    for name, content in files.items():
        (tmp / name).parent.mkdir(exist_ok=True)
        (tmp / name).write_text(content)

    def evaluate(file: str) -> list:
        return ["evaluate", student, "--data", tmp / file, "--scale", "0", "1"]

    def distill(*more: object) -> list:  # which is to say it before attention transfer
        return ["distill", tmp / "o", "--recipe", tmp / "long.yaml", *more]

    return {
        "no model": (["evaluate", tmp / "no", "--data", pairs], "no model folder"),
        "no data": (evaluate("no.csv"), "no file"),
        "empty": (evaluate("empty.csv"), "empty"),
        "column": (evaluate("columns.csv"), "it has sentence1, text, score"),
        "number": (evaluate("number.csv"), "line 3"),
        "nan": (evaluate("nan.csv"), "line 3"),
        "one class": (evaluate("one.csv"), "one class only"),
        "no scale": (["evaluate", student, "--data", pairs], "--scale"),
        "type": (["convert", tmp / "o", "--base", tmp / "gpt"], "bert, roberta"),
        "option": (["convert", tmp / "o", "--base", bert, "--attention", "quick"], "one of hybrid"),
        "map": (["convert", tmp / "o", "--base", bert, "--feature-map", "x"], "feature_map must"),
        "share": (["distill", tmp / "o", "--train.alpha", "2"], "alpha is a share"),
        "teacher": (["distill", tmp / "o", "--recipe", tmp / "alone.yaml"], "no teacher"),
        "teacher's path": (distill("--teacher", tmp / "no"), "no model folder"),
        "twin's path": (distill("--train.alpha", "0", "--twin", tmp / "no"), "no model folder"),
        "no twin": (distill("--train.alpha", "0", "--train.match", "1"), "needs a twin"),
        "extra": (distill("--teacher", bert, "--extra", tmp / "no.csv"), "no file"),
        "output": (["convert", tmp / "file" / "o", "--base", bert], "is a file"),
        "recipe": (["convert", tmp / "o", "--recipe", tmp / "typo.yaml"], "bas"),
        "no recipe": (["convert", tmp / "o", "--recipe", tmp / "no.yaml"], "cannot be read"),
        "verb": (["destill"], "destill"),
        "flag": (["convert", tmp / "o", "--bse", "x"], "--bse"),
        "far": (["evaluate", student, "--data", pairs, "--scale", "0", "1", "--no-far"], "hybrid"),
        "late": (
            ["evaluate", student, "--data", pairs, "--scale", "0", "1", "--similarity", "late"],
            "pooling='sentence'",
        ),
        "one too many": (["study", "plan", tmp / "typo.yaml", "more"], "no place for 'more'"),
        "npy": (["encode", student, tmp / "number.csv", tmp / "x.txt"], ".npy"),
    }  # fmt: skip


NAMES = [
    "late",
    "no model",
    "no data",
    "empty",
    "column",
    "number",
    "nan",
    "one class",
    "no scale",
    "type",
    "option",
    "map",
    "share",
    "teacher",
    "teacher's path",
    "twin's path",
    "no twin",
    "extra",
    "output",
    "recipe",
    "no recipe",
    "verb",
    "flag",
    "far",
    "one too many",
    "npy",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_sentence(
    name: str, capsys, tmp_path: Path, student: Path, tiny_bert: Path, tiny_pairs: Path
) -> None:
    calls = bad_calls(tmp_path, student, tiny_bert, tiny_pairs)
    assert sorted(calls) == sorted(NAMES)
    before = sorted(tmp_path.rglob("*"))
    tokens, part = calls[name]
    status, told, err = run(capsys, *tokens)
    assert status == 2
    assert part in err
    assert err.startswith("twinline: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in told + err
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written is left"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors raised when it met a full disk.
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence(
    error: Exception, capsys, monkeypatch, tiny_bert, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    from twinline import model

    monkeypatch.setattr(model.TwinlineModel, "save_pretrained", full)
    status, _, err = run(capsys, "convert", tmp_path / "o", "--base", tiny_bert)
    assert status == 2
    assert "space" in err
    assert list(tmp_path.iterdir()) == []


def test_import_and_help_load_nothing_heavy() -> None:
    """What makes them slow is importing torch and its like: that is what must not happen."""
    for body in ("twinline.__dir__()", "import twinline.cli"):
        code = f"import sys, twinline; {body}; print(sorted(set(sys.modules) & {HEAVY}))"
        made = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        assert made.stdout.strip() == "[]"


def test_a_stop_says_how_to_go_on(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twinline.demo.run_demo", stopped)
    status, told, err = run(capsys, "demo", "--output", tmp_path)
    assert (status, told) == (130, "")
    assert "given again, a command that trains goes on from its last checkpoint" in err
