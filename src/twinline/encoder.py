"""Encoder: texts to vectors (``reading``), and vectors to scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .arguments import flag, whole_number
from .batching import distinct
from .errors import TwinlineError
from .fingerprints import encoder_print
from .reading import Reader
from .similarity import Ranked, ranking
from .stored import Stored
from .text import TextList, one_text, text_list

SCORING = (
    "prompt_name", "prompt", "batch_size", "show_progress_bar", "device", "normalize_embeddings",
    "truncate_dim", "max_batch_tokens", "on_overflow",
)  # fmt: skip
"""Options of ``encode`` that mean the same where vectors become scores. The others change what it
returns: scores of packed or rounded vectors would be no scores of the texts."""


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

        Raises: TwinlineError if they are no vectors of one width, or hold NaN or infinity.
        """
        self.warn_of_random_head()
        if self.reads_states:
            one, other = self.stored(a), self.stored(b)
            found = [self.head(one[i : i + 1].repeated(len(other)), other) for i in range(len(one))]
            return torch.stack(found)
        u, v = self.sides(a, b)
        if self.similarity_name == "cosine":
            scores = F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
        else:
            rows = [self.head(row.expand_as(v), v) for row in u]
            scores = torch.stack(rows) if rows else torch.empty(0, len(v))
        return finite(scores, u, v)

    @torch.inference_mode()
    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Scores of the i-th vector of ``a`` with the i-th of ``b``: (len(a),).

        Raises: TwinlineError as ``similarity``, or if there are not as many of both.
        """
        self.warn_of_random_head()
        one, other = (self.stored(a), self.stored(b)) if self.reads_states else self.sides(a, b)
        if len(one) != len(other):
            raise TwinlineError(f"{len(one)} first vectors and {len(other)} second: no pairs.")
        scores: Tensor = self.head(one, other)
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return finite(scores, one, other)
        return scores

    def warn_of_random_head(self) -> None:
        """Say once that scores mean nothing before the head is trained."""
        if self.head_is_random:
            warnings.warn(
                f"The {self.similarity_name!r} head of this encoder is new and its weights are "
                "random: train it (distill) before its scores mean anything.",
                stacklevel=4,
            )
            self.head_is_random = False

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

    def sides(self, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        """Both sides of a comparison as ``vectors``, of one width.

        Raises: TwinlineError if the score head cannot compare them.
        """
        u, v = self.vectors(a), self.vectors(b)
        if u.shape[1] != v.shape[1]:
            raise TwinlineError(
                f"Vectors of {u.shape[1]} and of {v.shape[1]} numbers cannot be compared: encode "
                "both sides alike."
            )
        if self.similarity_name not in ("cosine", "dot") and u.shape[1] != self.dimension:
            raise TwinlineError(
                f"The similarity {self.similarity_name!r} reads vectors of {self.dimension} "
                f"numbers, not {u.shape[1]}: encode without truncate_dim."
            )
        return u, v

    def vectors(self, given: Any) -> Tensor:
        """Vectors as a (count, dimension) tensor on the encoder's device.

        Raises: TwinlineError if they are none, or rounded to 8 bits.
        """
        if isinstance(given, Stored):
            raise TwinlineError(
                f"The similarity {self.similarity_name!r} reads vectors alone: give what encode "
                "returns."
            )
        try:
            if isinstance(given, (list, tuple)) and all(isinstance(v, np.ndarray) for v in given):
                given = np.stack(given) if given else []
            if isinstance(given, np.ndarray) and min(given.strides, default=0) < 0:
                given = given.copy()  # torch takes no reversed rows
            if isinstance(given, (list, tuple)) and any(isinstance(one, Tensor) for one in given):
                given = torch.stack([torch.as_tensor(one, device=self.device) for one in given])
            plain = torch.as_tensor(given, device=self.device)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0].rstrip(".")
            raise TwinlineError(
                f"Similarity needs vectors of one width, as encode gives them ({reason})."
            ) from error
        if plain.dtype in (torch.int8, torch.uint8, torch.bool) or plain.is_complex():
            name = str(plain.dtype).removeprefix("torch.")
            raise TwinlineError(
                f"These vectors are of type {name}, as encode's precision makes them to be stored, "
                "and have no such similarity: give float vectors."
            )
        if plain.ndim not in (1, 2) or (plain.ndim == 2 and not plain.shape[1]):
            raise TwinlineError(
                f"Similarity needs one vector or (count, dimension), not {tuple(plain.shape)}."
            )
        vectors = plain.to(torch.float32)
        if vectors.ndim == 1:
            return vectors[None] if len(vectors) else vectors.new_empty(0, self.dimension)
        return vectors

    def score(self, texts1: Iterable[str], texts2: Iterable[str], **options: Any) -> Any:
        """Scores of pairs of texts (pairs,), each distinct text encoded and pair scored once.

        Args:
            options: those of ``SCORING``, as ``encode`` takes them.
        Raises: TwinlineError for another option, or what are no texts.
        """
        check_scoring("score", options)
        one, other = text_list(texts1, "texts1"), text_list(texts2, "texts2")
        if len(one) != len(other):
            raise TwinlineError(f"{len(one)} first texts and {len(other)} second: no pairs.")
        if not one:
            return np.zeros(0, dtype=np.float32)
        # Scores of equal pairs would differ by rounding: a product's depends on its place.
        where, which = distinct(list(zip(one, other, strict=True)))

        def label(place: int) -> str:
            side, place = divmod(place, len(where))
            return (one, other)[side].label(where[place])

        texts = TextList((side[place] for side in (one, other) for place in where), label)
        both = self.known(texts, None, options)
        scores = self.similarity_pairwise(both[: len(where)], both[len(where) :])
        return scores.float().cpu().numpy()[which]

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[Ranked]:
        """``documents`` by their score with ``query``, best first; ties in the order given.

        Args:
            options: those of ``SCORING``, as ``encode`` takes them, for both; a prompt among them
                is for the documents.
        Raises: TwinlineError for another option, or what are no texts.
        """
        top_k = whole_number("top_k", top_k, 1, optional=True)
        flag("return_documents", return_documents)
        asked = TextList([one_text("query", query)], lambda _: "the query")
        texts = text_list(documents, "documents")
        check_scoring("rank", options)
        shared = {k: v for k, v in options.items() if k not in ("prompt", "prompt_name")}
        scores = self.scores(asked, texts, shared, options)[0]
        return ranking(scores, texts, top_k, return_documents)

    def scores(
        self,
        queries: TextList,
        documents: TextList,
        query_options: dict[str, Any],
        document_options: dict[str, Any],
    ) -> NDArray[np.float32]:
        """Scores (queries, documents), those of equal texts equal."""
        if not queries or not documents:
            return np.zeros((len(queries), len(documents)), dtype=np.float32)
        (rows, row), (columns, column) = distinct(queries), distinct(documents)
        known = self.known(documents.at(columns), "document", document_options)
        asked = self.known(queries.at(rows), "query", query_options)
        made: NDArray[np.float32] = self.similarity(asked, known).float().cpu().numpy()
        return made[row][:, column]

    def known(self, texts: Iterable[str], role: str | None, options: dict[str, Any]) -> Any:
        """Texts as ``similarity`` takes them: vectors, or with stored states.

        Args:
            role: "query" or "document", whose prompt they have unless the options name one.
        """
        given = self.default_prompt(role, options) if role else options
        if self.reads_states:
            return self.store(texts, **given)
        return self.encode(texts, convert_to_tensor=True, **given)


def check_scoring(verb: str, options: dict[str, Any]) -> None:
    """Refuse options of ``encode`` that mean something else where scores are wanted."""
    for name in options:
        if name not in SCORING:
            raise TwinlineError(
                f"{verb} has no option {name!r}: of encode's it takes {', '.join(SCORING)}."
            )


def finite(scores: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``scores`` of ``u`` with ``v``, if those are numbers.

    The scores are looked at first: there are fewer of them than numbers in the vectors.

    Raises: TwinlineError if a vector holds NaN or infinity.
    """
    if not bool(torch.isfinite(scores).all()):
        for side, vectors in (("first", u), ("second", v)):
            if (bad := (~torch.isfinite(vectors)).any(dim=1).nonzero()).numel():
                raise TwinlineError(
                    f"Vector number {int(bad[0, 0]) + 1} of the {side} ones holds NaN or infinity: "
                    "encode its text anew."
                )
    return scores
