"""Learning to find documents: windows, batches, losses and a recipe from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet

from twinline.cli import main
from twinline.conversion import convert
from twinline.data.retrieval import Retrieval
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.evaluate import evaluate_retrieval
from twinline.options import LengthOptions, RetrievalOptions
from twinline.training.retrieval import best_windows, train_retrieval, window, window_vectors
from vocabulary import WORDS


def collection(documents: int = 12, queries: int = 3) -> Retrieval:
    """Each document repeats three words of its own among others; its queries name two of them."""
    draw = np.random.default_rng(0)
    texts, asked, relevant = [], [], []
    for place in range(documents):
        own = draw.choice(WORDS, 3, replace=False)
        words = draw.choice(WORDS, 120)
        words[::3] = own[draw.integers(3, size=len(words[::3]))]
        texts.append(" ".join(words))
        for _ in range(queries):
            asked.append(" ".join(draw.permutation(own)[:2]))
            relevant.append(place)
    return Retrieval(asked, np.array(relevant), texts, "tiny", "train", 0)


def test_a_window_lies_where_its_rule_says() -> None:
    ids = [2, *range(10, 30), 3]
    draw = np.random.default_rng(0)
    assert window(ids, 7, "prefix", draw) == [2, 10, 11, 12, 13, 14, 3]
    assert window(ids, 7, "suffix", draw) == [2, 25, 26, 27, 28, 29, 3]
    assert window(ids, 30, "random", draw) == ids
    starts = {window(ids, 7, "random", draw)[1] for _ in range(200)}
    assert starts == set(range(10, 26))
    mixed = [window(ids, 7, "mixed", draw)[1] for _ in range(300)]
    assert mixed.count(10) > 80
    assert mixed.count(25) > 80


OPTIONS = RetrievalOptions(
    pairs=12, epochs=60, learning_rate=1e-3, temperature=0.1,
    lengths=LengthOptions(least=16, greatest=(64,), mean=0.5, edge=0.4),
)  # fmt: skip


@pytest.mark.parametrize("arm", ["linear", "windows", "stca"])
def test_a_student_learns_to_find(arm: str, tiny_bert: Path) -> None:
    torch.manual_seed(0)
    attention = "softmax" if arm == "windows" else "linear"
    given: dict[str, Any] = {"windows": {"windows": 32}, "stca": {"similarity": "stca"}}.get(
        arm, {}
    )
    student = Encoder(convert(tiny_bert, attention=attention), **given)
    task = collection()
    before = evaluate_retrieval(student, task).mrr.value
    run = train_retrieval(student, [task], options=OPTIONS)
    losses = [line.loss for line in run.log if line.loss is not None]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])  # log 12 is where it starts
    assert evaluate_retrieval(student, task).mrr.value > before


def test_a_teachers_ranking_is_learned(tiny_bert: Path) -> None:
    task = collection(6, 2)
    teacher = Encoder(tiny_bert)
    read = window_vectors(teacher, task.documents, 16)
    scores = best_windows(teacher, task.queries, *read)
    assert scores.shape == (12, 6)
    ids = teacher.tokenize(task.documents)[0][2]
    parts = [[ids[0], *ids[1:-1][i : i + 14], ids[-1]] for i in range(0, len(ids) - 2, 14)]
    u = teacher.encode(task.queries[3], convert_to_tensor=True)
    want = torch.cosine_similarity(u[None], teacher.embed(parts)).max().item()
    assert scores[3, 2] == pytest.approx(want, abs=1e-5)
    torch.manual_seed(0)
    student = Encoder(convert(tiny_bert, attention="linear"))
    options = RetrievalOptions(pairs=4, epochs=2, listwise=1.0, lengths=OPTIONS.lengths)
    run = train_retrieval(student, [task], teacher_scores=[scores], options=options)
    assert run.step == 4
    with pytest.raises(TwinlineError, match=r"listwise=1\.0 needs a teacher"):
        train_retrieval(student, [task], options=options)
    with pytest.raises(TwinlineError, match="fewer than pairs=8"):
        train_retrieval(student, [task])


def test_a_recipe_runs_from_the_command_line(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for split in ("train", "validation", "test"):
        task = collection(8, 2)
        names = [f"{split}-{i}" for i in range(8)]
        place = tmp_path / "data" / "qmsum"
        place.mkdir(parents=True, exist_ok=True)
        texts = {"id": names, "text": [f"{split} {text}" for text in task.documents]}
        parquet.write_table(arrow.table(texts), place / f"{split}-documents.parquet")
        queries = {
            "document_id": [names[i] for i in task.relevant],
            "query": [f"{q} {split} {i}" for i, q in enumerate(task.queries)],
            "answer": task.queries,
        }
        parquet.write_table(arrow.table(queries), place / f"{split}-queries.parquet")
    monkeypatch.setenv("TWINLINE_DATA", str(tmp_path / "data"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {tiny_bert}\ncollections: [qmsum]\nasked: [question]\n"
        f"model: {{attention: linear}}\nteacher: {tiny_bert}\nteacher_windows: 16\n"
        "train: {pairs: 4, epochs: 1, evaluate_every: 1, listwise: 0.5,\n"
        "  lengths: {least: 16, greatest: [64]}}\n"
    )
    command = ["retrieval", str(tmp_path / "model"), "--recipe", str(recipe)]
    with monkeypatch.context() as patch:  # stopped after its last checkpoint
        patch.setattr(Encoder, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            main(command)
    assert (tmp_path / "model.work").is_dir()
    main(command)
    assert not (tmp_path / "model.work").exists()
    assert "validation nDCG@10" in capsys.readouterr().out
    assert Encoder(tmp_path / "model").model.config.attention == "linear"
