"""Field cases 4, 13 to 15, 20 and 23: a model folder is whole, and is what is meant."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from twinline import Encoder, Teacher, TwinlineError, convert, teach, transfer
from twinline.cli import main
from twinline.data import load_pairs
from twinline.options import TeachOptions, TransferOptions

TEXTS = ["a man plays the guitar", "dogs run in the rain"]
PAIRS = [("a man plays", "a woman plays"), ("dogs run fast", "green grass")]
SEVERAL = ("tokenizer.json", "vocab.txt", "vocab.json", "special_tokens_map.json")


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which may be new; None removes one."""
    content = {**(json.loads(file.read_text()) if file.exists() else {}), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a folder's weights, as another tool would write them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def uses(folder: Path, tmp_path: Path, pairs: Path) -> dict[str, Callable[[], object]]:
    """All that loads a model's tokenizer."""
    texts = tmp_path / "texts.txt"
    texts.write_text("a man\nrain\n")
    few = load_pairs(pairs, scale=(0, 1)).select(range(4))
    return {
        "Encoder": lambda: Encoder(folder).score(TEXTS[:1], TEXTS[1:]),
        "convert": lambda: Encoder(convert(folder)),
        "transfer": lambda: transfer(convert(folder), TEXTS, TransferOptions(steps=1)),
        "teach": lambda: teach(folder, few, tmp_path / "ce", options=TeachOptions(epochs=0.1)),
        "inspect": lambda: main(["inspect", str(texts), "--model", str(folder)]),
        "long-pairs": lambda: main([
            "long-pairs", str(tmp_path / "p.parquet"), "--data", "builtin", "--carrier", "builtin",
            "--model", str(folder), "--length", "64", "--limit", "1", "--skip-longer",
        ]),
    }  # fmt: skip


def refused(work: Callable[[], object], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``work`` ends with one sentence that has the words, from Python or the command line."""
    import re

    with pytest.raises((TwinlineError, SystemExit)) as stopped:
        work()
    said = str(stopped.value)
    if isinstance(stopped.value, SystemExit):
        assert stopped.value.code == 2
        said = capsys.readouterr().err
    assert re.search(words, said), said


USES = ("Encoder", "convert", "transfer", "teach", "inspect", "long-pairs")


# 4: a tokenizer that does not fit the model


@pytest.mark.parametrize("use", USES)
def test_field_04_a_folder_without_its_tokenizer_is_refused(
    tiny_bert: Path, tiny_pairs: Path, tmp_path: Path, use: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = copy(tiny_bert, tmp_path / "m")
    for name in SEVERAL:
        (folder / name).unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    refused(uses(folder, tmp_path, tiny_pairs)[use], "no tokenizer", capsys)


def test_field_04_a_cross_encoder_without_its_tokenizer_is_refused(
    cross_encoder: Path, tmp_path: Path
) -> None:
    folder = copy(cross_encoder, tmp_path / "ce")
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    with pytest.raises(TwinlineError, match="no tokenizer"):
        Teacher(folder, scale="logit")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 400}, "22 tokens and the model 400"),
        ({"pad_token_id": 3}, "pads with token 0"),
    ],
)
def test_field_04_a_tokenizer_of_another_model_is_refused(
    student: Path, tmp_path: Path, changes: dict[str, int], words: str
) -> None:
    folder = copy(student, tmp_path / "m")
    if "vocab_size" in changes:
        rewrite(folder, lambda t: t.update({
            name: torch.cat([t[name], torch.zeros(378, t[name].shape[1])])
            for name in ("embeddings.word.weight",)
        }))  # fmt: skip
    edit(folder / "config.json", **changes)
    with pytest.raises(TwinlineError, match=words):
        Encoder(folder)


def test_field_04_a_tokenizer_given_by_hand_is_checked_too(
    student: Path, tiny_tokenizer: Any
) -> None:
    model = convert(student)
    vectors = Encoder(model, tiny_tokenizer).encode(TEXTS)
    assert (vectors == Encoder(student).encode(TEXTS)).all()
    larger = transformers.AutoTokenizer.from_pretrained(student)
    larger.add_tokens(["words", "nobody", "trained"])
    for tokenizer in (larger, "all-MiniLM-L6-v2", 7):
        with pytest.raises(TwinlineError, match="tokenizer"):
            Encoder(model, tokenizer)
        with pytest.raises(TwinlineError, match="tokenizer"):
            transfer(model, TEXTS, TransferOptions(steps=1), tokenizer=tokenizer)


# 13: half precision in the file


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["linear", "softmax", "hybrid"])
def test_field_13_half_weights_are_widened(
    tiny_bert: Path, tmp_path: Path, half: torch.dtype, attention: str
) -> None:
    Encoder(convert(tiny_bert, attention)).save(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t.update({name: x.to(half) for name, x in t.items()}))
    edit(tmp_path / "m" / "config.json", dtype=str(half).removeprefix("torch."))
    for made in (Encoder(tmp_path / "m"), Encoder(convert(tmp_path / "m", attention))):
        assert {p.dtype for p in made.model.parameters()} == {torch.float32}
        made.save(tmp_path / "again")
    import twinline.auto  # the model is then loaded by transformers, in the file's dtype

    assert twinline.auto
    model = transformers.AutoModel.from_pretrained(tmp_path / "m")
    encoder = Encoder(model)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert np.isfinite(encoder.encode(TEXTS)).all()
    run = transfer(
        transformers.AutoModel.from_pretrained(tmp_path / "m"), TEXTS, TransferOptions(steps=2),
        show_progress=False,
    )  # fmt: skip
    assert all(np.isfinite(record.loss) for record in run.log)


# 14: weights that are not the architecture's


@pytest.mark.parametrize(
    "lost", ["classifier.weight", "classifier.bias", "bert.pooler.dense.weight"]
)
def test_field_14_a_cross_encoder_without_its_classifier_is_refused(
    cross_encoder: Path, tmp_path: Path, lost: str
) -> None:
    folder = copy(cross_encoder, tmp_path / "ce")
    rewrite(folder, lambda t: t.pop(lost))
    with pytest.raises(TwinlineError, match=f"lacks 1 of the model's tensors .*{lost}"):
        Teacher(folder, scale="logit")


def test_field_14_an_encoder_is_no_cross_encoder(tiny_bert: Path) -> None:
    with pytest.raises(TwinlineError, match="is no cross-encoder"):
        Teacher(tiny_bert, scale="logit")


def test_field_14_a_base_of_teach_lacks_no_layer(
    tiny_bert: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    folder = copy(tiny_bert, tmp_path / "m")
    rewrite(folder, lambda t: t.pop("encoder.layer.1.output.dense.weight"))
    few = load_pairs(tiny_pairs, scale=(0, 1)).select(range(4))
    with pytest.raises(TwinlineError, match="lacks 1 of the model's tensors"):
        teach(folder, few, tmp_path / "ce", options=TeachOptions(epochs=0.1))


@pytest.mark.parametrize("kind", ["student", "base", "cross-encoder"])
def test_field_14_layers_that_the_configuration_leaves_out_are_told(
    tiny_bert: Path, student: Path, cross_encoder: Path, tmp_path: Path, kind: str
) -> None:
    source = {"student": student, "base": tiny_bert, "cross-encoder": cross_encoder}[kind]
    folder = copy(source, tmp_path / "m")
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(TwinlineError, match="has no place for"):
        Teacher(folder, scale="logit") if kind == "cross-encoder" else Encoder(folder)


@pytest.mark.parametrize("second", ["other.safetensors", "pytorch_model.bin"])
def test_field_14_of_several_weight_files_the_models_own_is_read(
    tiny_bert: Path, tmp_path: Path, second: str
) -> None:
    """Before, tensors of all files were mixed, whichever came last."""
    folder = copy(tiny_bert, tmp_path / "m")
    tensors = {name: x + 1 for name, x in load_file(folder / "model.safetensors").items()}
    if second.endswith(".bin"):
        torch.save(tensors, folder / second)
    else:
        save_file(tensors, folder / second)
    assert (Encoder(folder).encode(TEXTS) == Encoder(tiny_bert).encode(TEXTS)).all()
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    if second.endswith(".safetensors"):
        with pytest.raises(TwinlineError, match="no weights named model"):
            Encoder(folder)


def test_field_14_a_base_with_another_head_becomes_a_cross_encoder(
    tiny_tokenizer: Any, tiny_pairs: Path, tmp_path: Path
) -> None:
    """One trained on three classes, as natural language inference has."""
    base = family("Bert", tmp_path / "base", tiny_tokenizer, num_labels=3)
    few = load_pairs(tiny_pairs, scale=(0, 1)).select(range(4))
    teach(base, few, tmp_path / "ce", options=TeachOptions(epochs=0.1), show_progress=False)
    assert np.isfinite(Teacher(tmp_path / "ce").predict(PAIRS)).all()


def test_field_14_weights_of_another_save_are_refused(student: Path, tmp_path: Path) -> None:
    folder = copy(student, tmp_path / "m")
    other = Encoder(student)
    with torch.no_grad():
        other.model.embeddings.word.weight.mul_(2)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    for load in (Encoder, convert):
        with pytest.raises(TwinlineError, match="another save"):
            load(folder)


def test_field_14_what_is_read_is_of_one_save(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process saves between two files of ours."""
    from twinline import reading

    one, other = Encoder(tiny_bert), Encoder(tiny_bert, similarity="dse")
    with torch.no_grad():
        other.model.embeddings.word.weight.mul_(2)
    one.save(tmp_path / "m")
    load, calls = reading.load_model, []

    def late(folder: Path) -> Any:
        model = load(folder)
        calls.append(folder)
        if len(calls) == 1:
            other.save(folder)
        return model

    monkeypatch.setattr(reading, "load_model", late)
    found = Encoder(tmp_path / "m")
    assert len(calls) == 2
    assert found.similarity_name == "dse"
    assert (found.encode(TEXTS) == other.encode(TEXTS)).all()


def test_a_config_that_another_program_wrote_anew_loads(student: Path, tmp_path: Path) -> None:
    folder = copy(student, tmp_path / "m")
    edit(folder / "config.json", twinline=None)
    assert (Encoder(folder).encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


def test_weights_without_an_id_load(student: Path, tmp_path: Path) -> None:
    """Of older versions, and of other tools."""
    folder = copy(student, tmp_path / "m")
    rewrite(folder, lambda t: None)
    assert (Encoder(folder).encode(TEXTS) == Encoder(student).encode(TEXTS)).all()
    edit(folder / "config.json", twinline=None)
    assert (Encoder(folder).encode(TEXTS) == Encoder(student).encode(TEXTS)).all()
    import twinline.auto

    assert twinline.auto
    model = transformers.AutoModel.from_pretrained(student)
    model.save_pretrained(folder)
    assert (Encoder(folder).encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


# 15: settings of sentence-transformers' files


def stock(folder: Path, **prompts: Any) -> None:
    """The files by which sentence-transformers knows a model."""
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    edit(folder / "1_Pooling" / "config.json", **pooling)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]))  # fmt: skip
    edit(folder / "config_sentence_transformers.json", **prompts)


PROMPTS = {"query": "the sun ", "document": "rain "}


def test_field_15_a_default_prompt_is_put_before_every_text(
    tiny_bert: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = copy(tiny_bert, tmp_path / "m")
    stock(folder, prompts=PROMPTS, default_prompt_name="query")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    encoder = Encoder(folder)
    assert encoder.encode(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert encoder.encode(TEXTS, prompt="") == pytest.approx(
        Encoder(tiny_bert).encode(TEXTS), abs=1e-5
    )
    encoder.save(tmp_path / "again")
    assert Encoder(tmp_path / "again").encode(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert Encoder(convert(folder, "softmax")).encode(TEXTS) == pytest.approx(expected, abs=1e-5)
    edit(folder / "config_sentence_transformers.json", default_prompt_name="passage")
    with pytest.raises(TwinlineError, match="default prompt 'passage'"):
        Encoder(folder)


def test_field_15_an_empty_prompt_stands_before_the_default_one(
    tiny_bert: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = copy(tiny_bert, tmp_path / "m")
    prompts = {"query": "", "document": "", "sun": "the sun "}
    stock(folder, prompts=prompts, default_prompt_name="sun")
    expected = SentenceTransformer(str(folder), device="cpu")
    encoder = Encoder(folder)
    assert encoder.encode_query(TEXTS) == pytest.approx(expected.encode_query(TEXTS), abs=1e-5)
    assert encoder.encode(TEXTS) == pytest.approx(expected.encode(TEXTS), abs=1e-5)


def test_field_15_a_cross_encoder_with_a_default_prompt_is_refused(
    cross_encoder: Path, tmp_path: Path
) -> None:
    folder = copy(cross_encoder, tmp_path / "ce")
    edit(folder / "config_sentence_transformers.json", prompts=PROMPTS, default_prompt_name="query")
    with pytest.raises(TwinlineError, match="default prompt"):
        Teacher(folder, scale="logit")


def test_field_15_prompts_that_are_not_pooled_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copy(tiny_bert, tmp_path / "m")
    stock(folder, prompts=PROMPTS)
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    encoder = Encoder(folder)
    assert encoder.encode(TEXTS) == pytest.approx(Encoder(tiny_bert).encode(TEXTS), abs=1e-5)
    encoder.save(tmp_path / "again")
    Encoder(convert(folder, "linear", pooling="latent")).save(tmp_path / "latent")
    for one in (encoder, Encoder(tmp_path / "again"), Encoder(tmp_path / "latent")):
        with pytest.raises(TwinlineError, match="include_prompt is false"):
            one.encode_query(TEXTS)
        with pytest.raises(TwinlineError, match="include_prompt is false"):
            one.encode(TEXTS, prompt="the sun ")


def test_field_15_case_is_lowered_where_the_files_say_so(
    tiny_tokenizer: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = copy(tiny_bert, tmp_path / "m")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(state))
    capitals = [text.upper() for text in TEXTS]
    assert not np.allclose(Encoder(folder).encode(capitals), Encoder(folder).encode(TEXTS))
    stock(folder)
    edit(folder / "sentence_bert_config.json", do_lower_case=True, max_seq_length=64)
    encoder = Encoder(folder)
    encoder.save(tmp_path / "again")
    for one in (encoder, Encoder(tmp_path / "again"), Encoder(convert(folder, "softmax"))):
        assert (one.encode(capitals) == one.encode(TEXTS)).all()
        assert one.encode(TEXTS) == pytest.approx(Encoder(tiny_bert).encode(TEXTS), abs=1e-5)
    from transformers import BertTokenizer  # which builds its normaliser anew when it is loaded

    vocabulary = json.loads((tiny_bert / "tokenizer.json").read_text())["model"]["vocab"]
    BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(folder)
    cased = Encoder(folder)
    cased.save(tmp_path / "cased")
    assert (cased.encode(capitals) == cased.encode(TEXTS)).all()
    assert (Encoder(tmp_path / "cased").encode(capitals) == cased.encode(TEXTS)).all()


def test_field_15_a_transformer_in_a_folder_of_its_own_is_refused(
    tiny_bert: Path, tmp_path: Path
) -> None:
    folder = copy(tiny_bert, tmp_path / "m")
    stock(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(TwinlineError, match="keeps its transformer in 0_Transformer"):
        Encoder(folder)
    for broken in ([{"x": 1}], 5, {"a": 1}):
        (folder / "modules.json").write_text(json.dumps(broken))
        with pytest.raises(TwinlineError, match="lists no modules"):
            Encoder(folder)


def test_field_15_the_declared_similarity_is_used(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copy(tiny_bert, tmp_path / "m")
    stock(folder, similarity_fn_name="dot")
    plain = Encoder(tiny_bert, similarity="dot").score(TEXTS[:1], TEXTS[1:])
    for one in (Encoder(folder), Encoder(convert(folder, "softmax"))):
        assert one.score(TEXTS[:1], TEXTS[1:]) == pytest.approx(plain)
    edit(folder / "config_sentence_transformers.json", similarity_fn_name="euclidean")
    with pytest.raises(TwinlineError, match="'euclidean'"):
        Encoder(folder)
    assert Encoder(folder, similarity="dot").score(TEXTS[:1], TEXTS[1:]) == pytest.approx(plain)


# 20: positions of every family


SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 32, "num_labels": 1}  # fmt: skip
FAMILIES = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Camembert": {},
    "MPNet": {},
    "Electra": {"embedding_size": 16},
    "Data2VecText": {},
    "RobertaPreLayerNorm": {},
    "IBert": {},
    "DistilBert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
}
BEHIND_PAD = ("IBert", "Roberta", "XLMRoberta", "Camembert", "Data2VecText", "RobertaPreLayerNorm")
"""Their first position stands behind the padding token's; MPNet's always at 2."""


def family(name: str, folder: Path, tokenizer: Any, **options: int) -> Path:
    """A random cross-encoder of a family with 32 rows of positions, and the tiny tokenizer."""
    config_class = getattr(transformers, f"{name}Config")
    shape = {**SHAPE, **FAMILIES[name], "vocab_size": len(tokenizer), **options}
    config = config_class(**shape, pad_token_id=0)
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_field_14_a_broken_models_sentence_is_all_that_is_said(
    student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy(student, tmp_path / "m")
    rewrite(folder, lambda t: t.update({"embeddings.norm.weight": torch.ones(3)}))
    with pytest.raises(TwinlineError, match=r"in another shape|embeddings\.norm\.weight"):
        Encoder(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FAMILIES)
def test_field_20_the_longest_input_of_every_family_is_known(
    tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    folder = family(name, tmp_path / "ce", tiny_tokenizer)
    teacher = Teacher(folder, scale="logit")
    limit = teacher.scorers[0].limit  # type: ignore[attr-defined]
    assert limit == {"MPNet": 30}.get(name, 31 if name in BEHIND_PAD else 32)
    words = limit - 4  # three special tokens and "rain"
    assert np.isfinite(teacher.predict([("rain", "a " * words)])).all()
    too_long = [("rain", "a " * (words + 1))]
    with pytest.raises(TwinlineError, match=f"longer than the teacher's {limit} tokens"):
        teacher.predict(too_long)
    for overflow in ("windows", "truncate"):
        cut = Teacher(folder, scale="logit", on_overflow=overflow)
        assert np.isfinite(cut.predict(too_long)).all()


def test_field_20_teach_says_which_pair_is_too_long_for_mpnet(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from twinline.data.pairs import Pairs

    folder = family("MPNet", tmp_path / "base", tiny_tokenizer)
    long = Pairs(["rain", "a"], ["sun", "a " * 30], np.array([0.0, 1.0]), (0, 1), "mine", "all")
    with pytest.raises(TwinlineError, match="Pair 2 has more than the cross-encoder's 30 tokens"):
        teach(folder, long, tmp_path / "ce", options=TeachOptions(epochs=1.0))


# 23: a cross-encoder where an encoder is meant


@pytest.mark.parametrize("use", ["Encoder", "convert", "encode", "distill"])
def test_field_23_a_cross_encoder_makes_no_vectors(
    cross_encoder: Path, tmp_path: Path, use: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "v.npy"
    texts.write_text("a man\nrain\n")
    ways: dict[str, Callable[[], object]] = {
        "Encoder": lambda: Encoder(cross_encoder),
        "convert": lambda: convert(cross_encoder),
        "encode": lambda: main(["encode", str(cross_encoder), str(texts), str(out)]),
        "distill": lambda: main(["distill", str(tmp_path / "m"), "--base", str(cross_encoder),
                                 "--data", "builtin", "--train.alpha", "0"]),
    }  # fmt: skip
    refused(ways[use], "is a cross-encoder", capsys)
    assert not out.exists()
