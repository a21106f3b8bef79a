"""Fixtures shared by all tests."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

WORDS = [
    "a",
    "man",
    "woman",
    "plays",
    "the",
    "guitar",
    "piano",
    "on",
    "green",
    "grass",
    "dogs",
    "run",
    "fast",
    "in",
    "rain",
    "and",
    "sun",
]


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
