"""Files that appear whole or not at all, and paths that can be written."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from .errors import TwinlineError
from .ownership import (
    WORK_FILES,
    files_below,
    matches,
)

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
    folder = absolute_path(path, option)
    # Not Path.exists, which raises where a parent may not be looked into.
    standing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not standing.is_dir():
        raise TwinlineError(f"{option}: {standing} is a file; name a folder instead.")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise TwinlineError(f"{option}: {standing} may not be written to; name another folder.")
    return folder


def output_file(path: str | Path, suffix: str, overwrite: bool = False) -> Path:
    """Say early whether a new file can be written at ``path``; makes nothing.

    Raises:
        TwinlineError: its name has another suffix, its folder cannot be written to, or a file
            stands there and ``overwrite`` is false.
    """
    file = absolute_path(path, "output")
    writable_folder(file.parent, "output")
    if file.suffix != suffix:
        raise TwinlineError(f"output must be a {suffix} file, not {file}.")
    if file.is_dir():
        raise TwinlineError(f"output: {file} is a folder; name a file.")
    if os.path.lexists(file) and not overwrite:
        raise TwinlineError(
            f"output: {file} is there already; name another file, or add --overwrite to replace it."
        )
    return file


def work_folder(output: Path) -> Path:
    """The folder beside an output where its run keeps checkpoints; makes nothing.

    Raises:
        TwinlineError: a folder of that name holds something else.
    """
    work = writable_folder(output.with_name(output.name + ".work"), "the run's checkpoints")
    others = [name for name in files_below(work) if not matches(name, WORK_FILES)]
    if os.path.lexists(work) and (others or not work.is_dir()):
        raise TwinlineError(
            f"{work} is in the way of this run's checkpoints: move it, or name another output"
        )
    return work


def remove_work(work: Path) -> None:
    """Remove a run's files from its work folder, and the folders that are then empty."""
    for name in files_below(work):
        if matches(name, WORK_FILES):
            (work / name).unlink(missing_ok=True)
    remove_empty([*work.glob("*/"), work])


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write that becomes ``path`` only when the block ends well.

    Raises:
        TwinlineError: the file cannot be written.
    """
    target = absolute_path(path)
    partial = hidden_sibling(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
        os.replace(partial, target)
    except OSError as error:
        raise unwritten(target, error) from error
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


def absolute_path(path: Any, option: str = "the path") -> Path:
    """A path that files can have, absolute, with links followed.

    Links are followed so that the folder behind a link is written, and not the link.

    Raises: TwinlineError naming ``option`` if it is empty or no path.
    """
    try:
        if not isinstance(path, (str, Path)) or not str(path):
            raise TypeError("it is empty" if path in ("", None) else "it is no path")
        found = Path(path).expanduser().resolve()
        os.path.lexists(found)  # fails for a NUL
        return found
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise TwinlineError(
            f"{option} must be a file's or a folder's path, not {path!r:.60} ({error})."
        ) from error


def hidden_sibling(target: Path, what: str) -> Path:
    """A hidden sibling: the same file system, so that a rename moves it."""
    return target.with_name(f".{target.name}.{what}-{uuid4().hex[:12]}")


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of ``folders`` that hold nothing."""
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _remove_file(path: Path) -> None:
    # Not Path.unlink(missing_ok=True): below a file it raises NotADirectoryError.
    if path.is_file():
        path.unlink()


def unwritten(target: Path, error: OSError) -> TwinlineError:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    culprit = error.filename
    place = f" (at {culprit})" if culprit and not str(culprit).startswith(str(target)) else ""
    return TwinlineError(f"Could not write {target}{place}: {reason}.")
