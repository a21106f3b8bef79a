"""Encoder: texts to vectors, and vectors to scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batching import budget_batches, distinct, load_tokenizer, pad, token_ids
from .conversion import convert, load_model
from .errors import TwinlineError
from .layout import load_head, load_prompts, save_folder
from .model import TwinlineConfig, TwinlineModel, one_of
from .progress import Progress
from .similarity import SIMILARITIES
from .sources import find_model, read_config

MAX_BATCH_TOKENS = 16384
OVERFLOW = ("error", "warn", "truncate")
NOT_OURS = {
    "output_value": 'call encoder.model for token states; encode gives "sentence_embedding"',
    "pool": "run one process a device, each with its part of the texts",
    "chunk_size": "batches are made from max_batch_tokens",
    "show_progress": "write show_progress_bar",
    "max_seq_length": "give max_tokens and on_overflow to Encoder",
    "task": "write prompt_name",
}
Vectors = np.ndarray[Any, Any] | Tensor | list[Tensor]


@dataclass(frozen=True)
class Ranked:
    """One candidate of a ranking."""

    corpus_id: int
    """Its place in the list that was given."""
    score: float
    text: str | None = None


class Encoder:
    """A twin encoder: a model, its tokenizer and its score head.

    Args:
        model: a folder that ``save`` wrote, a ``TwinlineModel``, or any convertible encoder by path
            or name (then with its own softmax attention).
        tokenizer: only for a ``TwinlineModel`` whose ``name_or_path`` holds none.
        similarity: "cosine", "dot" or "dse" (a learned head); by default what the folder holds.
        device: where to run; by default a GPU if there is one.
        max_tokens: longest text to read, special tokens counted; None reads texts of any length.
        on_overflow: what happens to a longer one: "error", "warn" (cut, with a warning) or
            "truncate" (cut; the token counts tell).
    Raises: TwinlineError if the model cannot be found, read or converted.
    """

    def __init__(
        self,
        model: str | Path | TwinlineModel,
        tokenizer: Any = None,
        *,
        similarity: str | None = None,
        device: str | torch.device | None = None,
        max_tokens: int | None = None,
        on_overflow: str = "error",
    ) -> None:
        check_overflow(on_overflow)
        if max_tokens is not None and max_tokens < 3:
            raise TwinlineError(f"max_tokens must be at least 3 or None, not {max_tokens}.")
        folder: Path | None = None
        if isinstance(model, TwinlineModel):
            self.model = model
            if tokenizer is None:
                if not model.name_or_path:
                    raise TwinlineError("This model came from no folder: give its tokenizer too.")
                folder = find_model(model.name_or_path or "")
        else:
            folder = find_model(model)
            if read_config(folder).get("model_type") == TwinlineConfig.model_type:
                self.model = load_model(folder)
            else:
                self.model = convert(folder, attention="softmax")
        self.tokenizer = tokenizer or load_tokenizer(folder or "")
        width = self.model.config.projection_dim
        self.prompts: dict[str, str] = load_prompts(folder) if folder else {}
        if similarity is not None:
            one_of("similarity", similarity, SIMILARITIES)
        name, head = "cosine", None
        if folder and not isinstance(model, TwinlineModel):
            name, head = load_head(folder, width)
        if head is None or similarity not in (None, name):  # another than the folder's is new
            name = similarity or name
            head = SIMILARITIES[name](width)
        self.similarity_name, self.head = name, head
        self.max_tokens, self.on_overflow = max_tokens, on_overflow
        self.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return int(self.model.config.projection_dim)

    def get_embedding_dimension(self) -> int:
        """Width of a vector, under sentence-transformers' name."""
        return self.dimension

    def to(self, device: str | torch.device) -> Encoder:
        nn.Module.to(self.model, device)
        self.head.to(device)
        return self

    def eval(self) -> Encoder:
        self.model.train(False)
        self.head.eval()
        return self

    def save(self, path: str | Path) -> None:
        """Write a folder that ``Encoder``, ``AutoModel`` and ``SentenceTransformer`` read.

        Raises: TwinlineError if it cannot be written; nothing half-written is left.
        """
        save_folder(path, self.model, self.tokenizer, self.similarity_name, self.head, self.prompts)

    def tokenize(
        self, texts: Sequence[str], on_overflow: str | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids that will be read, and every text's full token count.

        Raises: TwinlineError for something that is no text, or one above ``max_tokens`` when
            ``on_overflow`` is "error".
        """
        on_overflow = on_overflow or self.on_overflow
        check_overflow(on_overflow)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TwinlineError(
                    f"Text number {place + 1} is of type {type(text).__name__}: give strings."
                )
        ids = token_ids(self.tokenizer, texts)
        counts = [len(row) for row in ids]
        limit = self.max_tokens
        if limit is None or max(counts, default=0) <= limit:
            return ids, counts
        longer = [place for place, count in enumerate(counts) if count > limit]
        told = (
            f"{len(longer)} of {len(counts)} texts are longer than max_tokens={limit} "
            f"(first: number {longer[0] + 1} with {counts[longer[0]]} tokens)"
        )
        if on_overflow == "error":
            raise TwinlineError(
                f"{told}: raise max_tokens, or choose on_overflow='truncate' to cut them."
            )
        if on_overflow == "warn":
            warnings.warn(f"{told}; they were cut.", stacklevel=3)
        special = set(self.tokenizer.all_special_ids)
        for place in longer:
            row = ids[place]
            last = [row[-1]] if row[-1] in special else []
            ids[place] = row[: limit - len(last)] + last
        return ids, counts

    def embed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """One padded batch of token ids to vectors (batch, dimension); gradients flow."""
        padded, mask = pad(ids, self.model.config.pad_token_id)
        output = self.model(padded.to(self.device), mask.to(self.device))
        vectors: Tensor = output.pooler_output
        return F.normalize(vectors, dim=-1) if self.model.config.normalize else vectors

    def encode(
        self,
        inputs: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: str = "float32",
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        on_overflow: str | None = None,
        return_token_counts: bool = False,
        **others: Any,
    ) -> Any:
        """Vectors of texts, as sentence-transformers' ``encode`` gives them.

        Equal texts are encoded once; batches are sorted by token count and filled up to
        ``max_batch_tokens`` padded tokens (and at most ``batch_size`` texts, if given). The empty
        text has a vector too.

        Args:
            inputs: a text or a list of texts; ``sentences=`` is accepted as its name.
            prompt_name, prompt: put before every text, by name or as it is.
            device: moves the encoder there.
            precision: "float32", "int8", "uint8", "binary" or "ubinary".
            on_overflow: overrides the encoder's.
            return_token_counts: also return every text's full token count (what ``max_tokens``
                cut counted).
        Returns: (dimension,) for one text, (texts, dimension) for a list: a numpy array, a tensor,
            or with ``convert_to_numpy=False`` a list of tensors; with token counts a pair.
        Raises: TwinlineError for an unknown keyword, prompt or precision, for an input that is not
            text, or for a text that does not fit under ``on_overflow="error"``.
        """
        if inputs is None and "sentences" in others:
            inputs = others.pop("sentences")
        for name in others:
            hint = f": {NOT_OURS[name]}" if name in NOT_OURS else ""
            raise TwinlineError(f"encode has no option {name!r}{hint}.")
        if inputs is None:
            raise TwinlineError("encode needs texts: give a string or a list of strings.")
        if not isinstance(inputs, Iterable):
            raise TwinlineError(
                f"encode reads a string or a list of strings, not {type(inputs).__name__}."
            )
        single = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if truncate_dim is not None and not 1 <= truncate_dim <= self.dimension:
            raise TwinlineError(
                f"truncate_dim must lie between 1 and {self.dimension}, not {truncate_dim}."
            )
        if device is not None:
            self.to(device)
        before = self.prompt(prompt_name, prompt)
        if before:
            texts = [before + text if isinstance(text, str) else text for text in texts]
        ids, counts = self.tokenize(texts, on_overflow)
        vectors = self.encode_ids(ids, max_batch_tokens, batch_size, show_progress_bar)
        if truncate_dim is not None:
            vectors = vectors[:, :truncate_dim]
        if normalize_embeddings:
            vectors = F.normalize(vectors, dim=-1)
        result: Any = vectors
        if precision != "float32":
            from sentence_transformers.util import quantize_embeddings

            try:
                result = quantize_embeddings(vectors.cpu().numpy(), precision)  # type: ignore[arg-type]
            except ValueError as error:
                raise TwinlineError(f"precision={precision!r} is not known: {error}") from error
        elif convert_to_tensor:
            result = vectors
        elif convert_to_numpy:
            result = vectors.cpu().numpy()
        else:
            result = list(vectors)
        if single:
            return (result[0], counts[0]) if return_token_counts else result[0]
        return (result, np.array(counts, dtype=np.int64)) if return_token_counts else result

    @torch.inference_mode()
    def encode_ids(
        self,
        ids: Sequence[Sequence[int]],
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        batch_size: int | None = None,
        show_progress_bar: bool | None = False,
    ) -> Tensor:
        """Vectors (texts, dimension) of token ids, in their order."""
        where, which = distinct([tuple(row) for row in ids])
        kept = [ids[place] for place in where]
        made = torch.empty(len(kept), self.dimension, device=self.device)
        batches = budget_batches([len(row) for row in kept], max_batch_tokens, batch_size)
        with Progress("encoding", total=len(kept), show=show_progress_bar) as progress:
            for batch in batches:
                made[torch.tensor(batch, device=self.device)] = self.embed([kept[i] for i in batch])
                progress.advance(len(batch))
        return made[torch.tensor(which, dtype=torch.long, device=self.device)]

    def prompt(self, name: str | None, prompt: str | None) -> str:
        """The text to put before each input.

        Raises: TwinlineError for a name that is not among ``prompts``.
        """
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise TwinlineError(f"There is no prompt named {name!r}; this model has: {known}.")
        return self.prompts[name]

    def encode_query(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """``encode`` with the prompt "query", where the model has one."""
        return self.encode(inputs, **self.default_prompt("query", options))

    def encode_document(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """``encode`` with the prompt "document", where the model has one."""
        return self.encode(inputs, **self.default_prompt("document", options))

    def default_prompt(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        given = "prompt" in options or "prompt_name" in options
        return options if given or name not in self.prompts else {**options, "prompt_name": name}

    @torch.inference_mode()
    def similarity(self, a: Any, b: Any) -> Tensor:
        """Scores of every vector of ``a`` with every one of ``b``: (len(a), len(b))."""
        u, v = self.vectors(a), self.vectors(b)
        if self.similarity_name == "cosine":
            return F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
        rows = [self.head(row.expand_as(v), v) for row in u]
        return torch.stack(rows) if rows else torch.empty(0, len(v))

    @torch.inference_mode()
    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Scores of the i-th vector of ``a`` with the i-th of ``b``: (len(a),)."""
        scores: Tensor = self.head(self.vectors(a), self.vectors(b))
        return scores

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
        vectors = self.encode_document(documents, convert_to_tensor=True, **options)
        shared = {k: v for k, v in options.items() if k not in ("prompt", "prompt_name")}
        asked = self.encode_query(query, convert_to_tensor=True, **shared)
        scores = self.similarity(asked, vectors)[0].float().cpu().numpy()
        return ranking(scores, documents, top_k, return_documents)


def ranking(
    scores: np.ndarray[Any, Any], documents: Sequence[str], top_k: int | None, with_text: bool
) -> list[Ranked]:
    """``documents`` by their ``scores`` (documents,), best first; ties in the order given."""
    if top_k is not None and top_k < 1:
        raise TwinlineError(f"top_k must be at least 1 or None, not {top_k}.")
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return [Ranked(i, float(scores[i]), documents[i] if with_text else None) for i in order]


def check_overflow(value: str) -> None:
    if value not in OVERFLOW:
        raise TwinlineError(f"on_overflow must be one of {', '.join(OVERFLOW)}, not {value!r}.")
