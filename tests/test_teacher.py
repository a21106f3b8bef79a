"""Teacher: declared scales, both orders, averages, the cache, pairs longer than the window."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.scales import to_unit
from twinline.teacher import Teacher

PAIRS = [("a man plays", "a woman plays"), ("dogs run fast", "green grass"), ("", "rain")]
LONG = " ".join(["dogs run in the rain and"] * 100)  # 600 tokens


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory, tiny_bert, tiny_tokenizer) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig.from_pretrained(tiny_bert, num_labels=1, initializer_range=0.5)
    folder = tmp_path_factory.mktemp("cross-encoder")
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def logits(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """What transformers itself gives, a pair at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return np.array(
            [float(model(**tokenizer([a], [b], return_tensors="pt")).logits) for a, b in pairs]
        )


def test_scores_are_the_models_own(cross_encoder: Path) -> None:
    made = Teacher(cross_encoder, scale="logit", both_orders=False).predict(PAIRS)
    assert made == pytest.approx(1 / (1 + np.exp(-logits(cross_encoder, PAIRS))), abs=1e-6)


def test_both_orders_are_averaged_on_the_unit_scale(cross_encoder: Path) -> None:
    turned = [(b, a) for a, b in PAIRS]
    there, back = (to_unit(logits(cross_encoder, p), "logit") for p in (PAIRS, turned))
    assert abs(there - back).max() > 1e-3, "the test needs an asymmetric model"
    assert Teacher(cross_encoder, scale="logit").predict(PAIRS) == pytest.approx(
        (there + back) / 2, abs=1e-6
    )


def test_several_scorers_are_averaged(cross_encoder: Path, tiny_bert: Path) -> None:
    twin = Encoder(tiny_bert)
    one = Teacher(cross_encoder, scale="logit").predict(PAIRS)
    other = twin.score([a for a, _ in PAIRS], [b for _, b in PAIRS])
    both = Teacher(cross_encoder, twin, scale=["logit", None]).predict(PAIRS)
    assert both == pytest.approx((one + other) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "expected"), [("unit", 0.5), ((0.0, 5.0), 0.1), ((-1, 1), 0.75), ("logit", 0.6225)]
)
def test_scales(scale, expected: float) -> None:
    assert to_unit(np.array([0.5]), scale)[0] == pytest.approx(expected, abs=1e-4)


def test_an_undeclared_scale_is_refused(cross_encoder: Path) -> None:
    with pytest.raises(TwinlineError, match=r"not declared.*'logit'"):
        Teacher(cross_encoder)
    with pytest.raises(TwinlineError, match="scale must be"):
        Teacher(cross_encoder, scale="percent")
    with pytest.raises(TwinlineError, match="scale must be"):
        Teacher(cross_encoder, scale=(5.0, 0.0))


def test_a_saved_teacher_knows_its_scales(cross_encoder: Path, tiny_bert, tmp_path) -> None:
    Encoder(tiny_bert).save(tmp_path / "twin")
    teacher = Teacher(cross_encoder, tmp_path / "twin", scale=["logit", None])
    teacher.save(tmp_path / "teacher")
    again = Teacher(tmp_path / "teacher")
    assert again.predict(PAIRS) == pytest.approx(teacher.predict(PAIRS), abs=1e-7)


def test_the_cache_scores_each_pair_once(cross_encoder: Path, tmp_path, monkeypatch) -> None:
    teacher = Teacher(cross_encoder, scale="logit", cache=tmp_path / "scores.sqlite")
    first = teacher.predict(PAIRS)
    again = Teacher(cross_encoder, scale="logit", cache=tmp_path / "scores.sqlite")
    monkeypatch.setattr(again, "fresh", lambda pairs: pytest.fail(f"scored again: {pairs}"))
    assert (again.predict(PAIRS) == first).all()
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(again, "fresh", lambda pairs: seen.extend(pairs) or np.zeros(len(pairs)))
    again.predict([*PAIRS, ("a man", "a changed text")])
    assert seen == [("a man", "a changed text")]


