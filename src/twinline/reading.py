"""Texts to vectors: what ``Encoder`` reads with. Its scores are in ``encoder``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Lent
from .batching import (
    CACHED_TOKENS,
    budget_batches,
    distinct,
    load_tokenizer,
    pad,
    token_ids,
    windows,
)
from .capacity import check_characters, check_memory
from .config import TwinlineConfig, one_of
from .conversion import convert, load_model
from .errors import TwinlineError
from .layout import load_head, load_prompts, save_folder
from .model import TwinlineModel
from .precision import VECTORS, check_dtype, check_one_range, fastest, quantised, to_int8
from .progress import Progress
from .similarity import SIMILARITIES
from .sources import find_model, read_config
from .stored import Stored, block_states, joined, sentence_states
from .windows import Windows, averages, cut

GPU_TOKENS = 262_144
"""Tokens of a batch on a GPU with memory for more: larger ones are no faster."""
SAMPLES, SAMPLE_TOKENS = 64, 24
"""Texts of random tokens on which int8 finds its ranges if no others are given."""
OVERFLOW = ("error", "warn", "truncate")
NOT_OURS = {
    "output_value": 'call encoder.model for token states; encode gives "sentence_embedding"',
    "pool": "run one process a device, each with its part of the texts",
    "chunk_size": "batches are made from max_batch_tokens",
    "show_progress": "write show_progress_bar",
    "max_seq_length": "give max_tokens and on_overflow to Encoder",
    "task": "write prompt_name",
}


@dataclass(frozen=True)
class Reading:
    """What a batch of texts was read as; of a text in windows, each window is a row by itself."""

    vectors: Tensor
    """(texts, dimension), fp32."""
    states: Tensor
    """Final token states, (rows, length, hidden)."""
    mask: Tensor
    """(rows, length), True where a token is real."""
    weights: tuple[Tensor, ...]
    """What a learned pooling gave each token, layer by layer: see ``pooling``."""
    starts: Tensor | None = None
    """(rows, length), True where a sentence begins, if the head reads sentences."""
    pooled: Tensor | None = None
    """(rows, length), True where a token has a part in the vector, likewise."""
    windows: Windows | None = None
    """Of which each is a row; None: each row is a text."""

    def stored(self) -> Stored:
        """The texts as a head that reads states takes them."""
        if self.starts is None or self.pooled is None:
            return Stored(self.vectors, *block_states(self.states, self.mask))
        of = self.states, self.starts, self.pooled, self.weights[-1], self.windows
        return Stored(self.vectors, *sentence_states(*of))


Vectors = np.ndarray[Any, Any] | Tensor | list[Tensor]


class Reader:
    """The half of ``Encoder`` that reads texts: a model and its tokenizer, and the head it loads.

    Arguments are ``Encoder``'s.
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
        dtype: str | torch.dtype = "float32",
        calibration: Sequence[str] | None = None,
        windows: int | None = None,
    ) -> None:
        check_overflow(on_overflow)
        if windows is not None and windows < 8:
            raise TwinlineError(f"windows must be at least 8 tokens or None, not {windows}.")
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
        self.reads_states: str | None = getattr(head, "reads_states", None)
        if self.reads_states == "blocks" and (windows or width != self.model.config.hidden_size):
            raise TwinlineError(
                f"similarity {name!r} reads the states of whole texts beside a vector of the same "
                "width: leave out windows, and pool by mean, cls or latent."
            )
        if self.reads_states == "sentences" and not self.model.pooled_by_sentence:
            raise TwinlineError(
                f"similarity {name!r} reads the sentences that a learned pooling weighs: convert "
                "with pooling='sentence' (or 'latent') and sentences=True, and train it."
            )
        self.max_tokens, self.on_overflow, self.windows = max_tokens, on_overflow, windows
        self.dtype = check_dtype(dtype)
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.hold(target, calibration)
        self.to(target)
        self.eval()

    def hold(self, device: torch.device, calibration: Sequence[str] | None) -> None:
        """Bring the model into ``self.dtype``, for encoding on ``device``."""
        if self.dtype == "auto":
            self.dtype = fastest(device)
        if calibration is not None and self.dtype != "int8":
            raise TwinlineError(f"calibration is for dtype int8, not {self.dtype}.")
        if self.dtype == "bfloat16":
            self.model = copy.deepcopy(self.model)
            nn.Module.to(self.model, torch.bfloat16)
        elif self.dtype == "int8":
            if device.type != "cpu":
                raise TwinlineError(f"dtype int8 is for processors; use bfloat16 on {device}.")
            if calibration is None:
                generator = torch.Generator().manual_seed(0)
                words = torch.randint(
                    len(self.tokenizer), (SAMPLES, SAMPLE_TOKENS), generator=generator
                )
                calibration = self.tokenizer.batch_decode(words, skip_special_tokens=True)
            ids = token_ids(self.tokenizer, calibration)
            self.model = to_int8(self.model, (torch.tensor([row]) for row in ids if row))

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

    def to(self, device: str | torch.device) -> Self:
        if self.dtype == "int8" and torch.device(device).type != "cpu":
            raise TwinlineError(f"dtype int8 is for processors; use bfloat16 on {device}.")
        nn.Module.to(self.model, device)
        self.head.to(device)
        return self

    def eval(self) -> Self:
        self.model.train(False)
        self.head.eval()
        return self

    def save(self, path: str | Path) -> None:
        """Write a folder that ``Encoder``, ``AutoModel`` and ``SentenceTransformer`` read.

        Raises: TwinlineError if it cannot be written, nothing half-written is left; or if this
            encoder holds rounded weights.
        """
        if self.dtype != "float32":
            raise TwinlineError(
                f"This encoder holds its weights in {self.dtype}: save one with dtype float32 "
                "and choose the dtype where it is loaded."
            )
        save_folder(path, self.model, self.tokenizer, self.similarity_name, self.head, self.prompts)

    def tokenize(
        self, texts: Sequence[str], on_overflow: str | None = None, first: int = 1
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids that will be read, and every text's full token count.

        ``first`` is the number of the first text in messages.

        Raises: TwinlineError for something that is no text, or one above ``max_tokens`` when
            ``on_overflow`` is "error".
        """
        on_overflow = on_overflow or self.on_overflow
        check_overflow(on_overflow)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TwinlineError(
                    f"Text number {place + first} is of type {type(text).__name__}: give strings."
                )
        ids = token_ids(self.tokenizer, texts)
        counts = [len(row) for row in ids]
        limit = self.max_tokens
        if limit is None or max(counts, default=0) <= limit:
            return ids, counts
        longer = [place for place, count in enumerate(counts) if count > limit]
        told = (
            f"{len(longer)} of {len(counts)} texts are longer than max_tokens={limit} "
            f"(first: number {longer[0] + first} with {counts[longer[0]]} tokens)"
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
        """One padded batch of token ids to fp32 vectors (batch, dimension); gradients flow."""
        return self.read(ids).vectors

    def read(self, ids: Sequence[Sequence[int]], lent: Lent | None = None) -> Reading:
        """``embed``, with what it came from. With ``lent`` the texts read one another's prose."""
        windows = None
        if self.windows is not None:
            windows = cut(ids, self.windows, set(self.tokenizer.all_special_ids))
        padded, mask = pad(windows.ids if windows else ids, self.model.config.pad_token_id)
        mask = mask.to(self.device)
        output = self.model(
            padded.to(self.device), mask, output_attentions=True,
            lent=None if windows else lent,
        )  # fmt: skip
        vectors: Tensor = output.pooler_output
        if windows is not None:
            vectors = averages(vectors, windows, lent.reads if lent else None)
        if self.model.config.normalize:
            vectors = F.normalize(vectors, dim=-1)
        made = Reading(vectors, output.last_hidden_state, mask, output.attentions, windows=windows)
        if self.reads_states != "sentences":
            return made
        of = padded.to(self.device), mask
        starts, pooled = self.model.sentence_starts(*of), self.model.pooled_tokens(*of)
        return replace(made, starts=starts, pooled=pooled)

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
        max_batch_tokens: int | None = None,
        on_overflow: str | None = None,
        return_token_counts: bool = False,
        first: int = 1,
        **others: Any,
    ) -> Any:
        """Vectors of texts, as sentence-transformers' ``encode`` gives them.

        Equal texts are encoded once; batches are sorted by token count and filled up to
        ``max_batch_tokens`` padded tokens (and at most ``batch_size`` texts, if given). The empty
        text has a vector too. A text's vector does not depend on what is encoded beside it, to a
        cosine distance of 1e-6 (bfloat16 1e-4). An encoder of dtype int8 keeps a cosine of 0.99.

        Args:
            inputs: a text or a list of texts; ``sentences=`` is accepted as its name.
            prompt_name, prompt: put before every text, by name or as it is.
            device: moves the encoder there.
            precision: of the vectors: "float32", "int8", "uint8", "binary" or "ubinary". int8 and
                uint8 take each dimension's range from the texts of this call, so that a text has
                other bytes in another call.
            max_batch_tokens: padded tokens in a batch; by default what suits the device. A text
                above it is read by itself, with a warning.
            on_overflow: overrides the encoder's.
            return_token_counts: also return every text's full token count (what ``max_tokens``
                cut counted).
            first: the number of the first text in messages.
        Returns: (dimension,) for one text, (texts, dimension) for a list: a numpy array, a tensor,
            or with ``convert_to_numpy=False`` a list of tensors; with token counts a pair.
        Raises: TwinlineError for an unknown keyword, prompt or precision, for an input that is not
            text, for a text that does not fit under ``on_overflow="error"``, or where the texts
            leave a dimension without a range for int8 or uint8, as one text does.
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
        one_of("precision", precision, VECTORS)
        if device is not None:
            self.to(device)
        ids, counts = self.prepare(texts, prompt_name, prompt, on_overflow, first)
        vectors = self.encode_ids(ids, max_batch_tokens, batch_size, show_progress_bar)
        if truncate_dim is not None:
            vectors = vectors[:, :truncate_dim]
        if normalize_embeddings:
            vectors = F.normalize(vectors, dim=-1)
        result: Any = vectors
        if precision != "float32":
            result = quantised(vectors.cpu().numpy(), precision)
        elif convert_to_tensor:
            result = vectors
        elif convert_to_numpy:
            result = vectors.cpu().numpy()
        else:
            result = list(vectors)
        if single:
            return (result[0], counts[0]) if return_token_counts else result[0]
        return (result, np.array(counts, dtype=np.int64)) if return_token_counts else result

    def prepare(
        self,
        texts: list[str],
        prompt_name: str | None,
        prompt: str | None,
        on_overflow: str | None,
        first: int = 1,
    ) -> tuple[list[list[int]], list[int]]:
        """``tokenize``'s ids and counts of texts behind their prompt, which fit into memory."""
        before = self.prompt(prompt_name, prompt)
        if before:
            texts = [before + text if isinstance(text, str) else text for text in texts]
        check_characters(self.model, self.tokenizer, texts, first)
        ids, counts = self.tokenize(texts, on_overflow, first)
        check_memory(self.model, [len(row) for row in ids], first)
        return ids, counts

    @torch.inference_mode()
    def store(
        self,
        inputs: Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        on_overflow: str | None = None,
        show_progress_bar: bool | None = False,
        **others: Any,
    ) -> Stored:
        """Texts as they are stored for a head that reads states: vectors, and states of blocks or
        of sentences (``stored``).

        Options as ``encode``'s. States are kept in float16: N / 128 of them for N tokens, or at
        most 32 sentences.
        """
        for name in others:
            raise TwinlineError(f"store, which this score head reads from, has no option {name!r}.")
        if isinstance(inputs, str) or not len(inputs):
            raise TwinlineError("store reads a list of one or more texts.")
        ids, _ = self.prepare(list(inputs), prompt_name, prompt, on_overflow)
        parts: dict[int, Stored] = {}
        with Progress("encoding", total=len(ids), show=show_progress_bar) as progress:
            for batch in budget_batches([len(row) for row in ids], self.default_batch_tokens()):
                kept = self.read([ids[i] for i in batch]).stored().halved()
                parts |= {i: kept[place : place + 1] for place, i in enumerate(batch)}
                progress.advance(len(batch))
        return joined([parts[i] for i in range(len(ids))])

    def encode_iter(
        self, inputs: Iterable[str], *, return_token_counts: bool = False, **options: Any
    ) -> Iterator[Any]:
        """Vectors of texts one by one, in their order, from any iterable and in bounded memory.

        Reads ahead a few thousand texts (or million characters) to sort them by length. If
        ``inputs`` raises, what it gave before is encoded and yielded first.

        Args:
            options: ``encode``'s; of ``precision`` not int8 and uint8, whose ranges are those of
                all texts.
        Yields: a vector, or with ``return_token_counts`` a vector and its text's token count.
        Raises: TwinlineError at once for such a precision or a string, and then as ``encode``.
        """
        if isinstance(inputs, str):
            raise TwinlineError("encode_iter reads an iterable of strings: use encode for one.")
        check_one_range(options.get("precision", "float32"))
        return self.encode_windows(inputs, return_token_counts, options)

    def encode_windows(
        self, inputs: Iterable[str], return_token_counts: bool, options: dict[str, Any]
    ) -> Iterator[Any]:
        """What ``encode_iter`` yields, a few thousand texts after another."""
        done = 0
        for window in windows(inputs):
            vectors, counts = self.encode(
                window, return_token_counts=True, first=done + 1, **options
            )
            done += len(window)
            for vector, count in zip(vectors, counts, strict=True):
                yield (vector, int(count)) if return_token_counts else vector

    def default_batch_tokens(self) -> int:
        """Padded tokens of a batch: what a processor's cache or half of a GPU's memory holds."""
        if self.device.type != "cuda":
            return CACHED_TOKENS
        free, _ = torch.cuda.mem_get_info(self.device)
        return min(GPU_TOKENS, max(CACHED_TOKENS, free // 2 // self.model.memory_for(1)))

    @torch.inference_mode()
    def encode_ids(
        self,
        ids: Sequence[Sequence[int]],
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = False,
    ) -> Tensor:
        """Vectors (texts, dimension) of token ids, in their order."""
        where, which = distinct([tuple(row) for row in ids])
        kept = [ids[place] for place in where]
        counts = [len(row) for row in kept]
        made = torch.empty(len(kept), self.dimension, device=self.device)
        budget = self.default_batch_tokens() if max_batch_tokens is None else max_batch_tokens
        batches = budget_batches(counts, budget, batch_size)
        if max_batch_tokens is not None and (most := max(counts, default=0)) > max_batch_tokens:
            longer = sum(count > max_batch_tokens for count in counts)
            warnings.warn(
                f"{longer} of {len(counts)} distinct texts have more tokens than "
                f"max_batch_tokens={max_batch_tokens} (the longest {most}): each was encoded "
                "whole, by itself.",
                stacklevel=3,
            )
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


def check_overflow(value: str) -> None:
    if value not in OVERFLOW:
        raise TwinlineError(f"on_overflow must be one of {', '.join(OVERFLOW)}, not {value!r}.")
