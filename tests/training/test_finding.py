"""A pooling by the sentence that learns alone, from sentences read once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline.conversion import convert
from twinline.data import Pairs
from twinline.data.carriers import Carrier
from twinline.data.long import Builder
from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.options import FindOptions, LengthOptions
from twinline.sources import find_model
from twinline.statistics import pearson
from twinline.tokenization import load_tokenizer
from twinline.training.finding import (
    Library,
    Reader,
    learn_to_find,
    pooling_of,
    read_once,
    soften,
    vector_of,
)
from twinline.training.lengths import Lengths

OPTIONS = FindOptions(
    pairs=40, least=24, greatest=48, prose=2000, texts=16, inside=60, learning_rate=3e-3
)
LENGTHS = Lengths(LengthOptions(least=24, greatest=(200,), mean=0.6, edge=0.4), 60)


MINILM = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def builders() -> tuple[Builder, ...]:
    tokenizer = load_tokenizer(find_model(MINILM))
    sentences = [f"a man plays number {i} in green grass" for i in range(40)]  # no full stop
    pairs = Pairs(sentences, sentences[::-1], np.linspace(0, 1, 40), (0, 1), "made", "train")
    prose = {
        str(d): " ".join(f"Dogs run {d} fast on day {i}." for i in range(120)) for d in range(4)
    }
    carrier = Carrier(prose, tokenizer, "dogs")
    return tuple(Builder(pairs, name, tokenizer, carrier) for name in ("context", "keyed"))


def student(pooling: str = "sentence", **given: Any) -> Encoder:
    torch.manual_seed(0)
    given |= {"block_size": 16, "sentences": True, "pooling": pooling}
    return Encoder(convert(MINILM, attention="hybrid", **given))


def read(encoder: Encoder, builders: tuple[Builder, ...], folder: Path | None = None) -> Library:
    return read_once(encoder, builders, 200, options=OPTIONS, folder=folder)


def test_it_learns_alone_what_counts(builders: tuple[Builder, ...], tmp_path: Path) -> None:
    encoder = student()
    encoder.model.embeddings.position.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in encoder.model.named_parameters()}
    library = read(encoder, builders)
    run = learn_to_find(encoder, library, LENGTHS, options=OPTIONS)
    changed = {name for name, p in encoder.model.named_parameters() if not p.equal(before[name])}
    assert {name.split(".")[1] for name in changed} == {"target", "layers", "within"}
    assert all(name.startswith("pool.") for name in changed)
    held = [name for name, p in encoder.model.named_parameters() if not p.requires_grad]
    assert held == ["embeddings.position.weight"]  # as before
    assert np.mean([line.loss for line in run.log[-5:]]) < run.log[0].loss / 2
    encoder.save(tmp_path / "saved")
    texts = [builders[0].pair(1, 160).text1, "a man plays. Dogs run."]
    assert (Encoder(tmp_path / "saved").encode(texts) == encoder.encode(texts)).all()
    # In real texts of a length that none of those that were read had.
    pair = builders[0].pair(3, 160, epoch=1)
    ids = encoder.tokenize([pair.text1, pair.text2])[0]
    with torch.no_grad():
        weights = encoder.read(ids).weights[-1].mean(dim=1)
    for row, (start, end) in enumerate(pair.spans):
        assert weights[row, start:end].sum() > 0.5 > 2 * (end - start) / 160


@torch.no_grad()
@pytest.mark.parametrize("words", [False, True])
def test_what_is_kept_of_a_text_makes_its_vector(words: bool) -> None:
    given: dict[str, Any] = {"longest_sentence": 8, "words_only": True} if words else {}
    encoder = student(anchors=True, **given)
    pool = pooling_of(encoder)
    for parameter in pool.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)  # as if it had learned
    texts = ["Dogs run fast. " + "green grass " * 20 + "(a man). He plays.", "One sentence.", ""]
    ids = encoder.tokenize(texts)[0]
    kept = {i: one for i, _, one, _ in Reader(encoder, "fp32", False).kept(ids)}
    vectors = torch.cat([vector_of(pool, kept[i]) for i in range(len(texts))])
    alike = torch.cosine_similarity(vectors, encoder.embed(ids))
    assert alike.min() > 0.9999
    special = 2 * words
    assert [kept[i].tokens for i in range(2)] == [len(row) - special for row in ids[:2]]
    assert len(kept[0].sizes) == (8 if words else 3)
    assert kept[2].tokens == 2  # there is nothing else to read


def test_what_counts_within_is_learned_of_words_alone(builders: tuple[Builder, ...]) -> None:
    encoder = student(longest_sentence=16, words_only=True)
    library = read(encoder, builders)
    assert pooling_of(encoder).within.out.isfinite().all()
    assert pooling_of(encoder).within.out.any()
    assert all(kept.sizes.min() > 0 for kept, *_ in library.texts)
    own = builders[0].pair(1, 48)
    with torch.no_grad():
        weights = encoder.read(encoder.tokenize([own.text1])[0]).weights[-1]
    assert weights[..., [0, -1]].abs().max() == 0
    assert weights.sum(dim=-1).sub(1).abs().max() < 1e-5


def test_texts_are_made_longer_by_prose_of_their_own_document(
    builders: tuple[Builder, ...],
) -> None:
    encoder = student()
    library = read(encoder, builders)
    assert len({document for *_, document in library.texts}) > 1
    draw = np.random.default_rng(0)
    for length in (30, 90, 200):
        for _ in range(20):
            made, (place, end) = library.text(length, draw)
            assert end == place + 1
            # What counts is one of the sentences that were read in a short text.
            assert any(
                bool((made.looked[place] == kept.looked[own]).all())
                for kept, (own, _), _ in library.texts
            )
            assert length - 20 < made.tokens <= max(length, 48)


def test_a_sentence_over_and_over_counts_but_for_the_copy_that_is_cut(
    builders: tuple[Builder, ...],
) -> None:
    pairs = builders[0].pairs
    stopped = replace(
        pairs, sentence1=[f"{text}." for text in pairs.sentence1],
        sentence2=[f"{text}." for text in pairs.sentence2],
    )  # fmt: skip
    repeat = Builder(stopped, "repeat", builders[0].tokenizer, None)
    encoder = student()
    library = read(encoder, (replaced(builders[0], stopped), repeat))
    again = [one for one in library.texts if one[2] is None]
    assert len(again) == OPTIONS.pairs  # half of the pairs, two texts each
    only = replace(library, texts=again)
    draw = np.random.default_rng(0)
    for length in (30, 90, 200):
        made, (first, end) = only.text(length, draw)
        assert first == 0
        assert end in (len(made.sizes) - 1, len(made.sizes))  # no copy is cut that comes out even
        assert length - 48 < made.tokens <= max(length, 48)
        assert len(made.read.float().unique(dim=0)) <= 4  # copies of those that were read
    learn_to_find(encoder, library, LENGTHS, options=OPTIONS)
    pair = repeat.pair(3, 160)
    with torch.no_grad():
        weights = encoder.read(encoder.tokenize([pair.text1])[0]).weights[-1].mean(dim=1)
    start, stop = pair.spans[0]
    assert stop < 156
    cut = weights[0, stop:].sum() / (len(weights[0]) - stop)
    assert cut < weights[0, start:stop].mean() / 2  # of each token


def replaced(builder: Builder, pairs: Pairs) -> Builder:
    return Builder(pairs, builder.construction, builder.tokenizer, builder.carrier)


def test_a_stopped_one_goes_on(builders: tuple[Builder, ...], tmp_path: Path) -> None:
    lengths = replace(LENGTHS, steps=112)  # a checkpoint is written at 100
    calls = 0

    def evaluate(stop: int) -> float:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return 0.0

    def weights(folder: Path, stop: int = 0) -> torch.Tensor:
        encoder = student()
        library = read(encoder, builders, folder)
        learn_to_find(
            encoder, library, lengths, options=OPTIONS, folder=folder,
            evaluate=lambda: evaluate(stop), evaluate_every=106,
        )  # fmt: skip
        return torch.cat([p.detach().flatten() for p in encoder.model.pool.parameters()])

    whole = weights(tmp_path / "whole")
    calls = 0
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "stopped", stop=2)  # in step 106
    assert weights(tmp_path / "stopped").equal(whole)


def test_only_a_pooling_that_is_told_sentences_learns_so(builders: tuple[Builder, ...]) -> None:
    with pytest.raises(TwinlineError, match="pooling latent cannot learn alone"):
        read(student("latent"), builders)
    pairs = builders[0].pairs
    long = replace(pairs, sentence1=[4 * text for text in pairs.sentence1])
    given = (Builder(long, "context", builders[0].tokenizer, builders[0].carrier),)
    with pytest.raises(TwinlineError, match=r"raise find\.greatest"):
        read_once(
            student(), given, 200, options=FindOptions(least=16, greatest=16)
        )  # fmt: skip


def test_it_cannot_do_without_sentences() -> None:
    with pytest.raises(TwinlineError, match="set sentences to true"):
        convert(MINILM, attention="hybrid", pooling="sentence")


@pytest.mark.parametrize("windows", [None, 64])
def test_softening_takes_the_factor_that_reads_pairs_best(
    builders: tuple[Builder, ...], windows: int | None
) -> None:
    encoder = student()
    learn_to_find(encoder, read(encoder, builders), LENGTHS, options=OPTIONS)
    encoder = Encoder(encoder.model, encoder.tokenizer, windows=windows)
    made = [builders[0].pair(row, 120, epoch=2) for row in range(12)]
    gold = np.random.default_rng(3).random(12)
    pairs = Pairs([p.text1 for p in made], [p.text2 for p in made], gold, (0, 1), "long", "made")
    sharpness = pooling_of(encoder).layers[-1].sharpness
    own = sharpness.detach().clone()
    factors, found = (1.0, 0.5, 0.1, 0.01), {}
    for factor in factors:  # by reading every text anew
        sharpness.data.copy_(own * factor)
        found[factor] = pearson(encoder.score(pairs.sentence1, pairs.sentence2), gold)
    assert len({round(value, 3) for value in found.values()}) > 1
    sharpness.data.copy_(own)
    best = soften(encoder, pairs, factors)
    assert best == max(found, key=lambda factor: found[factor])
    torch.testing.assert_close(sharpness.detach(), own * best)
