"""Pairs of texts with scores, and unlabelled texts: tasks, files, and a built-in set."""

from .builtin import builtin_pairs
from .pairs import TASKS, Pairs, Task, load, load_pairs, load_task
from .texts import load_texts, read_texts, sentences, stretches

__all__ = [
    "TASKS",
    "Pairs",
    "Task",
    "builtin_pairs",
    "load",
    "load_pairs",
    "load_task",
    "load_texts",
    "read_texts",
    "sentences",
    "stretches",
]
