"""Field cases of files: what is in a table comes out of it, and a score cache is shared or refused.

The numbers in the tests' names are those of the cases.
"""

import pickle
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from twinline import Encoder, Teacher
from twinline.cache import ScoreCache
from twinline.data import load_pairs, load_texts
from twinline.errors import TwinlineError

HEADER = "sentence1\tsentence2\tscore\n"


def test_field_17_quotes_in_a_tsv_are_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    cells = [('"Stop', "halt"), ('a 5" pipe', "a tube"), ("he said", 'go"'), ('""', '"whole"')]
    path.write_text(
        HEADER + "".join(f"{a}\t{b}\t{n}\n" for n, (a, b) in enumerate(cells)), encoding="utf-8"
    )
    pairs = load_pairs(path, scale=(0, 5))
    assert list(zip(pairs.sentence1, pairs.sentence2, strict=True)) == cells
    assert pairs.score is not None
    assert pairs.score.tolist() == [0, 1, 2, 3]
    (tmp_path / "texts.tsv").write_text('text\n"one\n\ntwo"\nthree\n', encoding="utf-8")
    assert load_texts(tmp_path / "texts.tsv") == ['"one', 'two"', "three"]


def test_field_17_a_quote_and_one_some_rows_later_do_not_make_one_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(f'{HEADER}"one\tb\t1\nc\td\t2\ne"\tf\t3\ng\th\t4\n', encoding="utf-8")
    pairs = load_pairs(path, scale=(0, 5))
    assert pairs.sentence1 == ['"one', "c", 'e"', "g"]


@pytest.mark.parametrize(
    ("row", "count"), [("a\tb\tc\t1", 4), ("a\tb", 2), ('"a\nb"\tc\t1', 1)],
    ids=["a cell more", "a cell fewer", "a line break in quotes"],
)  # fmt: skip
def test_field_17_a_tsv_row_of_other_cells_is_refused_with_its_line(
    tmp_path: Path, row: str, count: int
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{HEADER}x\ty\t0\n{row}\nz\tw\t2\n", encoding="utf-8")
    with pytest.raises(TwinlineError, match=rf"pairs\.tsv, line 3: {count} cells? but 3 columns"):
        load_pairs(path, scale=(0, 5), need_score=False)


def test_field_17_long_cells_and_a_byte_order_mark_in_tsv(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    long = '"word ' * 100_000
    path.write_bytes(f"\ufeff{HEADER}{long}\tb\t0\r\nc\td\t1\r\n".encode())
    pairs = load_pairs(path, scale=(0, 1))
    assert pairs.sentence1 == [long, "c"]
    assert pairs.sentence2 == ["b", "d"]


PAIRS = [("a man", "a woman"), ("dogs run", "the sun")]


@pytest.fixture
def teacher(tiny_bert: Path, tmp_path: Path) -> Teacher:
    return Teacher(Encoder(tiny_bert), cache=tmp_path / "scores.sqlite")


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=60)


def test_field_18_a_cache_works_in_another_thread(teacher: Teacher) -> None:
    first = in_thread(lambda: teacher.predict(PAIRS))
    assert (teacher.predict(PAIRS) == first).all()
    assert (in_thread(lambda: teacher.predict(PAIRS)) == first).all()


def test_field_18_a_pickled_cache_is_the_same_file(teacher: Teacher) -> None:
    known = pickle.loads(pickle.dumps(teacher.cache))
    known.put("t", PAIRS, [0.25, 0.5])
    assert teacher.cache is not None
    assert teacher.cache.get("t", [*PAIRS, ("x", "y")]) == [0.25, 0.5, None]


def test_field_18_many_processes_write_one_cache(tmp_path: Path) -> None:
    shared = ScoreCache(tmp_path / "scores.sqlite")

    def write(number: int) -> None:
        for i in range(20):
            shared.put("t", [(str(number), str(i))], [number + i / 100])

    workers = [get_context("fork").Process(target=write, args=(n,)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    for number in range(3):
        pairs = [(str(number), str(i)) for i in range(20)]
        assert shared.get("t", pairs) == [number + i / 100 for i in range(20)]


def test_field_18_the_file_stays_when_the_folder_changes(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = Teacher(Encoder(tiny_bert), cache="scores.sqlite")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    scores = teacher.predict(PAIRS)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert teacher.cache is not None
    kept = ScoreCache(tmp_path / "scores.sqlite").get(teacher.fingerprint, PAIRS)
    assert kept == scores.tolist()


def test_field_18_a_locked_cache_says_so(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinline.cache.BUSY_SECONDS", 0.05, raising=False)
    path = tmp_path / "scores.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for use in (lambda: teacher.predict(PAIRS), lambda: ScoreCache(path)):
            with pytest.raises(TwinlineError, match=r"scores\.sqlite is locked: another process"):
                use()
        other.execute("ROLLBACK")
    assert len(teacher.predict(PAIRS)) == 2


FOREIGN = {
    "another table": ["CREATE TABLE notes (text TEXT)"],
    "a table of our name": ["CREATE TABLE scores (player TEXT, points INTEGER)"],
    "our table and another": ["CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL NOT NULL)",
                              "CREATE TABLE notes (text TEXT)"],
    "our table, another's mark": ["PRAGMA application_id = 7",
                                  "CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL)"],
    "a mark and no table": ["PRAGMA application_id = 7"],
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_field_18_another_programs_database_is_refused_and_unchanged(
    tiny_bert: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "scores.sqlite"
    with closing(sqlite3.connect(path)) as other, other:
        for line in FOREIGN[name]:
            other.execute(line)
    before = path.read_bytes()
    with pytest.raises(TwinlineError, match="is another program's database: name another file"):
        Teacher(Encoder(tiny_bert), cache=path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"hello", b"a page of text. " * 500, b"SQLite format 3\0" * 9])
def test_field_18_a_file_of_another_kind_is_refused_and_unchanged(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(TwinlineError, match=r"score cache .*notes\.txt .*name another file"):
        ScoreCache(path)
    assert path.read_bytes() == content


def test_field_18_a_cache_of_the_first_version_still_serves(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL)")
        old.execute("INSERT INTO scores VALUES (?, 0.75)", (ScoreCache.key("t", PAIRS[0]),))
    assert ScoreCache(path).get("t", PAIRS) == [0.75, None]


@pytest.mark.parametrize("value", [float("inf"), "high", b"\0"])
def test_field_18_a_score_that_is_no_number_is_refused(
    teacher: Teacher, tmp_path: Path, value: object
) -> None:
    path = tmp_path / "scores.sqlite"
    teacher.predict(PAIRS)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE scores SET score = ?", (value,))
    with pytest.raises(TwinlineError, match=r"scores\.sqlite holds .* as a score, which is no fin"):
        teacher.predict(PAIRS)


def test_field_18_a_damaged_cache_is_refused_in_one_sentence(
    teacher: Teacher, tmp_path: Path
) -> None:
    path = tmp_path / "scores.sqlite"
    teacher.predict(PAIRS)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    with pytest.raises(TwinlineError, match=r"scores\.sqlite .*name another"):
        teacher.predict(PAIRS)
