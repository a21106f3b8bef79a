"""Teacher scores on disk: each pair is scored once, and a changed teacher or text misses."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from .errors import TwinlineError

Pair = tuple[str, str]


class ScoreCache:
    """An SQLite file of scores, keyed by the teacher's fingerprint and the two texts.

    SQLite commits are atomic: a killed process loses at most the scores of its last batch.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(self.path)
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise TwinlineError(
                f"The score cache {self.path} cannot be used ({error}): name another file."
            ) from error

    @staticmethod
    def key(teacher: str, pair: Pair) -> bytes:
        first = pair[0].encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(f"{teacher} {len(first)} ".encode())
        digest.update(first)
        digest.update(pair[1].encode("utf-8", "surrogatepass"))
        return digest.digest()

    def get(self, teacher: str, pairs: Sequence[Pair]) -> list[float | None]:
        """Scores of the pairs that are known, None for the others."""
        found: list[float | None] = []
        for pair in pairs:
            row = self.connection.execute(
                "SELECT score FROM scores WHERE key = ?", (self.key(teacher, pair),)
            ).fetchone()
            found.append(None if row is None else float(row[0]))
        return found

    def put(self, teacher: str, pairs: Sequence[Pair], scores: Sequence[float]) -> None:
        rows = [(self.key(teacher, p), float(s)) for p, s in zip(pairs, scores, strict=True)]
        try:
            with self.connection:
                self.connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise TwinlineError(
                f"The score cache {self.path} cannot be written ({error}): free some space or "
                "name another file."
            ) from error

    def close(self) -> None:
        self.connection.close()
