"""Folders that are saved whole: put in place file by file, one writer at a time, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from .arguments import flag
from .errors import TwinlineError
from .files import absolute_path, hidden_sibling, remove_empty, unwritten, writable_folder
from .ownership import (
    CARD,
    CONFIG,
    LOG,
    MODEL_FILES,
    READ_BESIDE,
    README,
    TWIN_FILES,
    WEIGHTS,
    files_below,
    is_card,
    is_card_of_itself,
    is_our_readme,
    leftovers,
    matches,
    saved_files,
    seal,
    written_files,
)

PATIENCE = 60.0
"""Seconds that a save waits for another one into the same folder."""
READ_AGAIN = 20
"""How often a folder is read anew while saves into it go on."""
FRESH = 60.0
"""Seconds in which an empty folder may still be about to be filled."""
Result = TypeVar("Result")


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
    with _locked(folder) as free:
        if free is False:
            raise _busy(folder)
    return folder


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
        raise unwritten(target, error) from error
    except Exception as error:
        # safetensors and tokenizers write in Rust and raise kinds of their own, with the number.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise unwritten(target, OSError(int(number[1]), str(error))) from error
        raise
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _new_folder(target: Path, what: str) -> Path:
    """A hidden folder on the target's own file system, so that renames move what is in it.

    It stands beside the target, or in it where that is a mount or nothing may be put beside it.
    """
    inside = target.is_dir() and (
        os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK)
    )
    folder = hidden_sibling(target, what)
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
    with _locked(target, wait=PATIENCE) as free:  # one writer at a time
        if free is False:
            raise _busy(target)
        names = files_below(partial)
        if CONFIG not in names:  # a card alone, beside whatever is there
            _refuse_foreign(target, names, overwrite)
            _exchange(partial, target, names, set())
            return
        _refuse_foreign(target, [*names, *READ_BESIDE], overwrite)
        stale = saved_files(target) - {*names}
        card = CARD not in (*names, *stale) and is_card(target / CARD)
        if card and not is_card_of_itself(target / CARD):
            if not overwrite:
                raise TwinlineError(
                    f"{target} holds a {CARD}, which would stand for this model where a teacher "
                    "is asked for: name another folder, or give overwrite=True to remove it."
                )
            stale.add(CARD)
        first = [name for name in names if matches(name, WEIGHTS)]
        between = [name for name in names if name not in (*first, CONFIG)]
        stale |= {n for n in READ_BESIDE if os.path.lexists(target / n)} - {*names}
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
        remove_empty([*old.glob("*/"), old, *emptied])
        raise
    # What was replaced is kept until all is in place: a kill loses neither.
    shutil.rmtree(old, ignore_errors=True)
    remove_empty({(target / name).parent for name in stale} - {target})


@contextmanager
def _locked(folder: Path, wait: float = 0.0) -> Iterator[bool | None]:
    """Hold a folder's lock inside the block, against threads and processes; whether that is so.

    Args:
        wait: seconds to wait for whoever holds it now.
    Yields: None where there are no locks (Windows, some network file systems).
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield None
        return
    held: bool | None = False
    until = time.monotonic() + wait
    try:
        while not held:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if time.monotonic() >= until:
                    break
                time.sleep(0.02)
            except OSError:
                held = None
                break
        yield held
    finally:
        if held:  # a process that was forked meanwhile would keep it
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _busy(folder: Path) -> TwinlineError:
    return TwinlineError(
        f"{folder} is locked by another process, which may be saving into it: wait for that one, "
        "or name another folder."
    )


def is_being_saved(folder: Path) -> bool:
    """Whether another thread or process is saving into a folder right now."""
    for place in leftovers(folder):
        with _locked(place) as free:
            if free is False:
                return True
    return False


def read_whole(folder: Path, read: Callable[[], Result]) -> Result:
    """What ``read`` makes of a folder's files, all of one save.

    Where a save goes on meanwhile, they are read again.
    """
    for _ in range(READ_AGAIN):
        before, saving = _state(folder), is_being_saved(folder)
        try:
            found = read()
        except TwinlineError:
            if not saving and _state(folder) == before:
                raise
        else:
            if _state(folder) == before:
                return found
        time.sleep(0.1)
    return read()


def _state(folder: Path) -> list[tuple[int, int] | None]:
    """Which files stand in a folder: every save puts others there."""
    names = (CONFIG, "model.safetensors", "tokenizer.json", "similarity.json")
    found: list[tuple[int, int] | None] = []
    for name in names:
        try:
            facts = (folder / name).stat()
            found.append((facts.st_ino, facts.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def _remove_leftovers(target: Path) -> None:
    """Remove what saves into ``target`` left that were killed: nobody holds its lock any more."""
    for place in leftovers(target):
        with suppress(OSError), _locked(place) as free:
            files = files_below(place)
            ours = all(matches(n.removesuffix(".stamped"), MODEL_FILES) for n in files)
            # An empty one may be about to be locked by the save that made it.
            fresh = not files and time.time() - place.stat().st_mtime < FRESH
            if free and ours and not (fresh and ".partial-" in place.name):
                shutil.rmtree(place, ignore_errors=True)


def _set_aside(file: Path, place: Path) -> None:
    """Keep a file at ``place`` too, so that it can be put back; no reader misses it meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place, follow_symlinks=False)
    except (NotImplementedError, OSError):  # a file system without hard links
        os.replace(file, place)
