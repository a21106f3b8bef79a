"""Models of the field cases: a saved linear student and a saved cross-encoder, both tiny."""

from pathlib import Path
from typing import Any

import pytest
import torch

from twinline import Encoder, convert


@pytest.fixture(scope="session")
def cross_encoder(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_tokenizer: Any
) -> Path:
    """A random cross-encoder as a folder: its logits lie far outside 0 to 1."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig.from_pretrained(tiny_bert, num_labels=1, initializer_range=1.0)
    folder = tmp_path_factory.mktemp("cross-encoder") / "ce"
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tiny_bert: Path) -> Encoder:
    """A linear encoder."""
    return Encoder(convert(tiny_bert, attention="linear"))


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A linear student, as a folder."""
    folder = tmp_path_factory.mktemp("student") / "student"
    torch.manual_seed(2)
    Encoder(convert(tiny_bert, "linear")).save(folder)
    return folder
