"""Field cases 1 to 3 and 25: saving costs a user nothing, and a folder says how to load it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from twinline import Encoder, Teacher, TwinlineError, convert, distill, teach
from twinline.data import load_pairs

TEXTS = ["a man plays the guitar", "dogs run in the rain"]
PAIRS = [("a man plays", "a woman plays"), ("dogs run fast", "green grass")]
THESIS = "years of work"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def users_files(folder: Path) -> dict[str, bytes]:
    """Put files of a user's into a folder."""
    names = (".git/HEAD", "results/run.txt", "thesis.txt", "1_Pooling/notes.txt",
             "model-best/model-00001-of-00002.safetensors")  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(THESIS)
    (folder / "README.md").write_text("my own words")
    return {name: raw for name, raw in contents(folder).items() if raw == THESIS.encode()}


# 1: one known name made the whole folder ours


@pytest.mark.parametrize("card", ['{"name": "Mrs Smith"}', '{"members": ["me"]}', ""])
def test_field_01_a_known_name_does_not_make_a_folder_ours(
    student: Path, tmp_path: Path, card: str
) -> None:
    (tmp_path / "teacher.json").write_text(card)
    mine = users_files(tmp_path)
    Encoder(student).save(tmp_path)
    assert (tmp_path / "teacher.json").read_text() == card
    assert mine.items() <= contents(tmp_path).items()
    assert (Encoder(tmp_path).encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


def writers(
    student: Path, cross_encoder: Path, tiny_pairs: Path
) -> dict[str, Callable[[Path], object]]:
    from twinline.options import TeachOptions

    pairs = load_pairs(tiny_pairs, scale=(0, 1)).select(range(4))
    return {
        "encoder": lambda folder: Encoder(student).save(folder),
        "teacher": lambda folder: Teacher(cross_encoder, scale="logit").save(folder),
        "teach": lambda folder: teach(
            student.parent / "bert",
            pairs,
            folder,
            options=TeachOptions(epochs=0.1),
            show_progress=False,
        ),
    }


FOREIGN = {
    "encoder": ("config.json", "model.safetensors", "tokenizer.json", "modules.json"),
    "teach": ("config.json", "model.safetensors", "tokenizer.json", "teacher.json"),
    "teacher": ("teacher.json",),
}


@pytest.mark.parametrize(
    ("writer", "name"), [(writer, name) for writer, names in FOREIGN.items() for name in names]
)
def test_field_01_a_file_that_is_not_ours_is_refused_by_every_writer(
    student: Path, cross_encoder: Path, tiny_bert: Path, tiny_pairs: Path, tmp_path: Path,
    writer: str, name: str,
) -> None:  # fmt: skip
    if not (student.parent / "bert").exists():
        shutil.copytree(tiny_bert, student.parent / "bert")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"name": "theirs"}')
    mine = {**users_files(tmp_path / "out"), name: b'{"name": "theirs"}'}
    before = contents(tmp_path / "out")
    with pytest.raises(TwinlineError, match=rf"{re.escape(name)}.*did not write.*overwrite"):
        writers(student, cross_encoder, tiny_pairs)[writer](tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert mine.items() <= before.items()


def test_field_01_overwrite_replaces_those_files_alone(student: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("theirs")
    mine = users_files(tmp_path)
    Encoder(student).save(tmp_path, overwrite=True)
    assert mine.items() <= contents(tmp_path).items()
    assert (tmp_path / "README.md").read_text() == "my own words"
    Encoder(tmp_path)


def test_field_01_a_runs_folder_is_not_emptied(
    student: Path, tiny_bert: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    """Checkpoints, logs and work folders: the same mistake in training."""
    from twinline.cli import main
    from twinline.options import DistillOptions

    work = tmp_path / "out.work" / "transfer"
    work.mkdir(parents=True)
    (work / "thesis.txt").write_text(THESIS)
    texts = tmp_path / "texts.txt"
    texts.write_text("a man plays\n" * 4)
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "out"), "--base", str(tiny_bert), "--texts", str(texts),
              "--transfer.steps", "1"])  # fmt: skip
    assert (work / "thesis.txt").read_text() == THESIS

    pairs = load_pairs(tiny_pairs, scale=(0, 1)).select(range(4))
    for name, content in (("metrics.jsonl", '{"mine": 1}\n'), ("checkpoint.pt", "mine")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(TwinlineError, match=re.escape(name)):
            distill(
                Encoder(student), pairs, options=DistillOptions(alpha=0, epochs=0.1), folder=folder
            )
        assert contents(folder) == {name: content.encode()}


def test_field_01_vectors_and_pairs_do_not_replace_a_file(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from twinline.cli import main

    (tmp_path / "texts.txt").write_text("a man\nrain\n")
    out = tmp_path / "vectors.npy"
    np.save(out, np.arange(3))
    mine = out.read_bytes()
    command = ["encode", str(student), str(tmp_path / "texts.txt"), str(out)]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == mine
    main([*command, "--overwrite"])
    assert np.load(out).shape == (2, 16)
    (tmp_path / "pairs.parquet").write_text("mine")
    with pytest.raises(SystemExit):
        main(["long-pairs", str(tmp_path / "pairs.parquet"), "--data", "builtin"])
    assert (tmp_path / "pairs.parquet").read_text() == "mine"


# 2: saving into the folder that was loaded


def test_field_02_a_teacher_saved_into_its_own_folder_keeps_it(
    cross_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(cross_encoder, tmp_path / "ce")
    users_files(tmp_path / "ce")
    before = contents(tmp_path / "ce")
    teacher = Teacher(tmp_path / "ce", scale="logit")
    teacher.save(tmp_path / "ce")
    after = contents(tmp_path / "ce")
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"teacher.json"}
    (tmp_path / "ce").rename(tmp_path / "moved")
    assert Teacher(tmp_path / "moved").predict(PAIRS) == pytest.approx(teacher.predict(PAIRS))


def test_field_02_a_clone_keeps_git_readme_and_results(student: Path, tmp_path: Path) -> None:
    shutil.copytree(student, tmp_path / "clone")
    mine = users_files(tmp_path / "clone")
    mine["README.md"] = b"my own words"
    encoder = Encoder(tmp_path / "clone")
    with torch.no_grad():
        encoder.model.embeddings.word.weight.mul_(1.5)
    encoder.save(tmp_path / "clone")
    assert mine.items() <= contents(tmp_path / "clone").items()
    assert (Encoder(tmp_path / "clone").encode(TEXTS) == encoder.encode(TEXTS)).all()
    assert sorted(os.listdir(tmp_path)) == ["clone"]


def test_what_an_earlier_save_wrote_goes_with_it(tiny_bert: Path, tmp_path: Path) -> None:
    """A learned head's weights, or another pooling's files, beside a model without them."""
    Encoder(tiny_bert, similarity="dse").save(tmp_path / "m")
    Encoder(tiny_bert).save(tmp_path / "m")
    Encoder(tiny_bert).save(tmp_path / "fresh")
    assert contents(tmp_path / "m") == contents(tmp_path / "fresh")


def test_field_02_a_runs_log_and_a_teachers_card_stay_where_a_model_is_saved_again(
    student: Path, tmp_path: Path
) -> None:
    shutil.copytree(student, tmp_path / "m")
    (tmp_path / "m" / "metrics.jsonl").write_text('{"step": 1, "pairs": 2, "tokens": 3}\n')
    Teacher(tmp_path / "m").save(tmp_path / "m")
    before = contents(tmp_path / "m")
    Encoder(tmp_path / "m").save(tmp_path / "m")
    assert contents(tmp_path / "m") == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("special_tokens_map.json", '{"cls_token": "rain"}'), ("added_tokens.json", '{"rain": 9}')],
)
def test_field_01_a_file_that_would_be_read_beside_ours_is_refused(
    student: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_text(content)
    with pytest.raises(TwinlineError, match=re.escape(name)):
        Encoder(student).save(tmp_path / "m")
    assert contents(tmp_path / "m") == {name: content.encode()}
    Encoder(student).save(tmp_path / "m", overwrite=True)
    assert (Encoder(tmp_path / "m").encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


def test_field_01_what_is_not_read_does_no_harm(
    student: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    Encoder(tiny_bert, similarity="dse").save(tmp_path / "dse")
    (tmp_path / "m" / "9_Pooling").mkdir(parents=True)
    (tmp_path / "m" / "9_Pooling" / "config.json").write_text("broken")
    shutil.copy(tmp_path / "dse" / "similarity.safetensors", tmp_path / "m")
    for similarity in (None, "dse", None):
        Encoder(student, similarity=similarity).save(tmp_path / "m")
        assert (Encoder(tmp_path / "m").encode(TEXTS) == Encoder(student).encode(TEXTS)).all()
    (tmp_path / "m" / "similarity.safetensors").write_text("somebody else's")
    assert (Encoder(tmp_path / "m").encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


def test_field_01_a_tokenizer_that_the_user_put_there_is_not_ours(
    student: Path, tmp_path: Path
) -> None:
    shutil.copytree(student, tmp_path / "m")
    encoder = Encoder(tmp_path / "m")
    theirs = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(theirs))
    before = contents(tmp_path / "m")
    with pytest.raises(TwinlineError, match="that Twinline did not write"):
        encoder.save(tmp_path / "m")
    assert contents(tmp_path / "m") == before


def test_field_01_a_broken_model_is_not_saved_over_a_good_one(
    student: Path, tmp_path: Path
) -> None:
    shutil.copytree(student, tmp_path / "m")
    encoder = Encoder(student)
    with torch.no_grad():
        encoder.model.embeddings.norm.weight.fill_(float("nan"))
    with pytest.raises(TwinlineError, match="NaN or infinity"):
        encoder.save(tmp_path / "m")
    with pytest.raises(TwinlineError, match="NaN or infinity"):
        encoder.encode(TEXTS)
    assert (Encoder(tmp_path / "m").encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


@pytest.mark.parametrize("path", [None, 5, b"x", "a\0b", "~nobody-of-this-name/x", "", ()])
def test_field_22_what_is_no_path_is_refused_by_every_writer(student: Path, path: Any) -> None:
    writers = [
        lambda: Encoder(student).save(path),
        lambda: Teacher(student).save(path),
    ]
    if path is not None:
        writers.append(lambda: Teacher(student, cache=path))
    for write in writers:
        with pytest.raises(TwinlineError, match="path"):
            write()


def test_field_22_overwrite_is_true_or_false(student: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    for save in (Encoder(student).save, Teacher(student).save):
        with pytest.raises(TwinlineError, match="overwrite must be True or False"):
            save(tmp_path, overwrite="no")
    assert contents(tmp_path) == {"config.json": b"mine"}


def test_field_01_a_users_hidden_folder_is_no_leftover(student: Path, tmp_path: Path) -> None:
    Encoder(student).save(tmp_path / "thesis")
    for name in (".thesis.old-drafts", ".thesis.partial-0123456789ab", "thesis/.thesis.old-drafts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chapter.txt").write_text(THESIS)
    before = contents(tmp_path)
    Encoder(student).save(tmp_path / "thesis")
    assert contents(tmp_path) == before


def test_field_01_a_card_of_other_scorers_does_not_stand_for_a_model(
    student: Path, cross_encoder: Path, tmp_path: Path
) -> None:
    Teacher(cross_encoder, scale="logit").save(tmp_path / "m")
    before = contents(tmp_path / "m")
    with pytest.raises(TwinlineError, match="would stand for this model"):
        Encoder(student).save(tmp_path / "m")
    assert contents(tmp_path / "m") == before
    Encoder(student).save(tmp_path / "m", overwrite=True)
    assert "teacher.json" not in contents(tmp_path / "m")


def test_field_01_a_config_that_the_user_changed_is_not_ours(student: Path, tmp_path: Path) -> None:
    shutil.copytree(student, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "my_notes": "kept"}))
    encoder = Encoder(tmp_path / "m")
    before = contents(tmp_path / "m")
    with pytest.raises(TwinlineError, match=r"config\.json that Twinline did not write"):
        encoder.save(tmp_path / "m")
    assert contents(tmp_path / "m") == before


def test_a_folder_that_another_process_holds_is_not_waited_for_for_ever(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    from twinline import folders

    (tmp_path / "m").mkdir()
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    descriptor = os.open(tmp_path / "m", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(TwinlineError, match="locked by another process"):
        Encoder(student).save(tmp_path / "m")
    with pytest.raises(TwinlineError, match="locked by another process"):
        folders.output_folder(tmp_path / "m", "output")
    os.close(descriptor)
    Encoder(student).save(tmp_path / "m")


def test_several_threads_save_one_folder(student: Path, tmp_path: Path) -> None:
    """Each whole: the folder is the one's or the other's, and nothing is left beside it."""
    encoders = [Encoder(student) for _ in range(4)]
    for number, encoder in enumerate(encoders):
        with torch.no_grad():
            encoder.model.embeddings.word.weight.mul_(1 + number / 10)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            list(pool.map(lambda encoder: encoder.save(tmp_path / "m"), encoders))
            found = Encoder(tmp_path / "m").encode(TEXTS)
            assert any((found == encoder.encode(TEXTS)).all() for encoder in encoders)
    assert os.listdir(tmp_path) == ["m"]


def test_a_mount_is_written_from_inside(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container's volume, beside which nothing can be put."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text(THESIS)
    replace = os.replace

    def within(source: Path, place: Path) -> None:
        assert tmp_path / "m" in Path(source).parents, source
        replace(source, place)

    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "m")
    monkeypatch.setattr(os, "replace", within)
    Encoder(student).save(tmp_path / "m")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    left = {name.split("/")[0] for name in contents(tmp_path / "m")}
    assert not [name for name in left if name.startswith(".")]
    assert (tmp_path / "m" / "thesis.txt").read_text() == THESIS
    assert (Encoder(tmp_path / "m").encode(TEXTS) == Encoder(student).encode(TEXTS)).all()


def test_field_02_a_folder_of_an_older_version_is_saved_over(student: Path, tmp_path: Path) -> None:
    """It lists no files: what that version always wrote is ours, and nothing else."""
    shutil.copytree(student, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["twinline"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "m" / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    mine = {**users_files(tmp_path / "m"), "vocab.txt": b"mine", "README.md": b"my own words"}
    (tmp_path / "m" / "vocab.txt").write_text("mine")
    encoder = Encoder(tmp_path / "m")
    encoder.save(tmp_path / "m")
    assert mine.items() <= contents(tmp_path / "m").items()
    assert (Encoder(tmp_path / "m").encode(TEXTS) == encoder.encode(TEXTS)).all()


def test_field_02_our_card_is_ours_until_somebody_changes_it(student: Path, tmp_path: Path) -> None:
    Encoder(student).save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    Encoder(student, similarity="dse").save(tmp_path)
    assert (tmp_path / "README.md").read_text() != card
    changed = (tmp_path / "README.md").read_text().replace("# A Twinline encoder", "# Mine")
    (tmp_path / "README.md").write_text(changed)
    Encoder(student).save(tmp_path)
    assert (tmp_path / "README.md").read_text() == changed


def kill_before(move: int, work: Callable[[], object]) -> NoReturn:
    """Kill this process just before the given one of the moves that ``work`` makes."""
    replace, seen = os.replace, []

    def killing(source: Path, place: Path) -> None:
        seen.append(source)
        if len(seen) == move:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, place)

    os.replace = killing
    work()
    os._exit(0)


@pytest.mark.parametrize("before", ["mean", "latent", "no model"])
def test_field_02_a_kill_while_saving_is_told_when_the_model_is_loaded(
    student: Path, tiny_bert: Path, tmp_path: Path, before: str
) -> None:
    """Whatever move a kill comes before: the old vectors, the new ones, or a sentence.

    And whatever it leaves, the same save can be done again.
    """
    start = tmp_path / "start"
    if before == "no model":
        users_files(start)
    else:
        model = convert(tiny_bert, "linear", pooling=before, normalize=before == "latent")
        Encoder(model).save(start)
    new = Encoder(student)
    with torch.no_grad():
        new.model.embeddings.word.weight.mul_(1.5)
    old = new if before == "no model" else Encoder(start)
    vectors = [old.encode(TEXTS), new.encode(TEXTS)]
    outcomes = []
    for moves in range(1, 100):
        target = tmp_path / str(moves) / "m"
        shutil.copytree(start, target)
        if not (child := os.fork()):
            kill_before(moves, lambda: new.save(target))  # noqa: B023
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        try:
            found = Encoder(target).encode(TEXTS)
            outcomes.append([bool((found == one).all()) for one in vectors].index(True))
        except TwinlineError as error:
            words = str(error)
            said = "another save" in words or "no config.json" in words
            outcomes.append(2 if said and (f"{target.parent}/.m." in words or not outcomes) else 3)
            new.save(target)  # which mends it, and leaves nothing of the stopped one
            assert os.listdir(target.parent) == ["m"]
            assert (Encoder(target).encode(TEXTS) == vectors[1]).all()
    assert outcomes[0] == (2 if before == "no model" else 0)
    assert 2 in outcomes[1:]
    assert 3 not in outcomes
    assert len(outcomes) >= 10


def test_field_01_somebody_elses_teacher_json_does_not_hide_a_model(
    cross_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(cross_encoder, tmp_path / "ce")
    (tmp_path / "ce" / "teacher.json").write_text('{"name": "Mrs Smith"}')
    found = Teacher(tmp_path / "ce", scale="logit").predict(PAIRS)
    assert found == pytest.approx(Teacher(cross_encoder, scale="logit").predict(PAIRS))


# 3: relative paths mean another folder once the user has moved


def test_field_03_a_teacher_of_a_relative_path_is_found_again(
    student: Path, cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(student.parent)
    teacher = Teacher("student")
    teacher.save(tmp_path / "both")
    expected = teacher.predict(PAIRS)
    monkeypatch.chdir(tmp_path)
    assert Teacher("both").predict(PAIRS) == pytest.approx(expected)
    monkeypatch.chdir("/")
    assert Teacher(tmp_path / "both").predict(PAIRS) == pytest.approx(expected)


@pytest.mark.parametrize("load", ["convert", "AutoModel"])
def test_field_03_a_model_of_a_relative_path_keeps_its_tokenizer(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    from transformers import AutoModel

    import twinline.auto

    assert twinline.auto
    monkeypatch.chdir(student.parent)
    model = convert("student") if load == "convert" else AutoModel.from_pretrained("student")
    monkeypatch.chdir(tmp_path)
    assert np.isfinite(Encoder(model).encode(TEXTS)).all()


def test_a_relative_cache_stays_where_it_was(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = Teacher(student, cache="scores.sqlite")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    teacher.predict(PAIRS)
    assert not (tmp_path / "elsewhere" / "scores.sqlite").exists()


# 25: loading with transformers alone says "update transformers"


def test_field_25_the_card_says_the_one_import_and_its_code_runs(
    student: Path, tmp_path: Path
) -> None:
    card = (student / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 3
    assert all("import twinline.auto" in block for block in blocks if "from twinline" not in block)
    code = "\n".join(blocks).replace("path/to/this/folder", str(student))
    check = (
        "import torch; torch.set_num_threads(1)\n"
        + code
        + "\nprint(type(model).__name__, vectors.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["TwinlineModel", "(2,", "16)"]


def test_field_25_a_taught_cross_encoder_has_a_card_too(
    tiny_bert: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    from twinline.options import TeachOptions

    pairs = load_pairs(tiny_pairs, scale=(0, 1)).select(range(4))
    teach(tiny_bert, pairs, tmp_path / "ce", options=TeachOptions(epochs=0.1), show_progress=False)
    card = (tmp_path / "ce" / "README.md").read_text()
    assert "CrossEncoder" in card
    listed = json.loads((tmp_path / "ce" / "config.json").read_text())["twinline"]["files"]
    assert {"README.md", "teacher.json", "model.safetensors"} <= set(listed)
