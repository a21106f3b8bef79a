"""Retrieval tasks: what is asked, what is left out, and how ranks become figures."""

import math
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from twinline.data.retrieval import Retrieval, load_retrieval
from twinline.errors import TwinlineError
from twinline.evaluate import from_scores
from twinline.statistics import clustered_mean


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of four documents: one question is asked of two, one twice of one."""
    place = tmp_path / "qmsum"
    place.mkdir()
    texts = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    asked = {
        "train": [("a", "Why a?", "x"), ("a", "Why a?", "y"), ("b", "Sum it up.", "z")],
        "validation": [("c", "Sum it up. ", "u"), ("c", "", "v")],
        "test": [("d", "Who d?", "w"), ("d", "Sum it up.", "w2")],
    }
    for split, names in texts.items():
        documents = {"id": names, "text": [f"text of {name}" for name in names]}
        parquet.write_table(arrow.table(documents), place / f"{split}-documents.parquet")
        columns = zip(*asked[split], strict=True)
        queries = dict(zip(("document_id", "query", "answer"), map(list, columns), strict=True))
        parquet.write_table(arrow.table(queries), place / f"{split}-queries.parquet")
    return tmp_path


def test_a_question_about_several_documents_is_left_out(folder: Path) -> None:
    train = load_retrieval("qmsum", "train", data=folder)
    assert (train.queries, train.relevant.tolist(), train.ambiguous) == (["Why a?"], [0], 1)
    assert train.documents == [f"text of {name}" for name in "abcd"]
    test = load_retrieval("qmsum", "test", data=folder)
    assert (test.queries, test.relevant.tolist(), test.ambiguous) == (["Who d?"], [3], 1)
    answers = load_retrieval("qmsum", "train", "answer", data=folder, own_documents=True)
    assert answers.queries == ["x", "y", "z"]
    assert answers.relevant.tolist() == [0, 0, 1]
    assert len(answers.documents) == 2


def test_ranks_become_the_usual_figures() -> None:
    task = Retrieval(["q", "r", "s"], np.array([0, 1, 1]), ["d"] * 12, "x", "test", 0)
    scores = np.zeros((3, 12))
    scores[0, 0] = 1  # first
    scores[1, :3] = (0.9, 0.8, 0.7)  # second
    scores[2, 2:] = 1  # eleventh and, by the tie at 0, twelfth
    made = from_scores(scores, task)
    assert made.ranks.tolist() == [1, 2, 12]
    assert made.ndcg10.value == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert made.recall1.value == pytest.approx(1 / 3)
    assert made.mrr.value == pytest.approx((1 + 1 / 2 + 1 / 12) / 3)


def test_a_mean_is_resampled_by_cluster() -> None:
    """A hundred copies of a query tell no more than one of them."""
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0], 100)
    clusters = np.repeat(np.arange(5), 100)
    made = clustered_mean(values, clusters)
    assert made.value == 0.6
    assert made.high - made.low > 0.5
    alone = clustered_mean(values, np.arange(500))
    assert alone.high - alone.low < 0.1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("squad", "test"), "collection must be one of qmsum, squality"),
        (("qmsum", "dev"), "split must be one of"),
        (("qmsum", "test", "title"), "asked must be one of question, answer"),
        (("squality", "test"), "no file"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, given: tuple[str, ...], told: str) -> None:
    with pytest.raises(TwinlineError, match=told):
        load_retrieval(*given, data=folder)


def test_real_collections(stsb_data: Path) -> None:
    for name, documents in (("qmsum", 232), ("squality", 127)):
        task = load_retrieval(name, "test", data=stsb_data)
        assert len(task.documents) == documents
        assert len(task) > 100
        assert len(set(task.queries)) == len(task)
