"""What a recipe file of each verb holds: options, and what they are applied to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .options import (
    DistillOptions,
    ModelOptions,
    Options,
    RetrievalOptions,
    TeachOptions,
    TransferOptions,
)


@dataclass(frozen=True)
class DataOptions(Options):
    """Which pairs are read."""

    data: str = "stsb"
    """A task (stsb, mrpc, qqp, qnli), "builtin", or a CSV, TSV, JSONL or Parquet file."""
    validation: str | None = None
    """A file to validate on; None: the task's own validation split."""
    scale: tuple[float, float] | None = None
    """Lowest and highest score of a file; tasks declare their own."""
    columns: tuple[str, ...] | None = None
    """Names of a file's columns: first text, second text, score."""


@dataclass(frozen=True)
class ConvertRecipe(ModelOptions):
    """``twinline convert``: a pretrained encoder with new attention."""

    base: str = "all-MiniLM-L6-v2"
    """The encoder: a path, or a name."""
    texts: tuple[str, ...] = ()
    """Unlabelled text for attention transfer: files or tasks; without any, none is done."""
    transfer: TransferOptions = field(default_factory=TransferOptions)


@dataclass(frozen=True)
class TeachRecipe(DataOptions):
    """``twinline teach``: a cross-encoder fine-tuned on pairs."""

    base: str = "all-MiniLM-L6-v2"
    """The encoder to start from: a path, or a name."""
    train: TeachOptions = field(default_factory=TeachOptions)


@dataclass(frozen=True)
class DistillRecipe(DataOptions):
    """``twinline distill``: conversion, attention transfer and distillation in one."""

    base: str = "all-MiniLM-L6-v2"
    """The encoder to start from, or a folder that convert wrote."""
    model: ModelOptions = field(default_factory=ModelOptions)
    texts: tuple[str, ...] = ()
    """Unlabelled text for attention transfer: files or tasks; without any, the pairs' own."""
    transfer: TransferOptions = field(default_factory=TransferOptions)
    similarity: Literal["cosine", "dot", "dse", "stca", "late"] = "cosine"
    """How two vectors make a score."""
    teacher: tuple[str, ...] = ()
    """Folders of the teacher's scorers; several are averaged."""
    teacher_scale: str | None = None
    """logit or unit, for the cross-encoders among them that do not declare their scale."""
    twin: str | None = None
    """A softmax twin whose vectors train.match draws the student's to."""
    extra: tuple[str, ...] = ()
    """Tasks or files whose pairs the teacher scores as further training pairs."""
    train: DistillOptions = field(default_factory=DistillOptions)


@dataclass(frozen=True)
class RetrievalRecipe(Options):
    """``twinline retrieval``: a student trained to find long documents."""

    base: str = "all-MiniLM-L6-v2"
    """The encoder to start from: a path, a name, or a folder that convert or distill wrote."""
    model: ModelOptions = field(default_factory=ModelOptions)
    windows: int | None = None
    """Read documents in windows of so many tokens whose vectors are averaged."""
    similarity: Literal["cosine", "stca"] = "cosine"
    """How a query and a document make a score."""
    texts: tuple[str, ...] = ()
    """Unlabelled text for attention transfer; without any, none is done."""
    transfer: TransferOptions = field(default_factory=TransferOptions)
    collections: tuple[str, ...] = ("qmsum", "squality")
    """Whose training documents and queries are learned from; each step takes one of them."""
    asked: tuple[str, ...] = ("question", "answer")
    """What is searched with; each step takes one of them."""
    teacher: str | None = None
    """An encoder whose best window's score ranks documents, for train.listwise."""
    teacher_windows: int = 256
    """Tokens of its windows."""
    teacher_dtype: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    """Numbers that it encodes with."""
    train: RetrievalOptions = field(default_factory=RetrievalOptions)
