"""Errors a user can mend, and files and folders that appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinline import files, folders
from twinline.errors import MissingExtra, TwinlineError, require
from twinline.files import whole_file, writable_folder, write_whole
from twinline.folders import whole_folder
from twinline.hashing import fingerprint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_require_imports_what_is_there() -> None:
    assert require("json.decoder", "server").JSONDecoder


@pytest.mark.parametrize("kind", [TwinlineError, ImportError, ValueError])
def test_require_names_the_extra(kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"no_such_library.*pip install 'twinline\[server\]'"):
        require("no_such_library.part", "server")


def test_require_lets_a_broken_module_speak_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("from json import no_such_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no_such_name") as caught:
        require("broken_library", "server")
    assert not isinstance(caught.value, MissingExtra)


def test_importing_these_loads_nothing_heavy() -> None:
    code = (
        "import sys, twinline.errors, twinline.files, twinline.statistics;"
        "print({'numpy', 'scipy', 'torch', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_whole_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("1")
        assert folder.parent == target.parent
        assert not target.exists()
    assert names(target) == ["weights"]
    assert names(target.parent) == ["model"]


def model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def save(target: Path, *names: str, **options: bool) -> None:
    """A model's config of our type, and other files, as a save writes them."""
    with whole_folder(target, **options) as folder:
        (folder / "config.json").write_text('{"model_type": "twinline"}')
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, TwinlineError])
def test_whole_folder_leaves_the_old_one_on_any_error(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "model"
    save(target)

    def overwrite() -> None:
        with whole_folder(target) as folder:
            (folder / "config.json").write_text("new")
            raise error

    with pytest.raises(error):
        overwrite()
    assert model_type(target) == "twinline"
    assert names(tmp_path) == ["model"]


def test_whole_folder_replaces_and_removes_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save(target, "modules.json", "1_Pooling/config.json", "2_Normalize/config.json")
    (target / "1_Pooling" / "notes").touch()
    (target / "thesis").touch()
    save(target, "modules.json", "similarity.json")
    assert names(target) == [
        "1_Pooling",
        "config.json",
        "modules.json",
        "similarity.json",
        "thesis",
    ]
    assert names(target / "1_Pooling") == ["notes"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("config", ['{"model_type": "bert"}', '{"name": "my-app"}', "[]", "x"])
def test_a_config_of_others_is_not_ours(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "thesis").write_text("years of work")
    with pytest.raises(TwinlineError, match=r"config\.json that Twinline did not write.*overwrite"):
        save(tmp_path, "modules.json")
    with pytest.raises(TwinlineError, match="did not write"):
        folders.output_folder(tmp_path, "output")
    assert names(tmp_path) == ["config.json", "thesis"]
    assert (tmp_path / "config.json").read_text() == config
    assert folders.output_folder(tmp_path, "output", overwrite=True) == tmp_path
    save(tmp_path, overwrite=True)
    assert model_type(tmp_path) == "twinline"
    assert names(tmp_path) == ["config.json", "thesis"]


def test_a_list_of_files_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save(target)
    (tmp_path / "thesis").touch()
    (target / "notes").touch()
    config = json.loads((target / "config.json").read_text())
    empty = fingerprint([b""])
    for name in ("../thesis", "notes", str(tmp_path / "thesis")):
        config["twinline"]["files"][name] = empty
    (target / "config.json").write_text(json.dumps(config))
    save(target)
    assert names(tmp_path) == ["model", "thesis"]
    assert names(target) == ["config.json", "notes"]


def test_a_file_where_a_folder_is_needed_is_told_before_anything_moves(tmp_path: Path) -> None:
    save(tmp_path, "modules.json")
    (tmp_path / "1_Pooling").write_text("mine")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(TwinlineError, match="1_Pooling is a file where a folder"):
        save(tmp_path, "1_Pooling/config.json", overwrite=True)
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "1_Pooling").read_text() == "mine"


def test_only_our_work_is_removed(tmp_path: Path) -> None:
    work = files.work_folder(tmp_path / "m")
    (work / "transfer").mkdir(parents=True)
    (work / "checkpoint.pt").touch()
    (work / "transfer" / ".checkpoint.pt.partial-7").touch()  # a kill left it
    assert files.work_folder(tmp_path / "m") == work
    for theirs in (work / "thesis", work / "transfer" / "thesis"):
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.touch()
        with pytest.raises(TwinlineError, match="in the way"):
            files.work_folder(tmp_path / "m")
        files.remove_work(work)
        assert files.files_below(work) == [str(theirs.relative_to(work))]
        theirs.unlink()
    files.remove_work(work)
    assert names(tmp_path) == []


def test_whole_folder_takes_an_empty_folder_and_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "weights").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["weights"]


@pytest.mark.parametrize("failing_move", range(1, 4))
def test_whole_folder_puts_the_old_one_back_if_a_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_move: int
) -> None:
    target = tmp_path / "model"
    save(target, "modules.json", "2_Normalize/config.json")
    (target / "thesis").touch()
    before = {name: (target / name).read_bytes() for name in files.files_below(target)}
    replace, moves = os.replace, []

    def failing(source: Path, destination: Path) -> None:
        moves.append(source)
        if len(moves) == failing_move:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(TwinlineError, match="no space is left"):
        save(target, "modules.json", "similarity.json")
    assert {name: (target / name).read_bytes() for name in files.files_below(target)} == before
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("number", "fragment"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EACCES, "permission is denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_whole_folder_tells_an_error_of_the_system(
    tmp_path: Path, number: int, fragment: str
) -> None:
    target = tmp_path / "model"
    with pytest.raises(TwinlineError, match=fragment) as caught, whole_folder(target):
        raise OSError(number, os.strerror(number))
    assert str(target) in str(caught.value)
    assert names(tmp_path) == []


def test_below_a_file_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("stays")
    with pytest.raises(TwinlineError, match=r"--output: .*file is a file"):
        writable_folder(tmp_path / "file" / "below", "--output")
    with pytest.raises(TwinlineError, match="a file stands"), whole_folder(tmp_path / "file/below"):
        pytest.fail("the block must not run")
    with pytest.raises(TwinlineError, match="is a file"), whole_folder(tmp_path / "file"):
        pytest.fail("the block must not run")
    with pytest.raises(TwinlineError, match="a file stands"):
        write_whole(tmp_path / "file" / "below", "text")
    assert (tmp_path / "file").read_text() == "stays"


def test_writable_folder_makes_nothing(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "a" / "b", "--output") == tmp_path / "a" / "b"
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_writable_folder_refuses_a_closed_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TwinlineError, match="may not be written to"):
        writable_folder(tmp_path / "a", "--output")


@pytest.mark.parametrize("content", ["grüße\r\n", b"\x00\xff"])
def test_write_whole_writes_exactly(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, "before")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file"]


def test_write_whole_keeps_the_old_content_on_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fill_up() -> None:
        with whole_file(path) as file:
            file.write(b"n")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TwinlineError, match="no space is left"):
        fill_up()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
