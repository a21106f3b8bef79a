"""The built-in pairs: the same everywhere, separate splits, not solved by shared words."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from twinline.data import Pairs, builtin_pairs
from twinline.errors import TwinlineError
from twinline.statistics import pearson

SIZES = {"train": 400, "validation": 150, "test": 150}
ALL = {split: builtin_pairs(split) for split in SIZES}


def overlap(pairs: Pairs) -> list[float]:
    sides = zip(pairs.sentence1, pairs.sentence2, strict=True)
    words = ([set(re.findall(r"\w+", text.lower())) for text in side] for side in sides)
    return [len(a & b) / len(a | b) for a, b in words]


def test_it_is_the_same_on_every_machine() -> None:
    lines = [
        f"{a}\t{b}\t{score:g}"
        for pairs in ALL.values()
        for a, b, score in zip(pairs.sentence1, pairs.sentence2, pairs.score, strict=True)
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "6dd29c739d69899f1e70fb8724b64e9207081e83f77ef4cfb1eb7347730e674d"


@pytest.mark.parametrize("split", SIZES)
def test_size_scale_and_grades(split: str) -> None:
    pairs = ALL[split]
    assert (len(pairs), pairs.scale, pairs.name, pairs.split) == (
        SIZES[split],
        (0, 5),
        "builtin",
        split,
    )
    grades = Counter(pairs.score.tolist())
    assert set(grades) == {0, 1, 2, 3, 4, 5}
    assert min(grades.values()) >= len(pairs) / 12


def test_no_sentence_occurs_twice() -> None:
    sentences = [s for pairs in ALL.values() for s in pairs.sentence1 + pairs.sentence2]
    assert len(set(sentences)) == 2 * sum(SIZES.values())


def test_sentences_are_short_and_long_and_well_formed() -> None:
    sentences = [s for pairs in ALL.values() for s in pairs.sentence1 + pairs.sentence2]
    lengths = [len(s.split()) for s in sentences]
    assert min(lengths) == 5
    assert 25 <= max(lengths) <= 30
    assert np.std(lengths) > 3
    for sentence in sentences:
        assert re.fullmatch(r"[A-Z0-9][^|:;_]*[^ ,]\.", sentence), sentence
        assert "  " not in sentence
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", sentence), sentence


@pytest.mark.parametrize("split", SIZES)
def test_shared_words_do_not_give_the_grade_away(split: str) -> None:
    found = pearson(overlap(ALL[split]), ALL[split].score)
    assert 0.1 < found < 0.6


def test_unknown_split() -> None:
    with pytest.raises(TwinlineError, match="no split 'dev': give one of train, validation, test"):
        builtin_pairs("dev")
