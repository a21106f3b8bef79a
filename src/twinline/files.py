"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import TwinlineError

_REASONS = {
    errno.ENOSPC: "no space is left on the device; free some or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EACCES: "permission is denied; choose a place you may write to",
    errno.EPERM: "permission is denied; choose a place you may write to",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def writable_folder(path: str | Path, option: str) -> Path:
    """Say early whether a folder can be written at ``path``; makes nothing.

    Meant for the start of long work, so that ``option`` is refused before hours are spent.

    Returns:
        The absolute path, ``~`` and links resolved.

    Raises:
        TwinlineError: ``path``, or what stands above it, is a file or may not be written to.
    """
    folder = _absolute(path)
    # Not Path.exists, which raises where a parent may not be looked into.
    standing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not standing.is_dir():
        raise TwinlineError(f"{option}: {standing} is a file; name a folder instead.")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise TwinlineError(f"{option}: {standing} may not be written to; name another folder.")
    return folder


def output_folder(path: str | Path, option: str) -> Path:
    """``writable_folder``, and refused now, not after the work, if others' files stand there.

    Raises:
        TwinlineError: as ``writable_folder``, or ``whole_folder`` would refuse it.
    """
    folder = writable_folder(path, option)
    _refuse_foreign(folder, replace=False)
    return folder


WORK = {"checkpoint.pt", "metrics.jsonl", "transfer", "distill", "retrieval", "scores.sqlite"}
"""All that a run keeps in its work folder."""


def work_folder(output: Path) -> Path:
    """The folder beside an output where its run keeps checkpoints; makes nothing.

    Raises:
        TwinlineError: a folder of that name holds something else.
    """
    work = output.with_name(output.name + ".work")
    if work.exists() and not (work.is_dir() and {p.name for p in work.iterdir()} <= WORK):
        raise TwinlineError(
            f"{work} is in the way of this run's checkpoints: move it, or name another output"
        )
    return work


def remove_work(work: Path) -> None:
    """Remove a run's work folder, and nothing that a run did not put there."""
    for name in WORK:
        if (work / name).is_dir():
            shutil.rmtree(work / name, ignore_errors=True)
        else:
            (work / name).unlink(missing_ok=True)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()


@contextmanager
def whole_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` only when the block ends well.

    On any error, an interrupt included, it is removed and what stood at ``path`` is as before.
    A folder that stands there is replaced if it is empty, if it is one of ours (a twinline model
    or a teacher), or if ``replace`` is true.

    Raises:
        TwinlineError: ``path`` is a file or somebody else's folder, or the block or the move
            into place met an ``OSError``.
    """
    target = _absolute(path)
    partial = _beside(target, "partial")
    try:
        _refuse_foreign(target, replace)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _move_over(partial, target)
    except TwinlineError:
        raise
    except OSError as error:
        raise _unwritten(target, error) from error
    except Exception as error:
        # safetensors and tokenizers write in Rust and raise kinds of their own, with the number.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise _unwritten(target, OSError(int(number[1]), str(error))) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write that becomes ``path`` only when the block ends well.

    Raises:
        TwinlineError: the file cannot be written.
    """
    target = _absolute(path)
    partial = _beside(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
        os.replace(partial, target)
    except OSError as error:
        raise _unwritten(target, error) from error
    finally:
        _remove_file(partial)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or all of the new; text as UTF-8.

    Raises:
        TwinlineError: the file cannot be written.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Lines of JSON; none if there is no file.

    Raises: TwinlineError naming the line that is none.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    made = []
    for number, line in enumerate(lines, 1):
        try:
            made.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise TwinlineError(
                f"{file}, line {number}, is not JSON: remove the file, and run the command again."
            ) from error
    return made


def into_marks(file: Path, mark: str, text: str) -> None:
    """Put ``text`` between a document's marks ``<!-- mark -->`` and ``<!-- /mark -->``, if any."""
    if not file.is_file():
        return
    before, begin, rest = file.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if begin and end:
        write_whole(file, before + begin + text + "\n" + end + after)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """A hash of texts in their order: equal for equal content on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def _absolute(path: str | Path) -> Path:
    # Links are followed, so that the folder behind a link is exchanged and not the link.
    return Path(path).expanduser().resolve()


def _beside(target: Path, what: str) -> Path:
    """A hidden sibling: the same file system, so that a rename moves it."""
    return target.with_name(f".{target.name}.{what}-{os.getpid()}")


def _refuse_foreign(target: Path, replace: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise TwinlineError(f"{target} is a file; name a folder that is new or empty.")
    if replace or _ours(target):
        return
    if any(target.iterdir()):
        raise TwinlineError(
            f"{target} holds files that are not ours and was left alone; name a folder that is "
            "new or empty."
        )


def _ours(folder: Path) -> bool:
    """Whether twinline wrote the folder: a model of its type, or a teacher's card."""
    if (folder / "teacher.json").is_file():
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "twinline"


def _move_over(partial: Path, target: Path) -> None:
    old = _beside(target, "old")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_file(path: Path) -> None:
    # Not Path.unlink(missing_ok=True): below a file it raises NotADirectoryError.
    if path.is_file():
        path.unlink()


def _unwritten(target: Path, error: OSError) -> TwinlineError:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    culprit = error.filename
    place = f" (at {culprit})" if culprit and not str(culprit).startswith(str(target)) else ""
    return TwinlineError(f"Could not write {target}{place}: {reason}.")
