"""Where sentences begin in a text of token ids, by punctuation alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention.blocks import since_start

WORD, END, CLOSING, ABBREVIATION, NUMBER, SPECIAL = range(6)
"""What a token may be: one that ends a sentence, belongs behind its end, keeps a full stop or what
follows it from being one, or is no word."""

ENDS = frozenset(".!?\N{HORIZONTAL ELLIPSIS}\N{IDEOGRAPHIC FULL STOP}")
CLOSINGS = frozenset("\"')]}\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}")
ABBREVIATIONS = {
    "mr", "mrs", "ms", "dr", "st", "jr", "sr", "prof", "gen", "col", "sgt", "capt", "lt", "gov",
    "sen", "rep", "rev", "hon", "vs", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep",
    "sept", "oct", "nov", "dec", "inc", "corp", "ltd", "co", "etc",
}  # fmt: skip
MARKERS = ("##", "▁", "Ġ", "</w>")
"""By which tokenizers tell whether a token begins a word."""


def sentence_roles(tokenizer: Any) -> Tensor:
    """What each token of the vocabulary may be for ``sentence_starts``: (vocabulary,), uint8."""
    tokens = map(str, tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    # A vocabulary of bytes spells what is not ASCII by other characters.
    texts = (t if t.isascii() else tokenizer.convert_tokens_to_string([t]) for t in tokens)
    roles = torch.tensor([role(text) for text in texts], dtype=torch.uint8)
    special = [i for i in tokenizer.all_special_ids if i not in (tokenizer.unk_token_id, None)]
    roles[special] = SPECIAL
    return roles


def role(token: str) -> int:
    for marker in MARKERS:
        token = token.removeprefix(marker).removesuffix(marker)
    token = token.strip()
    word = token.lower()
    if token and set(token) <= CLOSINGS:
        return CLOSING
    if token and set(token) <= ENDS | CLOSINGS:  # some vocabularies have both in a token
        return END
    if word in ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"):
        return ABBREVIATION
    return NUMBER if word.isdigit() else WORD


def sentence_starts(ids: Tensor, real: Tensor, roles: Tensor, longest: int = 0) -> Tensor:
    """True where a sentence begins, (batch, length).

    A sentence ends behind ``. ! ?`` and the quotes and brackets that follow; not behind the full
    stop of an initial or a common abbreviation, nor in a number. What has no such end (a heading)
    goes on into the next one. The last special token belongs to the last sentence.

    Args:
        ids: (batch, length).
        real: (batch, length), True where a token is real.
        roles: of the vocabulary, as ``sentence_roles`` makes them.
        longest: tokens behind which another one begins if none has, those that end or close one not
            counted, so that none of these begins it; 0: none does.
    """
    of = torch.where(real, roles[ids].long(), SPECIAL)
    of = torch.where(of == SPECIAL, CLOSING, of)
    before = torch.roll(of, 1, dims=1)
    after = torch.roll(of, -1, dims=1)
    before[:, :1], after[:, -1:] = WORD, WORD
    between = (before == NUMBER) & (after == NUMBER)
    ends = (of == END) & (before != ABBREVIATION) & ~between
    # A closing token ends a sentence if what it closes has ended: the last token that is none.
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    last = torch.where(of == CLOSING, 0, place).cummax(dim=1).values
    ended = torch.gather(ends, 1, last)
    goes_on = (of == CLOSING) | (of == END)
    starts: Tensor = torch.roll(ended, 1, dims=1) & ~goes_on & real
    starts[:, :1] = False
    starts |= real & (real.long().cumsum(dim=1) == 1)
    if longest:
        counted = real & ~goes_on
        number = counted.long().cumsum(dim=1) - counted.long()
        within = number - torch.where(starts, number, 0).cummax(dim=1).values
        starts |= counted & (within > 0) & (within % longest == 0)
    return starts


def words(ids: Tensor, real: Tensor, roles: Tensor) -> Tensor:
    """True where a token is real and not special, (batch, length); arguments as those of
    ``sentence_starts``. Of a text that has no other its special ones."""
    made = real & (roles[ids] != SPECIAL)
    return torch.where(made.any(dim=1, keepdim=True), made, real)


def places_in_sentences(starts: Tensor, real: Tensor) -> Tensor:
    """Each token's place in its sentence, (batch, length), from 1: before it, as before a text of
    one sentence, stands the first token; in the first sentence that is its own, at 0."""
    within, first = since_start(starts, real)
    return within + (first > 0).long()
