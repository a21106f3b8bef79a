"""What a tokenizer can read."""

from __future__ import annotations

import re

_UNFIT = re.compile("[\0\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Replace what tokenizers cannot take, NUL and lone surrogates, by U+FFFD each."""
    if not _UNFIT.search(text):
        return text
    # UTF-16 joins what is a pair of surrogates and replaces only the lone ones.
    units = text.replace("\0", "\ufffd").encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace")
