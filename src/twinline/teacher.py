"""Teacher: what scores pairs for a student to learn from, cross-encoders and twins behind one face.

A scorer's scale is declared, never guessed (``scales``). A teacher's scores are always on the unit
scale; those of several scorers are averaged there.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .arguments import flag, one_of, usable_device, whole_number
from .batching import budget_batches, distinct, pad
from .cache import ScoreCache
from .checkpoints import load_classifier, longest_input
from .config import TwinlineConfig
from .encoder import Encoder
from .errors import TwinlineError
from .files import absolute_path
from .fingerprints import cross_encoder_print
from .folders import read_whole, whole_folder
from .hashing import fingerprint
from .layout import check_prompts
from .ownership import CARD, CONFIG, is_card
from .progress import Progress
from .scales import (
    COSINE,
    REGRESSOR,
    Range,
    Scale,
    Scores,
    check_scale,
    off_scale,
    scale_words,
    to_unit,
)
from .similarity import Ranked, ranking
from .sources import find_scorer, read_config, read_json
from .text import Pair, PairList, clean_text, one_text, pair_list, text_list
from .tokenization import load_tokenizer

OVERFLOW = ("error", "warn", "truncate", "windows")
MAX_BATCH_TOKENS = 8192
CHUNK = 1024
"""Pairs scored between two writes to the cache."""


class Scorer(Protocol):
    """Scores pairs on its declared scale."""

    scale: Scale
    bounds: Range
    """Where its scores may lie, on the unit scale."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, pairs: Sequence[Pair]) -> Scores: ...


def pair_rows(tokenizer: Any, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Token ids and token types of pairs read together, nothing cut."""
    made = tokenizer(
        [clean_text(a) for a, _ in pairs], [clean_text(b) for _, b in pairs], truncation=False,
        padding=False, return_attention_mask=False, return_token_type_ids=True, verbose=False,
    )  # fmt: skip
    return list(zip(made["input_ids"], made["token_type_ids"], strict=True))


def pad_rows(
    rows: Sequence[tuple[list[int], list[int]]], pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """One batch as a cross-encoder's keyword arguments, each (batch, length)."""
    ids, mask = pad([row for row, _ in rows], pad_id)
    types, _ = pad([kinds for _, kinds in rows], 0)
    batch = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}
    return {name: tensor.to(device) for name, tensor in batch.items()}


