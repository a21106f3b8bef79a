"""Running prose that the package makes itself, where there is no other: plain, but of two voices.

Sentences about weather, ledgers and journeys from a small grammar: unlike the built-in pairs, which
tell of people doing things, so that a long text's one such sentence can be found.
"""

from __future__ import annotations

import random

DOCUMENTS = {"train": 6, "validation": 3, "test": 3}
PARAGRAPHS, SENTENCES = 120, 8
"""Of each document; about ten thousand tokens."""

OPENINGS = (
    "By the end of that season", "In the older records", "Toward evening", "Some years afterwards",
    "As the minutes of the council show", "On the northern road", "It is said that",
    "Before the harbour was enlarged", "Without any warning", "According to the almanac",
)  # fmt: skip
SUBJECTS = (
    "the price of grain", "the western boundary", "a thin and persistent fog",
    "the report of the surveyors", "the level of the reservoir", "the question of the inheritance",
    "the ferry timetable", "an unusually mild winter", "the correspondence of the two houses",
    "the reputation of the vineyard", "the ordinance concerning timber", "the quarrel over tithes",
)  # fmt: skip
VERBS = (
    "remained a matter of dispute", "had altered beyond recognition", "was seldom mentioned again",
    "kept the clerks occupied for weeks", "proved to be of little consequence",
    "gave rise to the wildest conjectures", "continued very much as before",
    "was settled to nobody's satisfaction", "had been foreseen by the elder partner",
    "became the chief concern of the parish",
)  # fmt: skip
TAILS = (
    "although the accounts differ", "and the archive is silent about the rest",
    "for reasons that were never disclosed", "until the following Michaelmas",
    "which surprised even its opponents", "at a cost of some four hundred crowns",
    "as the almanac had predicted", "much to the relief of the magistrates",
    "and so the matter rested", "except in the years of drought",
)  # fmt: skip


def builtin_prose(split: str) -> dict[str, str]:
    """Documents of ``split`` by name, the same on every machine; no sentence is in two splits."""
    draw = random.Random(f"prose {split}")

    def pick(words: tuple[str, ...]) -> str:
        return words[int(draw.random() * len(words))]

    def sentence() -> str:
        year = 1700 + 3 * int(draw.random() * 60) + list(DOCUMENTS).index(split)
        return f"{pick(OPENINGS)}, {pick(SUBJECTS)} of {year} {pick(VERBS)}, {pick(TAILS)}."

    return {
        f"{split}-{number}": "\n\n".join(
            " ".join(sentence() for _ in range(SENTENCES)) for _ in range(PARAGRAPHS)
        )
        for number in range(DOCUMENTS[split])
    }
