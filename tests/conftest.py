"""Fixtures shared by all tests."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from vocabulary import WORDS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """One word, one token, in BERT's shape: [CLS] words [SEP], [PAD] is 0."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture(scope="session")
def stsb_data() -> Path:
    """The folder of data sets named by TWINLINE_DATA; tests that need it are skipped without."""
    folder = os.environ.get("TWINLINE_DATA")
    if not folder:
        pytest.skip("TWINLINE_DATA is not set: no real STS-B here")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A random BERT of two small layers with 64 positions, as a folder that convert reads."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny-bert")
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pairs of the tiny tokenizer's words; the score is the share of words in common."""
    import csv
    import random

    draw = random.Random(0)
    file = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["sentence1", "sentence2", "score"])
        for _ in range(64):
            first = draw.sample(WORDS, draw.randint(3, 8))
            second = draw.sample(first, draw.randint(1, 3)) + draw.sample(WORDS, draw.randint(1, 4))
            score = len({*first} & {*second}) / len({*first} | {*second})
            rows.writerow([" ".join(first), " ".join(second), f"{score:.3f}"])
    return file
