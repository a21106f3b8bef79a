"""Rows 7, 10 and 12 of the field cases: scales that are checked, options that keep their meaning,
and equal scores for equal texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline import DistillOptions, Encoder, Teacher, TwinlineError, convert, distill
from twinline.data import Pairs, load_pairs
from twinline.data.retrieval import Retrieval
from twinline.evaluate import evaluate_retrieval
from twinline.recipes import DataOptions
from twinline.similarity import SIMILARITIES
from vocabulary import WORDS

PAIRS = [("a man plays", "a woman plays"), ("dogs run fast", "green grass"), ("", "rain")]
TEXTS = ["a man plays the guitar", "dogs run fast in the rain", "green grass and sun"]


@pytest.mark.parametrize("scale", ["unit", ["unit"], (0.0, 1.0), (5, 9)])
def test_field_07_a_cross_encoder_off_its_scale_is_refused(scale: Any, cross_encoder: Path) -> None:
    with pytest.raises(TwinlineError, match=r"score -?[\d.]+ of pair number \d .*scale='logit'"):
        Teacher(cross_encoder, scale=scale).predict(PAIRS)
    assert np.isfinite(Teacher(cross_encoder, scale="logit").predict(PAIRS)).all()


def test_field_07_a_regressor_may_overshoot_a_little(cross_encoder: Path) -> None:
    one = Teacher(cross_encoder, scale="logit", both_orders=False).predict(PAIRS)
    raw = np.log(one / (1 - one))
    low, high = raw.min(), raw.max()
    room = 0.09 * (high - low) / 1.18  # nine percent of what is declared, beyond each end
    near = Teacher(cross_encoder, scale=(low + room, high - room), both_orders=False).predict(PAIRS)
    assert near.min() == pytest.approx(-0.09 / 1.0, abs=0.01)
    assert near.max() == pytest.approx(1.09, abs=0.01)
    room = 0.12 * (high - low) / 1.24
    with pytest.raises(TwinlineError, match="off the scale"):
        Teacher(cross_encoder, scale=(low + room, high - room), both_orders=False).predict(PAIRS)


def test_field_07_a_twin_off_its_scale_is_refused(tiny_bert: Path) -> None:
    cosine = Teacher(Encoder(tiny_bert)).predict(PAIRS)
    assert (cosine >= -1).all()
    assert (cosine <= 1.5).all()
    model = convert(tiny_bert, attention="softmax")
    model.config.normalize = False
    dot = Encoder(model, similarity="dot")
    assert abs(dot.score(["a man"], ["a man"])[0]) > 1.5, "the test needs great products"
    with pytest.raises(TwinlineError, match='of pair number 1 lies off the scale "unit"'):
        Teacher(dot).predict([("a man", "a man"), ("a", "sun")])
    assert np.isfinite(Teacher(dot, scale=["logit"]).predict(PAIRS)).all()


@pytest.mark.parametrize(
    "scale",
    [[("0", "5")], ("0", "5"), (0, float("inf")), (False, True), (None, 5), np.array([1, 0])],
)
def test_field_07_what_is_no_scale_is_one_sentence(scale: Any, cross_encoder: Path) -> None:
    with pytest.raises(TwinlineError, match="scale") as caught:
        Teacher(cross_encoder, scale=scale)
    assert "not declared" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "scale", ["05", ("0", "5"), (5, 0), (0, None), 5, (0, 1, 2), {0: 1, 5: 2}, (0, float("inf"))]
)
def test_field_07_the_scale_of_pairs_likewise(scale: Any, tiny_pairs: Path) -> None:
    for make in (
        lambda: load_pairs(tiny_pairs, scale=scale),
        lambda: Pairs(["a"], ["b"], np.ones(1), scale, "made", "test"),
    ):
        with pytest.raises(TwinlineError, match="scale must"):
            make()


def test_field_07_a_scale_may_be_a_list_or_an_array(tiny_pairs: Path) -> None:
    for scale in ([0, 1], np.array([0, 1])):
        assert load_pairs(tiny_pairs, scale=scale).scale == (0.0, 1.0)
    with pytest.raises(TwinlineError, match="scale must be a list of 2 numbers"):
        DataOptions(scale="05")


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (5, "must be a list of numbers"),
        ([0.5, 5.0], "made, pair 2: the score 5 lies outside the scale 0 to 1; correct"),
        ([-0.1, 1.0], "made, pair 1: the score -0.1 lies outside"),
        ([0.5, float("nan")], "pair 2 is not a number"),
        (["0.5", "1"], "must be a list of numbers"),
        ([0.5, None], "must be a list of numbers|pair 2 is not a number"),
        ([[0.5], [1.0]], "must be a list of numbers"),
    ],
)
def test_field_07_pairs_check_their_scores(score: Any, told: str) -> None:
    with pytest.raises(TwinlineError, match=told):
        Pairs(["a", "b"], ["c", "d"], score, (0, 1), "made", "test")


def test_field_07_rounding_is_no_mistake() -> None:
    pairs = Pairs(["a", "b"], ["c", "d"], [0, 5 + 1e-8], (0, 5), "made", "test")  # type: ignore[arg-type]
    assert pairs.unit_score.dtype == np.float64
    classes = Pairs(["a", "b"], ["c", "d"], np.array([0, 2]), None, "made", "test")
    assert classes.score is not None
    assert classes.score.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([9.0], "score 9 of pair 1 is not on the unit scale"),
        ([-1.2], "score -1.2 of pair 1 is not on the unit scale"),
        (["0.5"], "teacher_scores must be a list of numbers"),
        ([[0.5]], "teacher_scores must be a list of numbers"),
        ("1", "teacher_scores must be a list of numbers"),
    ],
)
def test_field_07_distill_checks_the_teachers_scores(
    scores: Any, told: str, tiny_bert: Path
) -> None:
    pairs = Pairs(["a man"], ["sun"], np.ones(1), (0, 1), "made", "train")
    options = DistillOptions(epochs=1)
    with pytest.raises(TwinlineError, match=told):
        distill(Encoder(tiny_bert), pairs, teacher_scores=scores, options=options)


def test_cosines_of_a_twin_may_teach(tiny_bert: Path) -> None:
    pairs = Pairs(["a man", "a"], ["sun", "the"], np.ones(2), (0, 1), "made", "train")
    run = distill(
        Encoder(tiny_bert), pairs, teacher_scores=[-0.3, 1.2], options=DistillOptions(epochs=1)
    )
    assert run.log


CHANGING: list[dict[str, Any]] = [
    {"precision": "ubinary"}, {"precision": "binary"}, {"precision": "int8"},
    {"convert_to_numpy": False}, {"convert_to_tensor": True}, {"return_token_counts": True},
    {"first": 3}, {"output_value": "token_embeddings"}, {"colour": "red"},
]  # fmt: skip
"""Options by which encode gives something else than vectors of floats."""


@pytest.mark.parametrize("options", CHANGING, ids=lambda options: next(iter(options)))
def test_field_10_options_that_mean_something_else_are_refused(
    options: dict[str, Any], encoder: Encoder
) -> None:
    name = next(iter(options))
    task = Retrieval(TEXTS[:1], np.array([1]), TEXTS, "made", "test", 0)
    for verb, call in {
        "score": lambda: encoder.score(TEXTS, TEXTS, **options),
        "rank": lambda: encoder.rank("a man", TEXTS, **options),
        "evaluate_retrieval": lambda: evaluate_retrieval(encoder, task, **options),
    }.items():
        with pytest.raises(TwinlineError, match=f"{verb} has no option '{name}'"):
            call()


def test_field_10_options_that_keep_their_meaning_serve(encoder: Encoder) -> None:
    options = {
        "prompt": "the ", "prompt_name": None, "batch_size": 2, "show_progress_bar": False,
        "device": "cpu", "normalize_embeddings": True, "truncate_dim": 8,
        "max_batch_tokens": 64, "on_overflow": "error",
    }  # fmt: skip
    vectors = encoder.encode([f"the {text}" for text in TEXTS], truncate_dim=8)
    want = encoder.similarity_pairwise(vectors, vectors[::-1])
    got = encoder.score(TEXTS, TEXTS[::-1], **options)
    assert got == pytest.approx(want.numpy(), abs=1e-6)
    assert len(encoder.rank("a man", TEXTS, **options)) == 3
    task = Retrieval(TEXTS[:1], np.array([1]), TEXTS, "made", "test", 0)
    assert len(evaluate_retrieval(encoder, task, **options).ranks) == 1


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_field_10_rounded_vectors_have_no_similarity(precision: str, encoder: Encoder) -> None:
    packed = encoder.encode([*TEXTS, "rain"], precision=precision)
    for given in (packed, torch.from_numpy(packed), list(packed)):
        for compare in (encoder.similarity, encoder.similarity_pairwise):
            with pytest.raises(TwinlineError, match=r"u?int8.* give float vectors"):
                compare(given, given)
            with pytest.raises(TwinlineError, match=r"u?int8.* give float vectors"):
                compare(encoder.encode(TEXTS[0]), packed[0])


NO_VECTORS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "nan": (lambda v: v + np.nan, "number 1 of the second ones holds NaN"),
    "infinity": (lambda v: np.where(np.arange(len(v))[:, None] == 2, np.inf, v),
                 "number 3 of the second ones holds NaN or infinity"),
    "narrow": (lambda v: v[:, :5], "Vectors of 16 and of 5 numbers"),
    "three dimensions": (lambda v: v[None], "one vector or"),
    "number": (lambda v: 0.5, "one vector or"),
    "ragged": (lambda v: [v[0].tolist(), v[1, :3].tolist()], "vectors of one width"),
    "ragged tensors": (lambda v: [torch.tensor(v[0]), torch.tensor(v[1, :3])], "of one width"),
    "texts": (lambda v: TEXTS, "needs vectors"),
    "None": (lambda v: None, "needs vectors"),
    "dict": (lambda v: {"a": v}, "needs vectors"),
    "truth values": (lambda v: v > 0, "give float vectors"),
    "no width": (lambda v: v[:, :0], "one vector or"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_VECTORS)
def test_field_10_what_are_no_vectors_is_refused(kind: str, encoder: Encoder) -> None:
    make, told = NO_VECTORS[kind]
    vectors = encoder.encode(TEXTS)
    for compare in (encoder.similarity, encoder.similarity_pairwise):
        with pytest.raises(TwinlineError, match=told) as caught:
            compare(vectors, make(vectors))
        assert "\n" not in str(caught.value)


def test_field_10_widths_and_counts_that_a_head_cannot_take(tiny_bert: Path) -> None:
    dse = Encoder(tiny_bert, similarity="dse")
    with pytest.raises(TwinlineError, match="reads vectors of 16 numbers, not 8"):
        dse.score(TEXTS, TEXTS, truncate_dim=8)
    vectors = dse.encode(TEXTS)
    with pytest.raises(TwinlineError, match="3 first vectors and 1 second: no pairs"):
        dse.similarity_pairwise(vectors, vectors[:1])
    with pytest.raises(TwinlineError, match="give what encode returns"):
        dse.similarity(dse.store(TEXTS), vectors)
    assert dse.similarity(vectors[::-1], vectors[:1][::-1]).shape == (3, 1)
    assert dse.similarity([], vectors).shape == (0, 3)
    assert dse.similarity(vectors, []).shape[:2] == (3, 0)
    assert len(dse.score([], [])) == 0


def queries() -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(20)]


def heads(tiny_bert: Path) -> dict[str, Encoder]:
    """An encoder with each similarity, and one that reads in windows."""
    torch.manual_seed(0)
    made = {
        name: Encoder(convert(tiny_bert, attention="linear"), similarity=name)
        for name, head in SIMILARITIES.items()
        if getattr(head, "reads_states", None) != "sentences"
    }
    model = convert(tiny_bert, attention="hybrid", pooling="sentence", sentences=True)
    made["late"] = Encoder(model, similarity="late")
    made["windows"] = Encoder(convert(tiny_bert, attention="softmax"), windows=8)
    return made


def test_field_12_equal_texts_rank_in_the_order_given(tiny_bert: Path, cross_encoder: Path) -> None:
    cross = Teacher(cross_encoder, scale="logit")
    for name, scorer in {**heads(tiny_bert), "cross-encoder": cross}.items():
        for query in queries():
            ranked = scorer.rank(query, ["dogs run fast in the rain"] * 9)
            assert [found.corpus_id for found in ranked] == list(range(9)), name
            assert len({found.score for found in ranked}) == 1, name


def test_field_12_equal_texts_among_others_have_equal_scores(
    tiny_bert: Path, cross_encoder: Path, tmp_path: Path
) -> None:
    texts = ["the " * 40, *["dogs run"] * 5, *TEXTS[:2], *["dogs run"] * 6, TEXTS[2]]
    same = [place for place, text in enumerate(texts) if text == "dogs run"]
    cross = Teacher(cross_encoder, scale="logit", cache=tmp_path / "scores.sqlite")
    for name, scorer in {**heads(tiny_bert), "cross-encoder": cross}.items():
        for query in queries():
            ranked = scorer.rank(query, texts)
            assert [f.corpus_id for f in ranked if f.corpus_id in same] == same, name
            if isinstance(scorer, Encoder):
                scores = scorer.score([query] * len(texts), texts)
                assert len(set(scores[same].tolist())) == 1, name


def test_field_12_a_pair_is_scored_once(cross_encoder: Path, tmp_path: Path) -> None:
    pairs = [PAIRS[0], *PAIRS, *PAIRS[::-1]]
    want = Teacher(cross_encoder, scale="logit").predict(PAIRS)[[0, 0, 1, 2, 2, 1, 0]]
    for cache in (None, tmp_path / "scores.sqlite", tmp_path / "scores.sqlite"):
        teacher = Teacher(cross_encoder, scale="logit", cache=cache)
        counts = []
        scorer = teacher.scorers[0]
        teacher.scorers[0] = Counting(scorer, counts)  # type: ignore[assignment]
        made = teacher.predict(pairs)
        assert made == pytest.approx(want, abs=1e-6)
        assert len({*made[[0, 1, 6]]}) == 1
        assert sum(counts) in (0, 6), "three pairs in both orders, or none that is not known"


class Counting:
    """A scorer that notes how many pairs it is given."""

    def __init__(self, scorer: Any, counts: list[int]) -> None:
        self.scorer, self.counts = scorer, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def __call__(self, pairs: Any) -> Any:
        self.counts.append(len(pairs))
        return self.scorer(pairs)


def test_field_12_copies_of_a_document_stand_alike(tiny_bert: Path) -> None:
    documents = [TEXTS[1], "the " * 30, *TEXTS, *queries(), TEXTS[1]]
    copies = [place for place, text in enumerate(documents) if text == TEXTS[1]]
    for name, encoder in heads(tiny_bert).items():
        asked = queries()[:6]
        ranks = [
            evaluate_retrieval(
                encoder, Retrieval(asked, np.full(6, place), documents, "made", "test", 0)
            ).ranks.tolist()
            for place in copies
        ]
        assert ranks[0] == ranks[1] == ranks[2], name
