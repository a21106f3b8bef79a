"""A model folder's tokenizer: loaded in one place, and checked against the model it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import TwinlineError
from .ownership import VOCABULARIES
from .sources import read_config, read_json

SPARE = 0.02
"""Share of a model's vocabulary that its tokenizer may leave unused: tables are rounded up."""
SPARE_TOKENS = 128
"""Unused tokens that a small vocabulary may have."""


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model folder, with no length limit and no truncation of its own in it.

    Where the folder's sentence-transformers files say ``do_lower_case``, it lowers the case.

    Raises: TwinlineError if there is none, it cannot be read, or it does not fit the model.
    """
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    folder = Path(folder)
    # Without a vocabulary transformers makes an empty tokenizer.
    if not any((folder / name).is_file() for name in ("tokenizer.json", *VOCABULARIES)):
        raise TwinlineError(
            f"{folder} has no tokenizer: put the files of the model's own there (tokenizer.json)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises kinds of its own for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(": .")
        raise TwinlineError(f"{folder} has no tokenizer that can be read: {reason}.") from error
    # Many checkpoints ship a stored truncation (all-MiniLM-L6-v2's is 128 tokens) that other
    # programs would apply without a word.
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    if _lowers_case(folder):
        if backend is None:
            raise TwinlineError(
                f"{folder} asks for lower case (do_lower_case), which this tokenizer of Python's "
                "cannot do: save it as a fast tokenizer (tokenizer.json)."
            )
        _lower_case(backend)
    check_tokenizer(tokenizer, read_config(folder), f"The tokenizer in {folder}")
    return tokenizer


def check_tokenizer(tokenizer: Any, config: Mapping[str, Any], name: str = "The tokenizer") -> None:
    """Refuse a tokenizer that is not the model's.

    Args:
        config: the model's ``vocab_size`` and ``pad_token_id``, as its ``config.json`` has them.
        name: what the tokenizer is called in messages.
    Raises: TwinlineError naming the numbers that differ.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise TwinlineError(
            f"tokenizer must be a tokenizer of transformers, not {type(tokenizer).__name__}: use "
            "transformers.AutoTokenizer.from_pretrained."
        )
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    remedy = "use the model's own"
    special = set(tokenizer.all_special_tokens)
    if not vocabulary.keys() - special:
        raise TwinlineError(f"{name} knows no word: {remedy}.")
    known, size = max(vocabulary.values()) + 1, config.get("vocab_size")
    if isinstance(size, int) and not size - max(SPARE_TOKENS, SPARE * size) <= known <= size:
        raise TwinlineError(f"{name} has {known:,} tokens and the model {size:,}: {remedy}.")
    if unknown := sorted(special - vocabulary.keys()):
        raise TwinlineError(f"{name} does not know its special token {unknown[0]}: {remedy}.")
    theirs, ours = tokenizer.pad_token_id, config.get("pad_token_id")
    if theirs is not None and ours is not None and theirs != ours:
        raise TwinlineError(f"{name} pads with token {theirs}, the model with {ours}: {remedy}.")


def _lowers_case(folder: Path) -> bool:
    file = folder / "sentence_bert_config.json"
    declared = read_json(file) if file.is_file() else {}
    return isinstance(declared, dict) and bool(declared.get("do_lower_case"))


def lowers_case(tokenizer: Any) -> bool:
    """Whether a tokenizer lowers the case in a step of its own, before its normalisation.

    Such a step is lost where transformers builds the normaliser anew from its class: the files of a
    saved model ask for it (``do_lower_case``).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and any(s.get("type") == "Lowercase" for s in _steps(backend))


def _lower_case(backend: Any) -> None:
    """Put lower-casing before a tokenizer's own normalisation, as sentence-transformers does."""
    from tokenizers import normalizers

    before = backend.normalizer
    if any(step.get("type") == "Lowercase" or step.get("lowercase") for step in _steps(backend)):
        return
    lower = normalizers.Lowercase()
    backend.normalizer = normalizers.Sequence([lower] if before is None else [lower, before])


def _steps(backend: Any) -> list[dict[str, Any]]:
    if backend.normalizer is None:
        return []
    state = json.loads(backend.normalizer.__getstate__())
    steps: list[dict[str, Any]] = state.get("normalizers", [state])
    return steps
