"""Whatever is given to the public API, it answers with finite numbers or one TwinlineError."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinline import (
    DistillOptions,
    Encoder,
    Teacher,
    TransferOptions,
    TwinlineError,
    convert,
    distill,
    transfer,
)
from twinline.data import Pairs, load_texts
from twinline.evaluate import evaluate
from twinline.statistics import pearson, spearman
from vocabulary import WORDS

MANY = settings(
    max_examples=60, deadline=None, derandomize=True,  # CI asks what it asked before
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

PLAIN = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
ODD = st.one_of(
    PLAIN,
    st.text(st.characters(), max_size=8),  # surrogates and control characters too
    st.sampled_from(["", " ", "\0", "\ud800", "\u2028\r\n", "\ufeff", "a" * 5000, "rain " * 700]),
)
NO_TEXT = st.one_of(
    st.none(), st.integers(), st.floats(), st.booleans(), st.binary(max_size=3),
    st.lists(PLAIN, max_size=2), st.just(pandas.NA), st.just(Path("a")),
)  # fmt: skip
ITEMS = st.one_of(ODD, ODD, ODD, NO_TEXT)


def generated(items: list[Any]) -> Iterator[Any]:
    yield from items


def lined(items: list[Any]) -> io.StringIO:
    return io.StringIO("\n".join(item for item in items if isinstance(item, str)))


CONTAINERS: list[Callable[[list[Any]], Any]] = [
    list, list, list, tuple, generated, lined, str,
    lambda items: pandas.Series(items, dtype=object), lambda items: b"a",
    lambda items: np.array(items, dtype=object),
    lambda items: np.array([items, items], dtype=object),
    lambda items: np.array([str(item).replace("\0", "") for item in items]),
    lambda items: pandas.DataFrame({"text": items}, dtype=object),
    lambda items: dict.fromkeys(map(str, items), "value"),
    lambda items: {str(item) for item in items},
    lambda items: items[0] if items else None,
]  # fmt: skip
TEXTS = st.builds(
    lambda make, items: make(items), st.sampled_from(CONTAINERS), st.lists(ITEMS, max_size=4)
)
PAIRS = st.one_of(
    TEXTS,
    st.lists(st.tuples(ODD, ODD), max_size=3),
    st.lists(st.lists(ITEMS, max_size=3), max_size=3),
    st.lists(st.tuples(ODD, ODD), min_size=1, max_size=3).map(np.array),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.sampled_from([
        "8", "", "float32", "int8", "ubinary", "cosine", "dse", "cpu", "potato", "cuda:9", "warn",
        "truncate", "windows", "unit", "logit", (0, 5), (5, 0), ("a", "b"), ["unit"], np.int64(4),
    ]),
)  # fmt: skip


def options(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these options with any values, most of them none."""
    return st.one_of(
        st.just({}), st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=2)
    )


ENCODE = options(
    "prompt_name", "prompt", "batch_size", "convert_to_numpy", "convert_to_tensor", "device",
    "normalize_embeddings", "truncate_dim", "precision", "max_batch_tokens", "on_overflow",
    "show_progress_bar", "return_token_counts", "nonsense",
)  # fmt: skip


def answers(work: Callable[[], Any]) -> None:
    """``work`` raises a TwinlineError, or returns numbers that are all finite."""
    try:
        found = work()
    except TwinlineError as error:
        said = str(error)
        assert said
        assert "\n" not in said.strip()
        return
    for part in found if isinstance(found, tuple | list) else [found]:
        if isinstance(part, torch.Tensor):
            assert bool(torch.isfinite(part.float()).all())
        elif hasattr(part, "score"):
            assert np.isfinite(part.score)
        else:
            assert np.isfinite(np.asarray(part, dtype=np.float64)).all()


@pytest.fixture(scope="module", params=["linear", "softmax", "dse", "stca"])
def encoder(request: pytest.FixtureRequest, tiny_bert: Path) -> Encoder:
    if request.param in ("dse", "stca"):
        return Encoder(tiny_bert, similarity=request.param, max_tokens=40)
    return Encoder(convert(tiny_bert, request.param))


@pytest.fixture(scope="module")
def teacher(tiny_bert: Path) -> Teacher:
    from transformers import BertConfig, BertForSequenceClassification

    from twinline.teacher import CrossEncoderScorer

    twin = Encoder(tiny_bert, max_tokens=20, on_overflow="truncate")
    made = Teacher(twin, scale=(-1, 1))
    config = BertConfig.from_pretrained(tiny_bert, num_labels=1)
    model = BertForSequenceClassification(config).eval()
    made.scorers.append(CrossEncoderScorer(model, twin.tokenizer, "logit", "windows"))
    return made


pytestmark = pytest.mark.filterwarnings("ignore")


@MANY
@given(texts=TEXTS, chosen=ENCODE)
def test_encode_answers_anything(encoder: Encoder, texts: Any, chosen: dict[str, Any]) -> None:
    answers(lambda: encoder.encode(texts, **chosen))


@MANY
@given(texts=TEXTS, chosen=ENCODE)
def test_encode_iter_answers_anything(encoder: Encoder, texts: Any, chosen: dict[str, Any]) -> None:
    answers(lambda: [vector for vector in encoder.encode_iter(texts, **chosen)
                     if not isinstance(vector, tuple)])  # fmt: skip


@MANY
@given(first=TEXTS, second=TEXTS, chosen=ENCODE)
def test_score_answers_anything(
    encoder: Encoder, first: Any, second: Any, chosen: dict[str, Any]
) -> None:
    answers(lambda: encoder.score(first, second, **chosen))


