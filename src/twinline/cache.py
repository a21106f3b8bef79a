"""Teacher scores on disk: each pair is scored once, and a changed teacher or text misses."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from .errors import TwinlineError
from .files import absolute_path
from .text import Pair

BUSY_SECONDS = 10.0
"""How long a process waits for another one that writes to the same file."""
APPLICATION = 0x54574C4E
"""Marks the file as Twinline's (SQLite's ``application_id``); "TWLN" in ASCII. Caches of the first
version have 0 there."""
COLUMNS = [("key", "BLOB"), ("score", "REAL")]


class ScoreCache:
    """An SQLite file of scores, keyed by the teacher's fingerprint and the two texts.

    It holds no connection, so that threads, forked processes and pickled copies share the file.
    SQLite commits are atomic: a killed process loses at most the scores of its last batch.

    Raises: TwinlineError, now and whenever it is used, if the file cannot be read or written, or
        is another program's; such a one is not changed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = absolute_path(path, "cache")  # a process may change its folder later on
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TwinlineError(
                f"The score cache {self.path} cannot be used ({error.strerror}): name another file."
            ) from error
        with self._connection():
            pass  # what cannot be used is refused now

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
        with self._connection() as connection:
            for pair in pairs:
                row = connection.execute(
                    "SELECT score FROM scores WHERE key = ?", (self.key(teacher, pair),)
                ).fetchone()
                if row is not None and not (isinstance(row[0], float) and math.isfinite(row[0])):
                    raise TwinlineError(
                        f"The score cache {self.path} holds {row[0]!r:.40} as a score, which is no "
                        "finite number: remove the file, or name another."
                    )
                found.append(None if row is None else row[0])
        return found

    def put(self, teacher: str, pairs: Sequence[Pair], scores: Sequence[float]) -> None:
        rows = [(self.key(teacher, p), float(s)) for p, s in zip(pairs, scores, strict=True)]
        with self._connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)

    def _make_table(self, connection: sqlite3.Connection) -> None:
        """Make a new file ours; refuse another program's."""
        connection.execute("BEGIN IMMEDIATE")  # and so says if nothing can be written
        if _is_new(connection):
            connection.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL NOT NULL)")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
        elif not _is_ours(connection):
            raise TwinlineError(
                f"The score cache {self.path} is another program's database: name another file."
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, which is kept if the block ends well."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as one, one:
                if not _is_ours(one):
                    self._make_table(one)
                yield one
        except sqlite3.Error as error:
            raise TwinlineError(f"The score cache {self.path} {_reason(error)}.") from error


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether nobody has written anything into a database."""
    marks = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version", "schema_version")
    ]
    return not any(marks)


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Whether a database holds our table, and nothing else."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type != 'index'").fetchall()
    objects = [name for (name,) in tables if not name.startswith("sqlite_")]  # SQLite's own
    columns = [(c[1], c[2]) for c in connection.execute("PRAGMA table_info(scores)").fetchall()]
    return mark in (0, APPLICATION) and objects == ["scores"] and columns == COLUMNS


def _reason(error: sqlite3.Error) -> str:
    """What is wrong with a cache's file, and the remedy."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "is locked: another process is writing to it; wait for it, or name another file"
    if primary == sqlite3.SQLITE_NOTADB:
        return "is no score cache but a file of another kind: name another file"
    if primary == sqlite3.SQLITE_CORRUPT:
        return "is damaged: remove it, or name another file"
    if primary == sqlite3.SQLITE_FULL:
        return "cannot be written, as the disk is full: free some space, or name another file"
    return f"cannot be used ({error}): name another file"
