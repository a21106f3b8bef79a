"""Progress of long work on standard error: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

EVERY = 30.0
"""Seconds between lines where standard error is not a terminal."""


class Progress:
    """``with Progress("transfer", total=600) as p: p.advance(loss=0.1)``.

    ``show``: True or False, or None to show only what takes longer than a moment in a terminal or
    a log that somebody reads (standard error).
    """

    def __init__(
        self, title: str, total: int | None, done: int = 0, show: bool | None = None
    ) -> None:
        self.title, self.total, self.done = title, total, done
        self.show = show is not False
        self.first = done
        self.started = self.told = time.monotonic()
        self.bar = None
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=False)
            self.task = self.bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif self.show and time.monotonic() - self.started > EVERY:
            self.tell({})

    def advance(self, count: int = 1, **figures: float | None) -> None:
        """Count ``count`` more done, with figures worth seeing (None ones are left out)."""
        self.done += count
        if self.bar:
            words = " ".join(f"{k} {v:.4g}" for k, v in figures.items() if v is not None)
            self.bar.update(self.task, completed=self.done, description=f"{self.title} {words}")
        elif self.show and time.monotonic() - self.told > EVERY:
            self.tell(figures)

    def tell(self, figures: dict[str, float | None]) -> None:
        self.told = time.monotonic()
        taken = self.told - self.started
        words = [f"{self.title}: {self.done}" + (f"/{self.total}" if self.total else "")]
        words += [f"{k} {v:.4g}" for k, v in figures.items() if v is not None]
        if self.total and self.done > self.first:
            left = taken / (self.done - self.first) * (self.total - self.done)
            words.append(f"{taken:.0f} s, about {left:.0f} s left")
        print(", ".join(words), file=sys.stderr, flush=True)