@MANY
@given(query=st.one_of(ODD, ITEMS, TEXTS), documents=TEXTS, chosen=ENCODE, top_k=VALUES)
def test_rank_answers_anything(
    encoder: Encoder, query: Any, documents: Any, chosen: dict[str, Any], top_k: Any
) -> None:
    answers(lambda: encoder.rank(query, documents, top_k=top_k, **chosen))


@MANY
@given(texts=TEXTS, chosen=ENCODE)
def test_a_role_and_stored_states_answer_anything(
    encoder: Encoder, texts: Any, chosen: dict[str, Any]
) -> None:
    answers(lambda: encoder.encode_query(texts, **chosen))
    answers(lambda: encoder.encode_document(texts, **chosen))
    answers(lambda: encoder.tokenize(texts)[1])
    if encoder.reads_states:
        answers(lambda: encoder.store(texts, **chosen).vectors)


VECTORS = st.one_of(
    VALUES, TEXTS,
    st.lists(st.lists(st.floats(width=32), min_size=14, max_size=17), max_size=2),
    st.integers(0, 17).map(lambda width: np.ones((2, width))),
    st.sampled_from([np.int8, np.uint8, np.float16, np.float32, object, np.complex64]).map(
        lambda dtype: np.ones((2, 16), dtype=dtype)
    ),
    st.just(torch.ones(3, 16)), st.just([torch.ones(16)]), st.just(torch.ones(2, 2, 16)),
)  # fmt: skip


@MANY
@given(one=VECTORS, other=VECTORS)
def test_similarity_answers_anything(encoder: Encoder, one: Any, other: Any) -> None:
    answers(lambda: encoder.similarity(one, other))
    answers(lambda: encoder.similarity_pairwise(one, other))


@MANY
@given(pairs=PAIRS)
def test_a_teacher_answers_anything(teacher: Teacher, pairs: Any) -> None:
    answers(lambda: teacher.predict(pairs))


@MANY
@given(query=st.one_of(ODD, ITEMS), documents=TEXTS, top_k=VALUES)
def test_a_teachers_rank_answers_anything(
    teacher: Teacher, query: Any, documents: Any, top_k: Any
) -> None:
    answers(lambda: teacher.rank(query, documents, top_k=top_k))


def built(kind: Callable[..., Any], *parts: Any, **chosen: Any) -> int:
    """1 where ``kind`` takes these; what it does not take is refused."""
    kind(*parts, **chosen)
    return 1


@MANY
@given(
    chosen=options(
        "similarity", "device", "max_tokens", "on_overflow", "dtype", "calibration", "windows",
        "tokenizer",
    )
)  # fmt: skip
def test_an_encoders_options_are_taken_or_refused(tiny_bert: Path, chosen: dict[str, Any]) -> None:
    answers(lambda: built(Encoder, tiny_bert, **chosen))


@MANY
@given(chosen=options("scale", "both_orders", "device", "on_overflow"), source=VALUES)
def test_a_teachers_options_are_taken_or_refused(
    encoder: Encoder, chosen: dict[str, Any], source: Any
) -> None:
    answers(lambda: built(Teacher, encoder, **chosen))
    answers(lambda: built(Teacher, source))
    answers(lambda: built(Encoder, source))
    answers(lambda: built(convert, source))


@MANY
@given(first=TEXTS, second=TEXTS, score=VECTORS, scale=VALUES)
def test_pairs_are_taken_or_refused(first: Any, second: Any, score: Any, scale: Any) -> None:
    def work() -> Any:
        pairs = Pairs(first, second, score, scale, "mine", "all")
        return [] if pairs.score is None or pairs.scale is None else pairs.unit_score

    answers(work)


@MANY
@given(rows=st.lists(st.tuples(ODD, ODD, st.floats(0, 1)), max_size=4))
def test_evaluate_answers_any_pairs(encoder: Encoder, rows: list[tuple[str, str, float]]) -> None:
    def work() -> Any:
        first, second, score = zip(*rows, strict=True) if rows else ((), (), ())
        pairs = Pairs([*first], [*second], np.array(score), (0.0, 1.0), "mine", "all")
        found = evaluate(encoder, pairs, resamples=20)
        return [found.pearson.value, found.pearson.low, found.spearman.value]

    answers(work)


@MANY
@given(a=st.one_of(VECTORS, VALUES), b=st.one_of(VECTORS, VALUES))
def test_correlations_answer_anything(a: Any, b: Any) -> None:
    answers(lambda: pearson(a, b))
    answers(lambda: spearman(a, b))


@MANY
@given(texts=TEXTS, chosen=options("steps", "texts", "learning_rate", "stretches", "seed"))
def test_transfer_answers_anything(tiny_bert: Path, texts: Any, chosen: dict[str, Any]) -> None:
    def work() -> Any:
        asked = TransferOptions(**{"steps": 1, **chosen})
        if asked.steps > 2:
            return 1
        run = transfer(convert(tiny_bert, "linear"), texts, asked, show_progress=False)
        return [record.loss for record in run.log]

    answers(work)


@MANY
@given(first=TEXTS, second=TEXTS, scores=VECTORS, chosen=options("alpha", "epochs", "seed"))
def test_distill_answers_anything(
    tiny_bert: Path, first: Any, second: Any, scores: Any, chosen: dict[str, Any]
) -> None:
    def work() -> Any:
        asked = DistillOptions(**{"alpha": 1.0, "epochs": 1.0, **chosen})
        if asked.epochs > 2:
            return 1
        pairs = Pairs(first, second, None, None, "mine", "all")
        run = distill(
            Encoder(tiny_bert), pairs, teacher_scores=scores, options=asked, show_progress=False
        )
        return [record.loss for record in run.log]

    answers(work)


@MANY
@given(source=st.one_of(VALUES, TEXTS), limit=VALUES)
def test_load_texts_answers_anything(source: Any, limit: Any) -> None:
    answers(lambda: len(load_texts(source, limit)))