class CrossEncoderScorer:
    """A sequence classifier with one output that reads both texts together.

    Args:
        on_overflow: for a pair longer than the model's positions: "error", "warn" or "truncate"
            (cut the longer text), or "windows" (both texts in windows, the best pair of windows
            counts: MaxP, Dai & Callan, arXiv 1905.09217).
    """

    bounds = REGRESSOR

    def __init__(
        self, model: Any, tokenizer: Any, scale: Scale, on_overflow: str = "error"
    ) -> None:
        self.model, self.tokenizer, self.scale = model, tokenizer, scale
        self.on_overflow = on_overflow
        self.limit = longest_input(model)
        # As the tokenizer would by itself: RoBERTa's, for one, makes no token types.
        self.types = "token_type_ids" in tokenizer.model_input_names

    @property
    def fingerprint(self) -> str:
        """Of the model as it is now: it may have been trained on since."""
        return cross_encoder_print(self)

    @classmethod
    def load(
        cls, folder: Path, scale: Scale, device: str | None = None, on_overflow: str = "error"
    ) -> CrossEncoderScorer:
        """Any sentence-transformers or Hugging Face cross-encoder with one output.

        Raises: TwinlineError if it cannot be read or has several outputs.
        """
        model = load_classifier(folder)
        check_prompts(folder)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, load_tokenizer(folder), scale, on_overflow)

    def __call__(self, pairs: Sequence[Pair]) -> Scores:
        pairs = pair_list(pairs)
        rows = pair_rows(self.tokenizer, pairs)
        owner = list(range(len(pairs)))
        if self.limit is not None:
            rows, owner = self.fit(pairs, rows)
        scores = np.full(len(rows), np.nan)
        self.model.eval()  # a training that was stopped, or a user, may have left dropout on
        with torch.inference_mode():
            for batch in budget_batches([len(ids) for ids, _ in rows], MAX_BATCH_TOKENS):
                pad_id = self.model.config.pad_token_id or 0
                inputs = pad_rows([rows[i] for i in batch], pad_id, self.model.device)
                if not self.types:
                    del inputs["token_type_ids"]
                scores[batch] = self.model(**inputs).logits[:, 0].float().cpu().numpy()
        best = np.full(len(pairs), -np.inf)
        np.maximum.at(best, owner, scores)
        return best

    def fit(
        self, pairs: PairList, rows: list[tuple[list[int], list[int]]]
    ) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        """Rows that fit the model's positions, and whose each is."""
        limit = int(self.limit or 0)
        longer = [i for i, (ids, _) in enumerate(rows) if len(ids) > limit]
        if not longer:
            return rows, list(range(len(rows)))
        told = (
            f"{len(longer)} of {len(rows)} pairs read together are longer than the teacher's "
            f"{limit} tokens (first: {pairs.label(longer[0], None)} with {len(rows[longer[0]][0])})"
        )
        if self.on_overflow == "error":
            raise TwinlineError(
                f"{told}: choose on_overflow='windows' to score them by windows, or 'truncate'."
            )
        if self.on_overflow == "warn":
            warnings.warn(f"{told}; they were cut.", stacklevel=4)
        kept: list[tuple[list[int], list[int]]] = []
        owner = []
        for number, row in enumerate(rows):
            fitting = [row] if len(row[0]) <= limit else self.windows(pairs[number], limit)
            kept += fitting
            owner += [number] * len(fitting)
        return kept, owner

    def windows(self, pair: Pair, limit: int, spare: int = 0) -> list[tuple[list[int], list[int]]]:
        """A long pair as rows that fit: its first windows, or every pair of windows.

        ``spare`` tokens are left free for what tokenises longer alone than in its text.
        """
        plain = self.tokenizer(
            [clean_text(text) for text in pair], add_special_tokens=False, truncation=False,
            return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        counts = [len(ids) for ids in plain["input_ids"]]
        room = limit - self.tokenizer.num_special_tokens_to_add(pair=True) - spare
        # The shorter text keeps what it needs up to half of the room, the other gets the rest.
        small = min(min(counts), room // 2)
        sizes = [small, room - small] if counts[0] <= counts[1] else [room - small, small]
        cut: list[list[str]] = []
        for side in (0, 1):
            offsets, text = plain["offset_mapping"][side], clean_text(pair[side])
            starts = range(0, max(1, counts[side]), max(1, sizes[side]))
            if self.on_overflow != "windows":
                starts = range(1)
            ends = [min(start + sizes[side], counts[side]) - 1 for start in starts]
            cut.append([
                text[offsets[start][0] : offsets[end][1]] if counts[side] else ""
                for start, end in zip(starts, ends, strict=True)
            ])  # fmt: skip
        rows = pair_rows(self.tokenizer, [(a, b) for a in cut[0] for b in cut[1]])
        # A piece cut out of its text may tokenise a little longer than it was inside it.
        excess = max(len(ids) for ids, _ in rows) - limit
        return self.windows(pair, limit, spare + excess) if excess > 0 else rows


class TwinScorer:
    """A twin encoder as a scorer; cosine scores of a trained student are on the unit scale."""

    bounds = COSINE

    def __init__(self, encoder: Encoder, scale: Scale) -> None:
        self.encoder, self.scale = encoder, scale

    @property
    def fingerprint(self) -> str:
        """Of the encoder as it is now: it may have been trained on since."""
        return self.encoder.fingerprint

    def __call__(self, pairs: Sequence[Pair]) -> Scores:
        pairs = pair_list(pairs)
        scores = self.encoder.score(pairs.side(0), pairs.side(1))
        return np.asarray(scores, dtype=np.float64)


class Teacher:
    """One scorer, or several averaged, with a declared scale.

    Args:
        sources: folders or names of cross-encoders, twins (``Encoder`` objects or folders that
            twinline saved), or folders of a saved teacher.
        scale: the scale of every source that does not know its own (twins are on "unit", and what
            ``twinline teach`` made declares its own), or a list with one for each (None: its own).
        both_orders: score (a, b) and (b, a) and average them.
        cache: file of the score cache, or None.
        on_overflow: see ``CrossEncoderScorer``.
    Raises: TwinlineError if a source cannot be read or its scale is not declared.
    """

    def __init__(
        self,
        *sources: str | Path | Encoder,
        scale: Scale | list[Scale | None] | None = None,
        both_orders: bool = True,
        cache: str | Path | None = None,
        device: str | None = None,
        on_overflow: str = "error",
    ) -> None:
        if not sources:
            raise TwinlineError("A teacher needs at least one scorer.")
        for source in sources:
            if not isinstance(source, (str, Path, Encoder)):
                raise TwinlineError(
                    "A teacher's sources are folders, names or encoders, one argument each, not "
                    f"of type {type(source).__name__}."
                )
        one_of("on_overflow", on_overflow, OVERFLOW)
        both_orders = flag("both_orders", both_orders)
        if device is not None:
            device = str(usable_device(device))
        if isinstance(scale, list):
            if len(scale) != len(sources):
                raise TwinlineError(
                    f"{len(sources)} sources need as many scales, not {len(scale)}; the ends of "
                    "one scale go into a tuple, (low, high)."
                )
            scale = [None if one is None else check_scale(one) for one in scale]
        declared = scale if isinstance(scale, list) else [None] * len(sources)
        fallback = None if scale is None or isinstance(scale, list) else check_scale(scale)
        self.both_orders, self.device, self.on_overflow = both_orders, device, on_overflow
        self.scorers: list[Scorer] = []
        self.places: list[str | None] = []
        for source, own in zip(sources, declared, strict=True):
            self.add(source, own, fallback)
        self.cache = None if cache is None else ScoreCache(cache)

    @property
    def fingerprint(self) -> str:
        """Of all that moves its scores, and of nothing else: what the cache is keyed by."""
        turned = self.both_orders and not all(map(symmetric, self.scorers))
        scales = ((0.0, 1.0) if s.scale == "unit" else s.scale for s in self.scorers)
        each = (f"{s.fingerprint} {scale}" for s, scale in zip(self.scorers, scales, strict=True))
        return fingerprint([str(turned), *sorted(each)])

    def add(self, source: str | Path | Encoder, declared: Any, fallback: Scale | None) -> None:
        """Take a source in; ``fallback`` is the scale of one that has none of its own."""
        if isinstance(source, Encoder):
            self.scorers.append(TwinScorer(source, check_scale(declared or "unit")))
            self.places.append(None)
            return
        folder = find_scorer(source)
        card = folder / CARD
        if declared is None and is_card(card):
            content = read_json(card)
            turned = flag(f"both_orders in {card}", content.get("both_orders", True))
            self.both_orders = self.both_orders and turned
            for member in content["members"]:
                self.add_folder((folder / member["path"]).resolve(), member["scale"], None)
        elif not (folder / CONFIG).is_file():
            raise TwinlineError(f"{card} lists no members with a path and a scale.")
        else:  # beside a model, a file of that name is somebody else's
            self.add_folder(folder, declared, fallback)

    def add_folder(self, folder: Path, declared: Any, fallback: Scale | None) -> None:
        """Take in the twin or the cross-encoder in a folder."""
        scorer: Scorer
        if not folder.is_dir():
            raise TwinlineError(f"A teacher's card names {folder}, which is not there: correct it.")
        if read_config(folder).get("model_type") == TwinlineConfig.model_type:
            twin = Encoder(folder, device=self.device)
            scorer = TwinScorer(twin, check_scale(declared or "unit"))
        elif declared is None and fallback is None:
            raise TwinlineError(
                f"The score scale of {folder} is not declared: give scale='logit', 'unit' or "
                "(low, high)."
            )
        else:
            scale = check_scale(declared or fallback)
            scorer = read_whole(
                folder,
                lambda: CrossEncoderScorer.load(folder, scale, self.device, self.on_overflow),
            )
        self.scorers.append(scorer)
        self.places.append(str(folder))

    def predict(self, pairs: Iterable[Iterable[str]], show_progress: bool | None = False) -> Scores:
        """Scores (pairs,) on the unit scale, each distinct pair's computed once; known ones come
        from the cache.

        Raises: TwinlineError if ``pairs`` are none, one is too long under ``on_overflow="error"``,
            or a score lies off its declared scale.
        """
        given = pair_list(pairs)
        where, which = distinct(given)
        unique = given.at(where)
        key = self.fingerprint if self.cache else ""
        known = self.cache.get(key, unique) if self.cache else [None] * len(unique)
        todo = [place for place, score in enumerate(known) if score is None]
        scores = np.array([np.nan if score is None else score for score in known], dtype=np.float64)
        if (bad_score := off_scale(scores, "unit", COSINE)) is not None:
            raise TwinlineError(
                f"The score cache holds {scores[bad_score]:g} for {unique.label(bad_score, None)}, "
                "which is no score on the unit scale: remove the file, or name another."
            )
        with Progress("teacher", total=len(todo), show=show_progress) as progress:
            for start in range(0, len(todo), CHUNK):
                places = todo[start : start + CHUNK]
                chunk = unique.at(places)
                scores[places] = self.fresh(chunk)
                if bad := [place for place in places if not np.isfinite(scores[place])]:
                    raise TwinlineError(
                        f"The teacher's score of pair {where[bad[0]] + 1} is not a number: look at "
                        "its weights."
                    )
                if self.cache:
                    self.cache.put(key, chunk, scores[places].tolist())
                progress.advance(len(places))
        return scores[which]

    def fresh(self, pairs: PairList) -> Scores:
        """Scores computed now; NaN where a scorer gives no number.

        Raises: TwinlineError if one lies off its scorer's declared scale.
        """
        total = np.zeros(len(pairs))
        for scorer in self.scorers:
            unit = unit_scores(scorer, pairs)
            if self.both_orders and not symmetric(scorer):
                unit = (unit + unit_scores(scorer, pairs.turned())) / 2
            total += unit
        return total / len(self.scorers)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
    ) -> list[Ranked]:
        """``documents`` by their score with ``query``, best first; ties in the order given.

        Raises: TwinlineError as ``predict``.
        """
        top_k = whole_number("top_k", top_k, 1, optional=True)
        flag("return_documents", return_documents)
        asked, texts = one_text("query", query), text_list(documents, "documents")

        def label(place: int, side: int | None) -> str:
            return "the query" if side == 0 else texts.label(place)

        scores = self.predict(PairList(((asked, text) for text in texts), label))
        return ranking(scores, texts, top_k, return_documents)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a teacher's card into a folder, which may hold a scorer, or anything else.

        The scorers stay where they are. One in the folder itself is found there wherever the
        folder is moved to; others are found by their absolute path.

        Raises: TwinlineError if a scorer was given as an object and so has no place, or the
            folder has a ``teacher.json`` that Twinline did not write and ``overwrite`` is false.
        """
        target = absolute_path(path)
        members = []
        for place, scorer in zip(self.places, self.scorers, strict=True):
            if place is None:
                raise TwinlineError("Save the twin first and give its folder: a card needs paths.")
            scorer_path = "." if Path(place).resolve() == target else place
            members.append({"path": scorer_path, "scale": scorer.scale})
        with whole_folder(path, overwrite=overwrite) as folder:
            write_card(folder, members, self.both_orders)


def unit_scores(scorer: Scorer, pairs: PairList) -> Scores:
    """What a scorer gives, on the unit scale; NaN where it is no number.

    Raises: TwinlineError if one lies off the scale that is declared for it.
    """
    scores = scorer(pairs)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    place = off_scale(scores, scorer.scale, scorer.bounds)
    if place is not None:
        raise TwinlineError(
            f"The score {scores[place]:g} of {pairs.label(place, None)} lies off the scale "
            f"{scale_words(scorer.scale)} that is declared for it: declare scale='logit' or (low, "
            "high); a twin's stands in a list, scale=['logit']."
        )
    return to_unit(scores, scorer.scale)


def symmetric(scorer: Scorer) -> bool:
    """Whether (a, b) and (b, a) score the same by construction."""
    return isinstance(scorer, TwinScorer) and scorer.encoder.similarity_name != "dse"


def write_card(folder: Path, members: list[dict[str, Any]], both_orders: bool = True) -> None:
    """The file by which a folder is a teacher that knows its scale."""
    card = {"members": members, "both_orders": both_orders}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
