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

from .arguments import device_of, flag, one_of, usable_device, whole_number
from .attention import Lent
from .batching import (
    CACHED_TOKENS,
    budget_batches,
    distinct,
    pad,
    token_ids,
    windows,
)
from .capacity import check_characters, check_memory
from .config import TwinlineConfig
from .conversion import convert, load_model
from .errors import TwinlineError
from .folders import read_whole
from .layout import (
    HEAD_CONFIG,
    Prompts,
    declared_similarity,
    load_head,
    load_prompts,
    save_folder,
)
from .model import TwinlineModel
from .precision import VECTORS, check_dtype, check_one_range, fastest, quantised, to_int8
from .progress import Progress
from .similarity import SIMILARITIES
from .sources import find_model, read_config
from .stored import Stored, block_states, joined, sentence_states
from .text import TextList, iter_texts, numbered, one_text, text_list
from .tokenization import check_tokenizer, load_tokenizer
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
        calibration: Iterable[str] | None = None,
        windows: int | None = None,
    ) -> None:
        one_of("on_overflow", on_overflow, OVERFLOW)
        windows = whole_number("windows", windows, 8, optional=True)
        max_tokens = whole_number("max_tokens", max_tokens, 3, optional=True)
        if similarity is not None:
            one_of("similarity", similarity, sorted(SIMILARITIES))
        if calibration is not None:
            calibration = text_list(calibration, "calibration")
        target = usable_device(device)
        if not isinstance(model, (str, Path, TwinlineModel)):
            raise TwinlineError(
                f"model must be a folder, a name or a TwinlineModel, not {type(model).__name__}."
            )
        if isinstance(model, TwinlineModel):
            self._load(model, tokenizer, similarity)
        else:
            folder = find_model(model)
            read_whole(folder, lambda: self._load(folder, tokenizer, similarity))
        name, head, width = self.similarity_name, self.head, self.model.config.projection_dim
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
        self.hold(target, calibration)
        self.to(target)
        self.eval()

    def _load(self, source: Path | TwinlineModel, tokenizer: Any, similarity: str | None) -> None:
        """Take in the model, and its tokenizer, prompts and score head as its folder has them."""
        folder: Path | None = None
        if isinstance(source, TwinlineModel):
            self.model = source
            nn.Module.to(source, torch.float32)
            if tokenizer is None:
                if not source.name_or_path:
                    raise TwinlineError("This model came from no folder: give its tokenizer too.")
                folder = find_model(source.name_or_path or "")
        else:
            folder = source
            ours = read_config(folder).get("model_type") == TwinlineConfig.model_type
            self.model = load_model(folder) if ours else convert(folder, attention="softmax")
        self.tokenizer = load_tokenizer(folder or "") if tokenizer is None else tokenizer
        check_tokenizer(self.tokenizer, self.model.config.to_dict())
        width = self.model.config.projection_dim
        prompts = load_prompts(folder) if folder else Prompts()
        self.prompts: dict[str, str] = prompts.texts
        self.default_prompt_name, self.prompts_are_pooled = prompts.default, prompts.pooled
        name, head = "cosine", None
        if folder and isinstance(source, TwinlineModel):
            name = declared_similarity(folder) if similarity is None else similarity
        elif folder and (similarity is None or (folder / HEAD_CONFIG).is_file()):
            name, head = load_head(folder, width)
        self.head_is_random = False
        if head is None or similarity not in (None, name):  # another than the folder's is new
            name = similarity or name
            with torch.random.fork_rng(()):
                head = SIMILARITIES[name](width)
            self.head_is_random = name == "dse"  # the others start at something sensible
        self.similarity_name, self.head = name, head

    def hold(self, device: torch.device, calibration: TextList | None) -> None:
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
                drawn = self.tokenizer.batch_decode(words, skip_special_tokens=True)
                calibration = text_list(drawn, "calibration")
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
        target = device_of(device)
        if self.dtype == "int8" and target.type != "cpu":
            raise TwinlineError(f"dtype int8 is for processors; use bfloat16 on {device}.")
        nn.Module.to(self.model, usable_device(target))
        self.head.to(target)
        return self

    def eval(self) -> Self:
        self.model.train(False)
        self.head.eval()
        return self

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a folder that ``Encoder``, ``AutoModel`` and ``SentenceTransformer`` read.

        In a folder that is there already, only files that Twinline wrote are replaced.

        Args:
            overwrite: also replace files of the same names that Twinline did not write.
        Raises: TwinlineError if it cannot be written, and then the folder is as before; if a file
            of others would be replaced; or if this encoder holds rounded weights.
        """
        if self.dtype != "float32":
            raise TwinlineError(
                f"This encoder holds its weights in {self.dtype}: save one with dtype float32 "
                "and choose the dtype where it is loaded."
            )
        default = self.default_prompt_name if self.default_prompt_name in self.prompts else None
        prompts = Prompts(self.prompts, default, self.prompts_are_pooled)
        save_folder(
            path, self.model, self.tokenizer, self.similarity_name, self.head, prompts, overwrite
        )

    def tokenize(
        self, texts: Iterable[str], on_overflow: str | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids that will be read, and every text's full token count.

        Raises: TwinlineError for something that is no text, or one above ``max_tokens`` when
            ``on_overflow`` is "error".
        """
        on_overflow = self.overflow(on_overflow)
        texts = text_list(texts, label=numbered())
        ids = token_ids(self.tokenizer, texts)
        counts = [len(row) for row in ids]
        limit = self.max_tokens
        if limit is None or max(counts, default=0) <= limit:
            return ids, counts
        longer = [place for place, count in enumerate(counts) if count > limit]
        told = (
            f"{len(longer)} of {len(counts)} texts are longer than max_tokens={limit} "
            f"(first: {texts.label(longer[0])} with {counts[longer[0]]} tokens)"
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
        inputs: str | Iterable[str] | None = None,
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
        **others: Any,
    ) -> Any:
        """Vectors of texts, as sentence-transformers' ``encode`` gives them.

        Equal texts are encoded once; batches are sorted by token count and filled up to
        ``max_batch_tokens`` padded tokens (and at most ``batch_size`` texts, if given). The empty
        text has a vector too. A text's vector does not depend on what is encoded beside it, to a
        cosine distance of 1e-6 (bfloat16 1e-4). An encoder of dtype int8 keeps a cosine of 0.99.

        Args:
            inputs: a text, or texts in order: a list, a tuple, a generator, a NumPy array, a pandas
                Series, an open text file (one a line); ``sentences=`` is accepted as its name.
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
        single = isinstance(inputs, str)
        texts = text_list([inputs] if single else inputs, "inputs", numbered())
        batch_size = whole_number("batch_size", batch_size, 1, optional=True)
        max_batch_tokens = whole_number("max_batch_tokens", max_batch_tokens, 1, optional=True)
        truncate_dim = whole_number("truncate_dim", truncate_dim, optional=True)
        if truncate_dim is not None and not 1 <= truncate_dim <= self.dimension:
            raise TwinlineError(
                f"truncate_dim must lie between 1 and {self.dimension}, not {truncate_dim}."
            )
        one_of("precision", precision, VECTORS)
        flags = {
            "convert_to_numpy": convert_to_numpy, "convert_to_tensor": convert_to_tensor,
            "normalize_embeddings": normalize_embeddings,
            "return_token_counts": return_token_counts,
        }  # fmt: skip
        for name, value in flags.items():
            flag(name, value)
        if device is not None:
            self.to(device)
        ids, counts = self.prepare(texts, prompt_name, prompt, on_overflow)
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
        self, texts: TextList, prompt_name: str | None, prompt: str | None, on_overflow: str | None
    ) -> tuple[list[list[int]], list[int]]:
        """``tokenize``'s ids and counts of texts behind their prompt, which fit into memory."""
        before = self.prompt(prompt_name, prompt)
        if before:
            texts = TextList((before + text for text in texts), texts.label)
        check_characters(self.model, self.tokenizer, texts)
        ids, counts = self.tokenize(texts, on_overflow)
        check_memory(self.model, [len(row) for row in ids], texts.label)
        return ids, counts

    def prompted_ids(self, texts: Iterable[str], role: str | None = None) -> list[list[int]]:
        """Token ids of texts as they are encoded: behind the prompt of ``role`` ("query",
        "document"), or behind the default one."""
        name = self.default_prompt(role, {}).get("prompt_name") if role else None
        return self.prepare(text_list(texts), name, None, None)[0]

    @torch.inference_mode()
    def store(
        self,
        inputs: Iterable[str],
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
        texts = text_list(inputs, "inputs", numbered(), one="give a list of one or more texts")
        if not texts:
            raise TwinlineError("store reads a list of one or more texts, and this one is empty.")
        ids, _ = self.prepare(texts, prompt_name, prompt, on_overflow)
        self.eval()
        where, which = distinct([tuple(row) for row in ids])
        kept = [ids[place] for place in where]
        parts: dict[int, Stored] = {}
        with Progress("encoding", total=len(kept), show=show_progress_bar) as progress:
            for batch in budget_batches([len(row) for row in kept], self.default_batch_tokens()):
                made = self.read([kept[i] for i in batch]).stored().halved()
                parts |= {i: made[place : place + 1] for place, i in enumerate(batch)}
                progress.advance(len(batch))
        return joined([parts[i] for i in which])

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
        texts = iter_texts(
            inputs, "inputs", numbered(), one="give a list of it, or use encode for one"
        )
        check_one_range(options.get("precision", "float32"))
        return self.stream(texts, return_token_counts, options)

    def stream(
        self, texts: Iterator[str], return_token_counts: bool, options: dict[str, Any]
    ) -> Iterator[Any]:
        """What ``encode_iter`` yields of texts that are known to be some."""
        done = 0
        for window in windows(texts):
            vectors, counts = self.encode(
                TextList(window, numbered(before=done)), return_token_counts=True, **options
            )
            done += len(window)
            for vector, count in zip(vectors, counts, strict=True):
                yield (vector, int(count)) if return_token_counts else vector

    def overflow(self, value: str | None) -> str:
        """What happens to a text that is too long: ``value``, or what the encoder was given."""
        if value is None:
            return self.on_overflow
        one_of("on_overflow", value, OVERFLOW)
        return value

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
        """Vectors (texts, dimension) of token ids, in their order.

        Raises: TwinlineError if a vector holds NaN or infinity.
        """
        self.eval()  # a training that was stopped, or a user, may have left dropout on
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
        if not bool(torch.isfinite(made).all()):
            raise TwinlineError(
                "This model's vectors hold NaN or infinity: its training broke; use an earlier "
                "checkpoint."
            )
        return made[torch.tensor(which, dtype=torch.long, device=self.device)]

    def prompt(self, name: str | None, prompt: str | None) -> str:
        """The text to put before each input: the prompt, that of this name, or the default one.

        Raises: TwinlineError for a name that is not among ``prompts``.
        """
        for option, value in (("prompt", prompt), ("prompt_name", name)):
            if value is not None:
                one_text(option, value)
        if name is None:
            before = self.default_prompt_text
        elif name in self.prompts:
            before = self.prompts[name]
        else:
            known = ", ".join(self.prompts) or "none"
            raise TwinlineError(f"There is no prompt named {name!r}; this model has: {known}.")
        before = before if prompt is None else prompt
        if before and not self.prompts_are_pooled:
            raise TwinlineError(
                "This model leaves its prompts out of the pooling (include_prompt is false), which "
                "Twinline does not do: encode with prompt='', or with sentence-transformers."
            )
        return before

    @property
    def default_prompt_text(self) -> str:
        """What stands before every text for which no prompt is chosen."""
        return self.prompts.get(self.default_prompt_name or "", "")

    def encode_query(self, inputs: str | Iterable[str], **options: Any) -> Any:
        """``encode`` with the prompt "query", where the model has one."""
        return self.encode(inputs, **self.default_prompt("query", options))

    def encode_document(self, inputs: str | Iterable[str], **options: Any) -> Any:
        """``encode`` with the prompt "document", where the model has one."""
        return self.encode(inputs, **self.default_prompt("document", options))

    def default_prompt(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        given = "prompt" in options or "prompt_name" in options
        return options if given or name not in self.prompts else {**options, "prompt_name": name}
