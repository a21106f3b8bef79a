"""Where sentences begin, and models that keep them apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import twinline
from twinline.conversion import convert
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.evaluate import far_off
from twinline.sentences import (
    CLOSING,
    END,
    WORD,
    places_in_sentences,
    role,
    sentence_roles,
    sentence_starts,
    words,
)
from twinline.sources import find_model
from twinline.tokenization import load_tokenizer

MINILM = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(find_model(MINILM))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He left. She stayed.", ["he left .", "she stayed ."]),
        ("Who? Me! Yes... No.", ["who ?", "me !", "yes . . .", "no ."]),
        ('"Is it so?" he said. (Not at all.) So',
         ['" is it so ? "', "he said .", "( not at all . )", "so"]),
        ("Mr. Brown met the U.S. troops. They won 3.5 to 1.",
         ["mr . brown met the u . s . troops .", "they won 3 . 5 to 1 ."]),
        ("I saw you and I. Then it's a dog's life.", ["i saw you and i .",
                                                     "then it ' s a dog ' s life ."]),
        ("Blasts kill ten", ["blasts kill ten"]),
        ("", [""]),
    ],
)  # fmt: skip
def test_where_sentences_begin(text: str, sentences: list[str], tokenizer: Any) -> None:
    ids = torch.tensor([[*tokenizer(text)["input_ids"], 0, 0]])
    real = torch.ones_like(ids, dtype=torch.bool)
    real[:, -2:] = False
    starts = sentence_starts(ids, real, sentence_roles(tokenizer))[0].nonzero().flatten().tolist()
    ends = [*starts[1:], ids.shape[1] - 2]
    tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    found = [" ".join(tokens[a:b]) for a, b in zip(starts, ends, strict=True)]
    found[0] = found[0].removeprefix("[CLS]").strip()
    found[-1] = found[-1].removesuffix("[SEP]").strip()
    assert found == sentences


def test_padding_has_no_part_in_where_sentences_begin(tokenizer: Any) -> None:
    ids = torch.tensor([tokenizer("He left. She stayed.")["input_ids"]])
    roles, none = sentence_roles(tokenizer), torch.zeros(1, 3, dtype=torch.long)
    known = sentence_starts(ids, ids > 0, roles)
    assert known.sum() == 2
    for before, behind in ((none, none[:, :0]), (none[:, :0], none), (none, none)):
        padded = torch.cat([before, ids, behind], dim=1)
        starts = sentence_starts(padded, padded > 0, roles)
        assert starts.sum() == 2
        assert (starts[padded > 0] == known[0]).all()


def test_what_has_no_end_is_cut(tokenizer: Any) -> None:
    """Every so many tokens from where a sentence begins, what ends or closes one not counted."""
    roles = sentence_roles(tokenizer)

    def begins(text: str, longest: int) -> list[int]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        starts = sentence_starts(ids, torch.ones_like(ids).bool(), roles, longest)
        return starts[0].nonzero().flatten().tolist()  # type: ignore[no-any-return]

    assert begins("rain " * 20, 0) == [0]
    assert begins("rain " * 20, 8) == [0, 9, 17]  # [CLS] is no word
    assert begins("He left. " + "rain " * 20, 8) == [0, 4, 12, 20]
    assert begins("rain " * 16, 8) == [0, 9]  # nor is [SEP]
    assert begins("rain " * 16 + ".", 8) == [0, 9]
    assert begins("dogs run ( rain ) " * 16, 8) == [0, *range(11, 80, 10)]  # copies stay whole


def test_words_are_what_is_not_special(tokenizer: Any) -> None:
    ids = tokenizer(["It rains.", ""], padding=True, return_tensors="pt")
    real = ids["attention_mask"].bool()
    made = words(ids["input_ids"], real, sentence_roles(tokenizer))
    assert made.tolist() == [[False, True, True, True, False], [True, True, False, False, False]]


@torch.no_grad()
@pytest.mark.parametrize(
    "sentence", ["Three men are playing chess in the shade.", "Three men play chess in the shade"]
)
def test_a_sentence_over_and_over_is_read_as_by_itself(sentence: str) -> None:
    """Without the far branch; where copies have no end, nearer to it than without a cut."""
    options = {"sentences": True, "anchors": True, "pooling": "sentence", "block_size": 64}
    off = {}
    for name, others in (("before", {}), ("now", {"longest_sentence": 64, "words_only": True})):
        made = Encoder(convert(MINILM, attention="hybrid", **options, **others))
        with far_off(made.model):
            alone, many = made.encode([sentence, " ".join([sentence] * 200)])
        off[name] = 1 - float(alone @ many)
    assert off["now"] < (1e-6 if sentence.endswith(".") else 0.9 * off["before"])
    assert off["before"] > 1e-3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"longest_sentence": 64}, "longest_sentence=64 cuts sentences that are kept apart"),
        ({"longest_sentence": -1, "sentences": True}, "longest_sentence must be at least 0"),
        ({"words_only": True}, "words_only is for pooling by the sentence"),
        ({"words_only": True, "sentences": True}, "words_only is for pooling by the sentence"),
    ],
)
def test_what_has_no_sentences_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(TwinlineError, match=told):
        convert(MINILM, attention="hybrid", **options)


def test_a_vocabulary_of_bytes_ends_sentences_too() -> None:
    """Its tokens join an end with a quote, and spell what is not ASCII by bytes."""
    text = '“No.” So it goes… He said, "I left." She stayed. '
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.train_from_iterator(
        [text] * 9, trainers.BpeTrainer(vocab_size=400, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise)
    ids = torch.tensor([tokenizer(text.strip())["input_ids"]])
    starts = sentence_starts(ids, torch.ones_like(ids).bool(), sentence_roles(tokenizer))
    begins = starts[0].nonzero().flatten().tolist()
    parts = [ids[0, a:b].tolist() for a, b in zip(begins, [*begins[1:], ids.shape[1]], strict=True)]
    assert [tokenizer.decode(part).strip() for part in parts] == [
        "“No.”", "So it goes…", 'He said, "I left."', "She stayed.",
    ]  # fmt: skip


def test_tokens_of_any_tokenizer() -> None:
    assert role('."') == role("?”") == role(").") == END
    assert role("Ġ.") == role("▁!") == role("##?") == END
    assert role('Ġ"') == CLOSING
    assert role("Ġdog") == role("i") == WORD


@pytest.mark.parametrize("attention", ["linear", "hybrid"])
def test_a_model_keeps_its_punctuation_when_saved(attention: str, tmp_path: Path) -> None:
    model = convert(MINILM, attention=attention, sentences=True, block_size=32)
    text = "A man plays. " * 40 + "Who is it?"
    made = Encoder(model).encode([text])
    Encoder(model).save(tmp_path / "kept")
    assert (twinline.Encoder(tmp_path / "kept").encode([text]) == made).all()
    again = convert(tmp_path / "kept", attention=attention, block_size=32)  # keeps its options
    assert again.roles is not None
    assert again.roles.any()


def test_one_sentence_is_read_as_the_original_reads_it() -> None:
    made = Encoder(convert(MINILM, attention="hybrid", sentences=True, block_size=32))
    original = Encoder(convert(MINILM, attention="softmax"))
    text = ["Three men are playing chess in the shade."]
    assert abs(made.encode(text) - original.encode(text)).max() < 1e-5


@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize("attention", ["linear", "hybrid"])
def test_a_long_text_piece_by_piece_is_the_whole(attention: str, anchors: bool) -> None:
    model = convert(MINILM, attention=attention, sentences=True, block_size=32, anchors=anchors)
    ids = torch.tensor(
        Encoder(model).tokenize(["He left us. Then, in the rain, it began. " * 300])[0]
    )
    with torch.no_grad():
        pieces = model(ids).pooler_output
    whole = model(ids).pooler_output  # with gradients a text is read at once
    assert ids.shape[1] > 3000
    assert float((pieces - whole).detach().norm() / whole.detach().norm()) < 1e-5


@torch.no_grad()
def test_anchored_sentences_are_read_nearly_as_by_themselves() -> None:
    """Of a text of many sentences, without the far branch: what a token's state is, against the
    sentence alone."""
    sentence, off = "Three men are playing chess in the shade.", []
    original = Encoder(convert(MINILM, attention="softmax"))
    alone = original.read(original.tokenize([sentence])[0]).states[0, 1:-1]
    for anchors in (False, True):
        model = convert(MINILM, attention="hybrid", sentences=True, anchors=anchors, block_size=32)
        text = f"{'He left us, in the rain. ' * 9}{sentence}{' She stayed, at home.' * 9}"
        made = Encoder(model)
        with far_off(model):
            ids = made.tokenize([text])[0]
            states = made.read(ids).states[0]
        start = 1 + 9 * 8
        tokens = states[start : start + len(alone)]
        off.append(float((tokens - alone).square().sum() / alone.square().sum()))
    assert off[1] < 0.2 < 0.5 < off[0]


@pytest.mark.parametrize("attention", ["linear", "hybrid"])
def test_a_short_text_beside_a_long_one_is_read_as_alone(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the long one is read by pieces, of which the short one has none behind its own."""
    model = convert(MINILM, attention, sentences=True, anchors=True, block_size=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # as if it had learned
    tokenizer = load_tokenizer(find_model(MINILM))
    texts = ["He left. " * 30, "She stayed. He did not, and so on.", "One sentence."]
    monkeypatch.setattr("twinline.model.PIECE", 32)
    both = model(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    with torch.no_grad():
        for kept in (8, 1000):
            monkeypatch.setattr("twinline.model.KEPT", kept)
            made = model(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            assert abs(made - both).max() < 1e-4
        for row, text in enumerate(texts):
            alone = model(**tokenizer([text], return_tensors="pt")).pooler_output
            assert abs(made[row] - alone[0]).max() < 1e-4


def test_places_start_over_with_each_sentence() -> None:
    starts = torch.tensor([[1, 0, 0, 1, 0, 0, 1]]).bool()
    real = torch.ones_like(starts)
    assert places_in_sentences(starts, real).tolist() == [[0, 1, 2, 1, 2, 3, 1]]


@pytest.mark.parametrize("attention", ["softmax", "lightning"])
def test_kinds_that_know_no_sentences_ignore_the_options(attention: str) -> None:
    text = ["He left. She stayed at home. Who is it?"]
    plain = Encoder(convert(MINILM, attention=attention)).encode(text)
    model = convert(MINILM, attention=attention, sentences=True, anchors=True)
    assert (Encoder(model).encode(text) == plain).all()


def test_to_find_a_sentence_the_encoder_is_not_bent() -> None:
    """What its sentence adds to a token's weight is told by a middle layer, without a gradient."""
    encoder = Encoder(convert(MINILM, "hybrid", sentences=True, pooling="sentence"))
    of = encoder.model.pool.layers[-1].of_sentences
    with torch.no_grad():
        of.likeness.fill_(1.0)
    ids = torch.tensor(encoder.tokenize(["It rained. It rained all day. A man plays a guitar."])[0])
    weights = encoder.model(ids, output_attentions=True).attentions[-1]
    assert weights[0, 0].unique().numel() > 2  # no longer the mean
    weights[..., :4].sum().backward()
    assert of.likeness.grad.abs().max() > 0
    bent = [p.grad for layer in encoder.model.layers for p in layer.parameters()]
    assert all(grad is None or not grad.any() for grad in bent)


def test_a_pooling_reads_a_sentence_whole_that_layers_cut_between_two_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = convert(MINILM, attention="hybrid", sentences=True, pooling="sentence", block_size=32)
    encoder = Encoder(model)
    text = "A man plays the guitar. " * 9  # six tokens each, behind [CLS]
    monkeypatch.setattr("twinline.model.PIECE", 16)
    heard: list[int] = []
    model.pool.register_forward_pre_hook(lambda _, given: heard.append(given[2].means.shape[1]))
    encoder.encode([text])
    assert heard == [9]
