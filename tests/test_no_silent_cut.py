"""A sweep over every public path: a text of 600 tokens is read whole, or somebody is told."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from twinline.cli import main
from twinline.conversion import convert
from twinline.data import load
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.options import DistillOptions, TeachOptions
from twinline.teacher import Teacher
from twinline.training import distill, teach

# What counts comes last: a path that reads only the start cannot tell the two apart.
START = "a man plays the guitar " * 118
ONE, OTHER = START + "dogs run fast in rain", START + "green grass and sun and grass"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    path = tmp_path_factory.mktemp("folder") / "student"
    Encoder(convert(tiny_bert, attention="linear")).save(path)
    return path


@pytest.fixture(autouse=True)
def _no_warning_goes_by():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def differ(vectors: np.ndarray) -> bool:
    return bool(abs(vectors[0] - vectors[1]).max() > 1e-6)


def test_encoder(folder: Path) -> None:
    encoder = Encoder(folder)
    vectors, counts = encoder.encode([ONE, OTHER], return_token_counts=True)
    assert min(counts) > 590
    assert differ(vectors)
    assert differ(encoder.encode_query([ONE, OTHER]))
    assert differ(encoder.encode_document([ONE, OTHER]))
    scores = [ranked.score for ranked in encoder.rank("dogs run", [ONE, OTHER])]
    assert scores[0] != scores[1]
    assert encoder.score([ONE], ["dogs run"])[0] != encoder.score([OTHER], ["dogs run"])[0]


@pytest.mark.parametrize("attention", ["softmax", "linear", "lightning", "hybrid"])
def test_every_kind_of_model(tiny_bert: Path, attention: str) -> None:
    for rule in ("tiled", "interpolated"):
        model = convert(tiny_bert, attention=attention, position_rule=rule, block_size=16)
        assert differ(Encoder(model).encode([ONE, OTHER]))


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text(f"{ONE}\n{OTHER}\n")
    main(["encode", str(folder), str(tmp_path / "texts.txt"), str(tmp_path / "v.npy")])
    assert differ(np.load(tmp_path / "v.npy"))
    assert "longest 59" in capsys.readouterr().out


def test_the_sentence_transformers_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{ONE}\n{OTHER}")
    code = """
import sys, numpy as np, twinline.auto
from sentence_transformers import SentenceTransformer
texts = open(sys.argv[2]).read().splitlines()
np.save(sys.argv[3], SentenceTransformer(sys.argv[1], device="cpu").encode(texts))
"""
    out = tmp_path / "st.npy"
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "a.txt"), str(out)]
    subprocess.run(command, check=True)
    made = np.load(out)
    assert differ(made)
    assert abs(made - Encoder(folder).encode([ONE, OTHER])).max() < 1e-5


def test_teachers_and_training(tiny_bert: Path, tiny_pairs: Path, folder: Path, tmp_path) -> None:
    pairs = load(str(tiny_pairs), scale=(0, 1)).select(range(8))
    pairs.sentence2[3] = ONE
    with pytest.raises(TwinlineError, match="Pair 4 has more than"):
        teach(tiny_bert, pairs, tmp_path / "ce", options=TeachOptions(epochs=1))
    short = load(str(tiny_pairs), scale=(0, 1)).select(range(8))
    teach(tiny_bert, short, tmp_path / "ce", options=TeachOptions(epochs=1))
    with pytest.raises(TwinlineError, match=r"number 1 with 119\d"):
        Teacher(tmp_path / "ce").predict([(ONE, OTHER)])
    twin = Teacher(folder).predict([(ONE, "dogs run"), (OTHER, "dogs run")])
    assert twin[0] != twin[1]
    run = distill(Encoder(folder), pairs, options=DistillOptions(alpha=0, epochs=1, pairs=8))
    assert run.tokens > 590
