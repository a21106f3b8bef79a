"""What a machine's memory can hold of a text: refused with a sentence before it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .batching import token_ids
from .errors import TwinlineError
from .machine import free_memory
from .model import TwinlineModel
from .text import TextList, capital

LONG_TEXT, SAMPLED = 2_000_000, 20_000
"""Characters above which a text's tokens are estimated, from so many, before they are made."""
TOKENIZING = 700
"""Bytes that the tokenizer takes for a token, as measured."""


def check_memory(
    model: TwinlineModel,
    counts: Sequence[int],
    label: Callable[[int], str],
    tokenizing: int = 0,
) -> None:
    """Refuse a text of ``counts`` tokens that would not fit.

    Args:
        label: the texts' names in messages, by place.
        tokenizing: bytes beside the model's, where the counts are estimates.
    Raises: TwinlineError naming the longest text, the estimate and the remedies.
    """
    free = free_memory()
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    longest = max(range(len(counts)), key=counts.__getitem__, default=0)
    tokens = counts[longest] if counts else 0
    needed = model.memory_for(tokens) + tokenizing
    if free is not None and needed > free:
        raise TwinlineError(
            f"{capital(label(longest))} has {'about ' * bool(tokenizing)}{tokens:,} "
            f"tokens; encoding it takes about {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: split it, shorten it, or try dtype='bfloat16'."
        )


def check_characters(model: TwinlineModel, tokenizer: Any, texts: TextList) -> None:
    """``check_memory`` of the longest text before it is tokenised, by a sample of it."""
    place = max(range(len(texts)), key=lambda i: len(texts[i]), default=0)
    text = texts[place] if texts else ""
    if len(text) > LONG_TEXT:
        part = len(token_ids(tokenizer, [text[:SAMPLED]])[0])
        tokens = part * len(text) // SAMPLED
        check_memory(model, [tokens], lambda _: texts.label(place), TOKENIZING * tokens)
