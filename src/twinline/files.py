"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from .arguments import flag
from .errors import TwinlineError
from .ownership import (
    CONFIG,
    LOG,
    READ_BESIDE,
    README,
    TWIN_FILES,
    WEIGHTS,
    WORK_FILES,
    files_below,
    is_our_readme,
    leftovers,
    matches,
    saved_files,
    seal,
    written_files,
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


def output_folder(
    path: str | Path,
    option: str,
    overwrite: bool = False,
    names: Iterable[str] = (*TWIN_FILES, LOG),
) -> Path:
    """``writable_folder``, in which none of ``names`` is a file of others: refused before the work.

    Raises:
        TwinlineError: as ``writable_folder``, or naming the file, unless ``overwrite`` is true.
    """
    folder = writable_folder(path, option)
    _refuse_foreign(folder, names, flag("overwrite", overwrite))
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
    _remove_empty([*work.glob("*/"), work])


@contextmanager
def whole_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder whose files are put into ``path`` when the block ends well.

    Files of the same names there are replaced if Twinline wrote them (``ownership``) or
    ``overwrite`` is true; files of an earlier save that this one does not write are removed; all
    others stay as they are. A ``README.md`` of others always stays. On any error, an interrupt
    included, ``path`` is as it was before.

    A model's weights are put in place first and its ``config.json`` last. Both carry the save's
    id, so that what a kill leaves in between is refused when it is loaded.

    Raises:
        TwinlineError: ``path`` is a file, holds files of others with these names, or the block
            or the moves into place met an ``OSError``.
    """
    target, overwrite = absolute_path(path), flag("overwrite", overwrite)
    partial = None
    try:
        if os.path.lexists(target) and not target.is_dir():
            raise TwinlineError(f"{target} is a file; name a folder instead.")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _new_folder(target, "partial")
        with _locked(partial):
            yield partial
            if os.path.lexists(target / README) and not is_our_readme(target / README):
                (partial / README).unlink(missing_ok=True)
            seal(partial)
            _move_in(partial, target, overwrite)
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
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write that becomes ``path`` only when the block ends well.

    Raises:
        TwinlineError: the file cannot be written.
    """
    target = absolute_path(path)
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


def _beside(target: Path, what: str) -> Path:
    """A hidden sibling: the same file system, so that a rename moves it."""
    return target.with_name(f".{target.name}.{what}-{uuid4().hex[:12]}")


def _new_folder(target: Path, what: str) -> Path:
    """A hidden folder on the target's own file system, so that renames move what is in it.

    It stands beside the target, or in it where that is a mount or nothing may be put beside it.
    """
    inside = target.is_dir() and (
        os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK)
    )
    folder = _beside(target, what)
    folder = target / folder.name if inside else folder
    folder.mkdir()
    return folder


def _refuse_foreign(target: Path, names: Iterable[str], overwrite: bool) -> None:
    """Refuse to write files of these names over those of others, or through a file."""
    ours = written_files(target)
    for name in names:
        above = [target / part for part in Path(name).parents if part.name]
        if blocked := [place for place in above if os.path.lexists(place) and not place.is_dir()]:
            raise TwinlineError(f"{blocked[0]} is a file where a folder is needed: move it.")
        if (target / name).is_dir():
            raise TwinlineError(f"{target / name} is a folder where a file is needed: move it.")
        if os.path.lexists(target / name) and name not in ours and not overwrite:
            raise TwinlineError(
                f"{target} holds a {name} that Twinline did not write, and was left alone: name "
                "another folder, or give overwrite=True (--overwrite) to replace it."
            )


def _move_in(partial: Path, target: Path, overwrite: bool) -> None:
    """Put the files of ``partial`` into ``target``; on any error ``target`` is as before."""
    if not target.exists():
        try:
            os.replace(partial, target)
            return
        except OSError:
            if not target.exists():  # else another process has made it in the meantime
                raise
    with _locked(target):  # one writer at a time
        names = files_below(partial)
        if CONFIG not in names:  # a card alone, beside whatever is there
            _refuse_foreign(target, names, overwrite)
            _exchange(partial, target, names, set())
            return
        _refuse_foreign(target, [*names, *READ_BESIDE], overwrite)
        first = [name for name in names if matches(name, WEIGHTS)]
        between = [name for name in names if name not in (*first, CONFIG)]
        beside = {name for name in READ_BESIDE if os.path.lexists(target / name)}
        stale = (saved_files(target) | beside) - {*names}
        _exchange(partial, target, [*first, *between, *sorted(stale), CONFIG], stale)
        _remove_leftovers(target)


def _exchange(partial: Path, target: Path, order: list[str], stale: set[str]) -> None:
    """Replace files one after another, and remove those that are stale; all or none."""
    old = _new_folder(target, "old")
    replaced: list[str] = []
    added: list[str] = []
    try:
        for name in order:
            if os.path.lexists(target / name):
                _set_aside(target / name, old / name)
                replaced.append(name)
            elif name not in stale:
                added.append(name)
            if name in stale:
                (target / name).unlink(missing_ok=True)
            else:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / name, target / name)
    except BaseException:
        for name in replaced:
            os.replace(old / name, target / name)
            (old / name).unlink(missing_ok=True)  # nothing is moved between two links to one file
        for name in added:
            (target / name).unlink(missing_ok=True)
        emptied = {(target / name).parent for name in added} - {target}
        _remove_empty([*old.glob("*/"), old, *emptied])
        raise
    # What was replaced is kept until all is in place: a kill loses neither.
    shutil.rmtree(old, ignore_errors=True)
    _remove_empty({(target / name).parent for name in stale} - {target})


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock inside the block, against threads and processes; whether that is so.

    Where there are no locks (Windows, some network file systems) the block runs without.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove what saves into ``target`` left that were killed: nobody holds its lock any more."""
    for place in leftovers(target):
        with suppress(OSError), _locked(place, wait=False) as abandoned:
            # An empty one may be about to be locked; not an old one, which needs the target's.
            if abandoned and (".old-" in place.name or any(place.iterdir())):
                shutil.rmtree(place, ignore_errors=True)


def _set_aside(file: Path, place: Path) -> None:
    """Keep a file at ``place`` too, so that it can be put back; no reader misses it meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place, follow_symlinks=False)
    except (NotImplementedError, OSError):  # a file system without hard links
        os.replace(file, place)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of ``folders`` that hold nothing."""
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _remove_file(path: Path) -> None:
    # Not Path.unlink(missing_ok=True): below a file it raises NotADirectoryError.
    if path.is_file():
        path.unlink()


def _unwritten(target: Path, error: OSError) -> TwinlineError:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    culprit = error.filename
    place = f" (at {culprit})" if culprit and not str(culprit).startswith(str(target)) else ""
    return TwinlineError(f"Could not write {target}{place}: {reason}.")
