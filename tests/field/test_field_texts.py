"""Rows 5, 6 and 21 of the field cases: what users give as texts, and how messages name it."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch

import twinline.teacher
from twinline import Encoder, Teacher, TransferOptions, TwinlineError, convert, transfer
from twinline.data import Pairs, load_pairs, sentences
from twinline.data.carriers import Carrier
from twinline.data.retrieval import Retrieval
from twinline.evaluate import far_share
from twinline.inspection import inspection
from twinline.recipes import ConvertRecipe, DistillRecipe, RetrievalRecipe

TEXTS = ["a man plays the guitar", "dogs run fast in the rain", "green grass and sun"]
LONG = "dogs run in the rain and " * 20


def text_file() -> Any:
    return io.StringIO("".join(f"{text}\n" for text in TEXTS))


CONTAINERS: dict[str, Callable[[], Any]] = {
    "generator": lambda: (text for text in TEXTS),
    "numpy": lambda: np.array(TEXTS),
    "object array": lambda: np.array(TEXTS, dtype=object),
    "Series": lambda: pandas.Series(TEXTS, index=[2, 0, 1]),
    "Index": lambda: pandas.Index(TEXTS),
    "dict values": lambda: dict(enumerate(TEXTS)).values(),
    "dict keys": lambda: dict.fromkeys(TEXTS).keys(),
    "arrow": lambda: pyarrow.array(TEXTS),
    "chunked arrow": lambda: pyarrow.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "open file": text_file,
}
"""What is in order, and is read by position."""


@pytest.mark.parametrize("kind", CONTAINERS)
def test_field_05_any_ordered_container_is_read_by_position(
    kind: str, encoder: Encoder, cross_encoder: Path
) -> None:
    make = CONTAINERS[kind]
    np.testing.assert_array_equal(encoder.encode(make()), encoder.encode(TEXTS))
    np.testing.assert_array_equal(list(encoder.encode_iter(make())), encoder.encode(TEXTS))
    assert encoder.tokenize(make()) == encoder.tokenize(TEXTS)
    np.testing.assert_array_equal(encoder.score(make(), make()), encoder.score(TEXTS, TEXTS))
    for scorer in (encoder, Teacher(cross_encoder, scale="logit")):
        ranked = scorer.rank("a woman plays", make(), return_documents=True)
        assert ranked == scorer.rank("a woman plays", TEXTS, return_documents=True)
        assert [found.text for found in ranked] == [TEXTS[found.corpus_id] for found in ranked]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_field_05_stored_states_and_data_too(kind: str, tiny_bert: Path) -> None:
    make = CONTAINERS[kind]
    stca = Encoder(convert(tiny_bert, attention="linear"), similarity="stca")
    torch.testing.assert_close(stca.store(make()).states, stca.store(TEXTS).states)
    ranked = stca.rank("a woman plays", make(), return_documents=True)
    assert ranked == stca.rank("a woman plays", TEXTS, return_documents=True)
    pairs = Pairs(make(), make(), np.arange(3.0), (0, 2), "made", "test")
    assert (pairs.sentence1, pairs.sentence2) == (TEXTS, TEXTS)
    task = Retrieval(make(), np.arange(3), make(), "made", "test", 0)
    assert (task.queries, task.documents) == (TEXTS, TEXTS)
    tokenizer = stca.tokenizer
    assert inspection(make(), tokenizer, [4]) == inspection(TEXTS, tokenizer, [4])


@pytest.mark.parametrize(
    "make",
    [
        lambda pairs: pyarrow.array([list(pair) for pair in pairs]),
        lambda pairs: [iter(pair) for pair in pairs],
    ],
)
def test_field_05_pairs_too(make: Callable[[Any], Any], cross_encoder: Path) -> None:
    pairs = [("a man", text) for text in TEXTS]
    teacher = Teacher(cross_encoder, scale="logit")
    np.testing.assert_array_equal(teacher.predict(make(pairs)), teacher.predict(pairs))


def test_containers_that_were_always_read_still_are(encoder: Encoder, cross_encoder: Path) -> None:
    column = datasets.Dataset.from_dict({"text": TEXTS})["text"]
    for texts in (tuple(TEXTS), column):
        np.testing.assert_array_equal(encoder.score(texts, texts), encoder.score(TEXTS, TEXTS))
    teacher = Teacher(cross_encoder, scale="logit")
    pairs = [("a man", text) for text in TEXTS]
    for given in (tuple(pairs), iter(pairs), np.array(pairs), pandas.Series(pairs, [2, 0, 1])):
        np.testing.assert_array_equal(teacher.predict(given), teacher.predict(pairs))


NOT_TEXTS: dict[str, tuple[Any, str]] = {
    "string": ("two words", "a single string"),
    "numpy string": (np.str_("two words"), "a single string"),
    "bytes": (b"two words", "decode it"),
    "dict": ({"text": "a man"}, "read by its keys"),
    "DataFrame": (pandas.DataFrame({"text": TEXTS}), 'which has columns: .*frame."text"'),
    "data set": (datasets.Dataset.from_dict({"text": TEXTS}), "which has columns"),
    "arrow table": (pyarrow.table({"text": TEXTS}), "which has columns"),
    "set": ({"a man", "a woman"}, "no order"),
    "path": (Path("texts.txt"), "read_texts"),
    "None": (None, "needs texts|not of type NoneType"),
    "number": (5, "of type int"),
    "tensor": (torch.tensor(5), "0 dimensions"),
    "table of texts": (np.array([TEXTS, TEXTS]), "2 dimensions"),
    "binary file": (io.BytesIO(b"a man\n"), "binary file"),
}
"""What holds more than texts in an order, or none, and the words of the remedy."""


@pytest.mark.parametrize("kind", NOT_TEXTS)
def test_field_06_what_is_no_list_of_texts_is_refused(
    kind: str, encoder: Encoder, cross_encoder: Path
) -> None:
    value, told = NOT_TEXTS[kind]
    teacher = Teacher(cross_encoder, scale="logit")
    readers: dict[str, Callable[[], Any]] = {
        "encode_iter": lambda: encoder.encode_iter(value),
        "tokenize": lambda: encoder.tokenize(value),
        "score": lambda: encoder.score(value, value),
        "rank": lambda: encoder.rank("a man", value),
        "Teacher.rank": lambda: teacher.rank("a man", value),
        "Teacher.predict": lambda: teacher.predict(value),
        "transfer": lambda: transfer(encoder.model, value, TransferOptions(steps=0)),
        "Pairs": lambda: Pairs(value, TEXTS, None, None, "made", "test"),
        "Retrieval": lambda: Retrieval(TEXTS, np.arange(3), value, "made", "test", 0),
        "inspection": lambda: inspection(value, encoder.tokenizer, [4]),
    }
    if not isinstance(value, str):  # which encode reads as one text
        readers["encode"] = lambda: encoder.encode(value)
        readers["encode_query"] = lambda: encoder.encode_query(value)
    if value is not None:
        readers["calibration"] = lambda: Encoder(encoder.model, encoder.tokenizer, dtype="int8",
                                                 calibration=value)  # fmt: skip
    if kind == "table of texts":
        del readers["Teacher.predict"]  # rows of two columns are pairs
    for name, read in readers.items():
        with pytest.raises(TwinlineError, match=told) as caught:
            read()
        assert "\n" not in str(caught.value), name


def test_field_06_a_hybrids_share_and_stored_states(tiny_bert: Path) -> None:
    hybrid = Encoder(convert(tiny_bert, attention="hybrid", block_size=2))
    with pytest.raises(TwinlineError, match="a single string"):
        far_share(hybrid, "one string")
    stca = Encoder(convert(tiny_bert, attention="linear"), similarity="stca")
    with pytest.raises(TwinlineError, match="which has columns"):
        stca.store(pandas.DataFrame({"text": TEXTS}))


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (("Hi", "Yo"), r"[Pp]air number 1 is no pair .* one text, 'Hi'"),
        (["ab"], "one text, 'ab'"),
        ([("a", "b"), {"a", "b"}], "Pair number 2 is no pair .*set"),
        ([{"a": 1, "b": 2}], "Pair number 1 .*dict"),
        ([("a", "b", "c")], "it has 3 items"),
        ([("a",)], "it has 1 items"),
        ([("a", "b"), 5], "Pair number 2 .*int"),
        ([("a", "b"), (None, "b")], "Pair number 2 .*first text is of type NoneType"),
        ([("a", "b"), ("a", float("nan"))], "Pair number 2 .*second text is of type float"),
        ([("a", b"b")], "Pair number 1 .*second text is of type bytes"),
        ({("a", "b"): 1}, "read by its keys"),
        (pandas.DataFrame({"a": TEXTS, "b": TEXTS}), "which has columns"),
    ],
)
def test_field_06_what_is_no_pair_is_refused(pairs: Any, told: str, cross_encoder: Path) -> None:
    with pytest.raises(TwinlineError, match=told) as caught:
        Teacher(cross_encoder, scale="logit").predict(pairs)
    assert "\n" not in str(caught.value)


def test_field_06_a_query_and_a_prompt_are_one_string(
    encoder: Encoder, cross_encoder: Path
) -> None:
    for scorer in (encoder, Teacher(cross_encoder, scale="logit")):
        for query in (["a man"], None, 5):
            with pytest.raises(TwinlineError, match="query must be one string"):
                scorer.rank(query, TEXTS)
    for option in ("prompt", "prompt_name"):
        with pytest.raises(TwinlineError, match=f"{option} must be one string"):
            encoder.encode(TEXTS, **{option: ["query: "]})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ConvertRecipe(texts="stsb"), "texts must be a list"),
        (lambda: DistillRecipe(teacher="folder"), "teacher must be a list"),
        (lambda: DistillRecipe(extra="qqp"), "extra must be a list"),
        (lambda: DistillRecipe(columns="abc"), "columns must be a list"),
        (lambda: RetrievalRecipe(collections="qmsum"), "collections must be a list"),
        (lambda: RetrievalRecipe(asked="answer"), "asked must be a list"),
        (lambda: RetrievalRecipe(asked=[5]), "asked, number 1, must be text"),
        (lambda: load_pairs("pairs.csv", columns="abc", scale=(0, 1)), "columns must be a list"),
    ],
)
def test_field_06_options_of_several_texts_refuse_one(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(TwinlineError, match=told):
        make()


def test_field_06_lists_serve_where_tuples_are_declared(tmp_path: Path) -> None:
    recipe = ConvertRecipe(texts=["stsb", tmp_path])
    assert recipe.texts == ("stsb", str(tmp_path))
    assert recipe == ConvertRecipe(texts=("stsb", str(tmp_path)))


def test_field_06_documents_are_texts(tiny_tokenizer: Any) -> None:
    for document in (None, ["A man. A woman."], b"A man."):
        with pytest.raises(TwinlineError, match="document must be one string"):
            sentences(document)
    with pytest.raises(TwinlineError, match="needs texts by name"):
        Carrier("A man plays.", tiny_tokenizer, "novels")
    with pytest.raises(TwinlineError, match="number 2 of the carrier novels is of type NoneType"):
        Carrier({"one": "A man plays.", "two": None}, tiny_tokenizer, "novels")


def test_field_06_a_broken_stream_still_gives_what_came_before(encoder: Encoder) -> None:
    found = []
    with pytest.raises(TwinlineError, match=r"[Tt]ext number 4 is of type float"):
        found.extend(encoder.encode_iter(pandas.Series([*TEXTS, None], dtype=object).fillna(0.5)))
    np.testing.assert_array_equal(found, encoder.encode(TEXTS))
    with open(__file__, encoding="utf-8") as file:
        file.close()
        with pytest.raises(TwinlineError, match="closed file"):
            list(encoder.encode_iter(file))


def test_field_21_a_pair_has_its_own_number(
    cross_encoder: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twinline.teacher, "CHUNK", 2)
    pairs = [("a man", "dogs"), ("sun", "rain"), ("a man", "dogs"), ("grass", "run"), ("sun", LONG)]
    teacher = Teacher(cross_encoder, scale="logit", cache=tmp_path / "scores.sqlite")
    for _ in range(2):  # the second time, the pairs before are known
        with pytest.raises(TwinlineError, match="number 5 with 12"):
            teacher.predict(pairs)
    with pytest.warns(UserWarning, match="number 5 with 12"):
        Teacher(cross_encoder, scale="logit", on_overflow="warn").predict(pairs)
    short = Encoder(tiny_bert, max_tokens=8)
    with pytest.raises(TwinlineError, match="the second text of pair number 5 with 122 tokens"):
        Teacher(short).predict(pairs)
    turned = Encoder(tiny_bert, max_tokens=8, similarity="dse")
    with pytest.raises(TwinlineError, match="the first text of pair number 4 with 122 tokens"):
        Teacher(turned, scale=(-9, 9)).predict([*pairs[:3], (LONG, "sun")])


def test_field_21_the_1025th_pair_is_number_1025(cross_encoder: Path) -> None:
    words = ["a", "man", "sun", "rain", "dogs", "grass"]
    pairs = [
        (f"{words[i % 6]} {words[i // 6 % 6]}", f"{words[i // 36 % 6]} {words[i // 216]}")
        for i in range(1024)
    ]
    teacher = Teacher(cross_encoder, scale="logit", both_orders=False)
    with pytest.raises(TwinlineError, match="number 1025 with 12"):
        teacher.predict([*pairs, ("sun", LONG)])


def test_field_21_a_document_has_its_own_number(cross_encoder: Path) -> None:
    documents = ["a man", "a man", LONG]
    with pytest.raises(TwinlineError, match="text number 3 of documents with 12"):
        Teacher(cross_encoder, scale="logit").rank("sun", documents)


def test_field_21_texts_are_named_by_list_and_number(tiny_bert: Path) -> None:
    encoder = Encoder(tiny_bert, max_tokens=8)
    with pytest.raises(TwinlineError, match="Text number 1 of texts2 is of type NoneType"):
        encoder.score(["a"], [None])
    with pytest.raises(TwinlineError, match="Text number 2 of texts1 is of type int"):
        encoder.score(["a", 5], ["a", "b"])
    with pytest.raises(TwinlineError, match="text number 2 of texts2 with 122 tokens"):
        encoder.score(["a", "sun"], ["a", LONG])
    with pytest.raises(TwinlineError, match="the query with 122 tokens"):
        encoder.rank(LONG, TEXTS[:1])
    with pytest.raises(TwinlineError, match="text number 3 of documents with 122 tokens"):
        encoder.rank("sun", ["a", "a", LONG])
    with pytest.raises(TwinlineError, match="Text number 2 of documents is of type float"):
        encoder.rank("sun", pandas.Series(["a", None]))
    with pytest.raises(TwinlineError, match="sentence2 of made is of type NoneType"):
        Pairs(["a"], [None], None, None, "made", "test")


def test_field_21_a_stream_counts_on_over_its_windows(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinline.batching.WINDOW_TEXTS", 2)
    encoder = Encoder(tiny_bert, max_tokens=8)
    with pytest.raises(TwinlineError, match="text number 5 with 122 tokens"):
        list(encoder.encode_iter(["a", "man", "runs", "sun", LONG]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr("twinline.capacity.free_memory", lambda: 1)
        with pytest.raises(TwinlineError, match="Text number 1 of texts2 has 4 tokens"):
            encoder.score(["a"], ["a man"])
