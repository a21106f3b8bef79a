"""A recipe from end to end: conversion, attention transfer, the teacher's scores, distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..conversion import convert, learns, transfer
from ..data import TASKS, Pairs, load, load_texts
from ..encoder import Encoder
from ..errors import TwinlineError
from ..loop import Run
from ..ownership import CARD, is_card
from ..randomness import fork_generators
from ..recipes import ConvertRecipe, DataOptions, DistillRecipe
from ..sources import find_scorer, is_cross_encoder
from ..teacher import Teacher
from .distill import check, distill

NAMED = {"builtin", *TASKS}


def training_pairs(options: DataOptions, need_score: bool = True) -> tuple[Pairs, Pairs | None]:
    """The pairs to train on and those to validate on (None for a file without a second one)."""

    def read(source: str, split: str | None, need_score: bool) -> Pairs:
        if source in NAMED:  # they declare their own scale and columns
            return load(source, split)
        given = {"scale": options.scale, "columns": options.columns, "need_score": need_score}
        return load(source, split, **given)  # type: ignore[arg-type]

    train = read(options.data, "train", need_score)
    if options.validation is None and options.data not in NAMED:
        return train, None
    return train, read(options.validation or options.data, None, True)


def converted(
    recipe: ConvertRecipe,
    work: Path | None = None,
    show_progress: bool | None = None,
    own_texts: Sequence[str] = (),
) -> Encoder:
    """The base model with new attention, after attention transfer on the recipe's texts.

    ``own_texts`` are taken where the recipe names none; without any, no transfer is done.
    """
    model = convert(recipe.base, **recipe.given())
    if recipe.transfer.steps and learns(model) and (recipe.texts or own_texts):
        texts = load_texts(list(recipe.texts)) if recipe.texts else own_texts
        transfer(
            model, texts, recipe.transfer,
            folder=work and work / "transfer", show_progress=show_progress,
        )  # fmt: skip
    return Encoder(model)


def scorer_of(
    path: str | Path,
    scale: str | None = None,
    dtype: str = "float32",
    similarity: str | None = None,
) -> Encoder | Teacher:
    """A folder as what it is: a twin encoder, or a teacher.

    ``scale`` is for a cross-encoder that does not declare its own, ``dtype`` and ``similarity``
    (if not the folder's) for a twin encoder.

    Raises: TwinlineError if a similarity is given for a teacher.
    """
    folder = find_scorer(path)
    if is_card(folder / CARD) or scale or is_cross_encoder(folder):
        for option, value, default in (
            ("similarity", similarity, None), ("dtype", dtype, "float32")
        ):  # fmt: skip
            if value != default:
                raise TwinlineError(
                    f"{option} is for a twin encoder, and {path} is a teacher: leave it out."
                )
        if scale and not (is_card(folder / CARD) or is_cross_encoder(folder)):
            raise TwinlineError(f"teacher_scale is for a cross-encoder, which {path} is not.")
        return Teacher(folder, scale=scale)  # which says if its scale must be declared
    return Encoder(folder, dtype=dtype, similarity=similarity)


def student(
    recipe: DistillRecipe,
    work: Path | None = None,
    *,
    teacher: Teacher | None = None,
    twin: Encoder | None = None,
    show_progress: bool | None = None,
) -> tuple[Encoder, Run]:
    """Run a whole recipe.

    Args:
        work: where checkpoints and metrics go; a run found there goes on.
        teacher, twin: instead of those that the recipe names.
    Returns: the trained student, and the run with its metrics log.
    """
    if recipe.extra and not recipe.train.alpha:
        raise TwinlineError("extra pairs have no labels: they need train.alpha above 0.")
    if recipe.train.alpha > 0 and teacher is None and not recipe.teacher:
        raise TwinlineError(
            f"train.alpha is {recipe.train.alpha} and there is no teacher: name one with teacher, "
            "or set train.alpha to 0."
        )
    # What is not there, or contradicts the rest, is to be said before transfer, not after it.
    pairs, validation = training_pairs(recipe, need_score=recipe.train.alpha < 1)
    more = {source: load(source, "train", need_score=False) for source in recipe.extra}
    if teacher is None and recipe.teacher:
        teacher = Teacher(
            *recipe.teacher,
            scale=recipe.teacher_scale,
            cache=work / "scores.sqlite" if work else None,
        )
    if twin is None and recipe.twin:
        twin = Encoder(recipe.twin)
    start = ConvertRecipe(
        base=recipe.base, texts=recipe.texts, transfer=recipe.transfer, **recipe.model.given()
    )
    own = list(dict.fromkeys(text for text in pairs.sentence1 + pairs.sentence2 if text.strip()))
    with fork_generators():  # the head that it draws is only looked at
        plain = Encoder(convert(start.base, **start.given()), similarity=recipe.similarity)
    known = None if teacher is None else np.zeros(len(pairs))
    check(recipe.train, plain, pairs, known, None, twin)
    made = converted(start, work, show_progress, own)
    with fork_generators(recipe.train.seed):  # draws a learned head, whatever was drawn before
        made = Encoder(made.model, similarity=recipe.similarity)
    scores = None
    extra = None
    if recipe.train.alpha > 0 and teacher is not None:
        both = list(zip(pairs.sentence1, pairs.sentence2, strict=True))
        scores = teacher.predict(both, show_progress=show_progress)
        extra = scored(more, teacher, show_progress) if more else None
    run = distill(
        made, pairs, teacher_scores=scores, extra=extra, twin=twin, validation=validation,
        options=recipe.train, folder=work and work / "distill", show_progress=show_progress,
    )  # fmt: skip
    return made, run


def scored(sets: Mapping[str, Pairs], teacher: Teacher, show_progress: bool | None) -> Pairs:
    """Pairs of other sets, scored by the teacher."""
    first = [text for one in sets.values() for text in one.sentence1]
    second = [text for one in sets.values() for text in one.sentence2]
    scores = teacher.predict(list(zip(first, second, strict=True)), show_progress=show_progress)
    return Pairs(first, second, np.clip(scores, 0, 1), (0.0, 1.0), ", ".join(sets), "train")
