"""Encoder: texts to vectors (``reading``), and vectors to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import TwinlineError
from .fingerprints import encoder_print
from .reading import Reader
from .similarity import Ranked, ranking
from .stored import Stored


class Encoder(Reader):
    """A twin encoder: a model, its tokenizer and its score head.

    Args:
        model: a folder that ``save`` wrote, a ``TwinlineModel`` (one in half precision is widened
            to float32), or any convertible encoder by path or name (then with its own softmax
            attention).
        tokenizer: only for a ``TwinlineModel`` whose ``name_or_path`` holds none.
        similarity: "cosine", "dot", or a learned head: "dse" reads two vectors, "stca" and "late"
            what ``store`` keeps of a long text too, its blocks or its sentences; by default what
            the folder holds.
        device: where to run; by default a GPU if there is one.
        max_tokens: longest text to read, special tokens counted; None reads texts of any length.
        on_overflow: what happens to a longer one: "error", "warn" (cut, with a warning) or
            "truncate" (cut; the token counts tell).
        dtype: "float32"; "bfloat16"; "auto", whichever of the two this machine multiplies faster;
            or "int8", the fastest on a processor with VNNI, at a small loss (docs/speed.md).
            Anything but float32 works on a copy of the weights, for encoding alone.
        calibration: texts on which int8 finds the ranges of its numbers; by default texts of
            random tokens.
        windows: read a text of more tokens in windows of so many, special ones counted, and
            average their vectors: what is done with encoders that stop somewhere. None: whole.
    Raises: TwinlineError if the model cannot be found, read or converted, or holds a NaN.
    """

    @property
    def fingerprint(self) -> str:
        """A hash of all that moves this encoder's scores, as it is now: see ``fingerprints``."""
        return encoder_print(self)

    @torch.inference_mode()
    def similarity(self, a: Any, b: Any) -> Tensor:
        """Scores of every vector of ``a`` with every one of ``b``: (len(a), len(b)).

        A head that reads states takes what ``store`` returns.
        """
        if self.reads_states:
            one, other = self.stored(a), self.stored(b)
            found = [self.head(one[i : i + 1].repeated(len(other)), other) for i in range(len(one))]
            return torch.stack(found)
        u, v = self.vectors(a), self.vectors(b)
        if self.similarity_name == "cosine":
            return F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
        rows = [self.head(row.expand_as(v), v) for row in u]
        return torch.stack(rows) if rows else torch.empty(0, len(v))

    @torch.inference_mode()
    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Scores of the i-th vector of ``a`` with the i-th of ``b``: (len(a),)."""
        known = self.stored if self.reads_states else self.vectors
        scores: Tensor = self.head(known(a), known(b))
        return scores

    def stored(self, given: Any) -> Stored:
        """What ``store`` returned, in fp32.

        Raises: TwinlineError if it is anything else.
        """
        if not isinstance(given, Stored):
            raise TwinlineError(
                f"The similarity {self.similarity_name!r} reads stored states, not vectors alone: "
                "give what store returns, or texts to score and rank."
            )
        return given.widened()

    def vectors(self, given: Any) -> Tensor:
        """Vectors as a (count, dimension) tensor on the encoder's device."""
        if isinstance(given, list) and given and isinstance(given[0], Tensor):
            given = torch.stack(given)
        vectors = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        return vectors[None] if vectors.ndim == 1 else vectors

    def score(self, texts1: Sequence[str], texts2: Sequence[str], **options: Any) -> Any:
        """Scores of pairs of texts (pairs,), each distinct text encoded once."""
        if len(texts1) != len(texts2):
            raise TwinlineError(f"{len(texts1)} first texts and {len(texts2)} second: no pairs.")
        both: Any
        if self.reads_states:
            both = self.store([*texts1, *texts2], **options)
        else:
            both = self.encode([*texts1, *texts2], convert_to_tensor=True, **options)
        scores = self.similarity_pairwise(both[: len(texts1)], both[len(texts1) :])
        return scores.float().cpu().numpy()

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[Ranked]:
        """``documents`` by their score with ``query``, best first; ties in the order given.

        ``options`` are ``encode``'s for both; a prompt among them is for the documents.
        """
        if not documents:
            return []
        shared = {k: v for k, v in options.items() if k not in ("prompt", "prompt_name")}
        vectors = self.known(documents, "document", options)
        asked = self.known([query], "query", shared)
        scores = self.similarity(asked, vectors)[0].float().cpu().numpy()
        return ranking(scores, documents, top_k, return_documents)

    def known(self, texts: Sequence[str], role: str, options: dict[str, Any]) -> Any:
        """Queries or documents as ``similarity`` takes them: vectors, or with stored states."""
        given = self.default_prompt(role, options)
        if self.reads_states:
            return self.store(texts, **given)
        return self.encode(texts, convert_to_tensor=True, **given)