def test_a_changed_teacher_misses_the_cache(cross_encoder: Path, tmp_path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(cross_encoder, changed)
    from safetensors.torch import load_file, save_file

    tensors = load_file(changed / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    cache = tmp_path / "scores.sqlite"
    one = Teacher(cross_encoder, scale="logit", cache=cache).predict(PAIRS)
    other = Teacher(changed, scale="logit", cache=cache).predict(PAIRS)
    assert (other > one).all()


def test_a_twin_that_changed_misses_the_cache(tiny_bert: Path, tmp_path) -> None:
    twin = Encoder(tiny_bert)
    teacher = Teacher(twin, cache=tmp_path / "scores.sqlite")
    before = teacher.predict(PAIRS)
    with torch.no_grad():
        twin.model.layers[0].qkv.weight.mul_(3)
    assert abs(teacher.predict(PAIRS) - before).max() > 1e-4
    short = Encoder(tiny_bert, max_tokens=3, on_overflow="truncate")
    assert Teacher(short).fingerprint != Teacher(Encoder(tiny_bert)).fingerprint


def test_one_scale_is_for_those_that_declare_none(cross_encoder: Path, tiny_bert: Path) -> None:
    twin = Encoder(tiny_bert)
    one = Teacher(cross_encoder, twin, scale="logit").predict(PAIRS)
    assert one == pytest.approx(Teacher(cross_encoder, twin, scale=["logit", None]).predict(PAIRS))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"members": [1]}', '{"members": [{}]}'])
def test_a_broken_card_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(TwinlineError, match=r"teacher\.json"):
        Teacher(tmp_path)


def test_what_is_no_text_or_no_number_is_named(cross_encoder: Path, monkeypatch) -> None:
    teacher = Teacher(cross_encoder, scale="logit")
    with pytest.raises(TwinlineError, match="Pair number 2"):
        teacher.predict([("a", "b"), (None, "b")])
    with pytest.raises(TwinlineError, match="top_k"):
        teacher.rank("a", ["b"], top_k=-1)
    monkeypatch.setattr(teacher, "fresh", lambda pairs: np.array([0.5, np.nan]))
    with pytest.raises(TwinlineError, match="score of pair 2 is not a number"):
        teacher.predict(PAIRS[:2])


def test_a_long_pair_is_never_cut_unsaid(cross_encoder: Path) -> None:
    pairs = [("a man", "dogs run"), ("rain", LONG)]
    with pytest.raises(TwinlineError, match=r"1 of 2 pairs .* 64 tokens .*number 2 with 60\d"):
        Teacher(cross_encoder, scale="logit").predict(pairs)
    with pytest.warns(UserWarning, match="they were cut"):
        Teacher(cross_encoder, scale="logit", on_overflow="warn").predict(pairs)


def test_windows_take_the_best_window(cross_encoder: Path) -> None:
    teacher = Teacher(cross_encoder, scale="logit", on_overflow="windows", both_orders=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = teacher.predict([("rain", LONG)])[0]
    words = LONG.split()
    size = 64 - 3 - 1  # three special tokens and "rain"
    windows = [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
    best = to_unit(logits(cross_encoder, [("rain", w) for w in windows]), "logit").max()
    assert made == pytest.approx(best, abs=1e-6)
    short = [("a man", "dogs run")]
    assert teacher.predict(short) == pytest.approx(
        to_unit(logits(cross_encoder, short), "logit"), abs=1e-6
    )


def test_rank(cross_encoder: Path) -> None:
    teacher = Teacher(cross_encoder, scale="logit")
    documents = ["green grass", "a man plays", "rain"]
    ranked = teacher.rank("a man", documents, top_k=2, return_documents=True)
    scores = teacher.predict([("a man", document) for document in documents])
    assert [r.corpus_id for r in ranked] == np.argsort(-scores)[:2].tolist()
    assert ranked[0].text == documents[ranked[0].corpus_id]
    assert teacher.rank("a man", []) == []


def test_no_scorer_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(TwinlineError, match="at least one"):
        Teacher()
    with pytest.raises(TwinlineError, match="no model folder"):
        Teacher(tmp_path / "nothing", scale="logit")
