"""Which files Twinline writes, and which of those that stand in a folder are its own.

A save replaces and removes only files that Twinline wrote. A model's ``config.json`` says which
those are: under ``twinline`` it lists the files of its save with their hashes, and the
save's id, which its weights carry too. Files that have no such place are known by their content.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from .errors import TwinlineError
from .hashing import fingerprint

CONFIG = "config.json"
CARD = "teacher.json"
README = "README.md"
LOG = "metrics.jsonl"
HEAD = "similarity.safetensors"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", HEAD)
"""A model's weights and its score head's, which are put in place before all else."""
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
"""Files that hold a vocabulary where there is no ``tokenizer.json``."""
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What only some tokenizers write beside ``tokenizer.json``."""
MODEL_FILES = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *TOKENIZER_FILES,
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_Pooling/config.json",
    "[0-9]_Normalize/config.json",
    "similarity.json",
    CARD,
    LOG,
    README,
    CONFIG,
)
"""All that saving a twin encoder, a cross-encoder or a teacher can write, ``config.json`` last."""
READ_BESIDE = ("special_tokens_map.json", "added_tokens.json")
"""Files that are read with a tokenizer, whether or not they are of its save."""
CROSS_ENCODER_FILES = (
    CONFIG,
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    CARD,
)
"""Files of every saved cross-encoder: where others' stand, training need not begin."""
TWIN_FILES = (
    CONFIG,
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "similarity.json",
)
"""Files of every saved twin encoder, likewise."""
WORK_FILES = (
    "checkpoint.pt",
    LOG,
    "transfer/checkpoint.pt",
    f"transfer/{LOG}",
    "distill/checkpoint.pt",
    f"distill/{LOG}",
    "retrieval/checkpoint.pt",
    f"retrieval/{LOG}",
    "retrieval/teacher-*.npy",
    "scores.sqlite",
    "scores.sqlite-journal",
    ".*.partial-*",
    "*/.*.partial-*",
)
"""All that a run keeps in its work folder, what a kill left half written included."""
DEMO_FILES = ("demo.json", "table.md", "convergence.png", "softmax-curve.json", "linear-curve.json")
"""What ``twinline demo`` writes beside its models."""

KEY = "twinline"
"""In ``config.json``: a save's id, and the hash of each of its files. In its weights: the id."""
LEFTOVER = re.compile("(partial|old)-[0-9a-f]{12}")
"""What stands behind a folder's name in those that saves into it are made in."""
README_MARK = re.compile(r"\n<!-- twinline ([0-9a-f]{32}) -->\n$")
LOG_KEYS = {"step", "pairs", "tokens"}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a relative name is one of those declared; a star stands for no slash."""
    parts = name.split("/")
    return any(
        len(parts) == len(pattern.split("/")) and all(map(fnmatchcase, parts, pattern.split("/")))
        for pattern in patterns
    )


def files_below(folder: Path) -> list[str]:
    """The names, relative to ``folder``, of all files and links below it."""
    found = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder).as_posix() for name in names + links]
    return sorted(found)


def declared_files(folder: Path, patterns: Iterable[str] = MODEL_FILES) -> list[str]:
    """The files of a folder whose relative names are declared."""
    found = {place for pattern in patterns for place in folder.glob(pattern)}
    return sorted(place.relative_to(folder).as_posix() for place in found)


def saved_files(folder: Path) -> set[str]:
    """The files of a folder's last save, which the next one replaces or removes.

    ``config.json`` lists them. Where a save was stopped before it was put in place, the rest of
    that save beside the folder has the list. Version 0.1.0 had no list: a model of its type has
    the files that such a model is saved with.
    """
    config, here = _json(folder / CONFIG), declared_files(folder)
    saves = [_save_of(config), *stopped_saves(folder).values()]
    if isinstance(config, dict) and config.get("model_type") == "twinline" and not any(saves):
        return {n for n in here if not matches(n, (*BY_CONTENT, *TOKENIZER_FILES))}
    return {name for name in here if _is_saved(folder / name, name, saves)}


def _is_saved(file: Path, name: str, saves: list[dict[str, Any]]) -> bool:
    """Whether a file is as one of the saves wrote it."""
    if matches(name, WEIGHTS):
        return save_id(file) is not None
    hashes = [save["files"][name] for save in saves if save and name in save["files"]]
    return bool(hashes) and _hash(file) in hashes


def stopped_saves(folder: Path) -> dict[Path, dict[str, Any]]:
    """Saves whose weights are in a folder and whose ``config.json`` is not, by what they left."""
    weights = save_id(folder / "model.safetensors")
    rest = {place: _save_of(_json(place / CONFIG)) for place in leftovers(folder)}
    return {place: save for place, save in rest.items() if save and save["id"] == weights}


def written_files(folder: Path) -> set[str]:
    """The files of a folder that Twinline wrote, by their relative names."""
    return saved_files(folder) | {n for n, is_ours in BY_CONTENT.items() if is_ours(folder / n)}


def leftovers(folder: Path) -> list[Path]:
    """What saves that were stopped half-way left beside a folder."""
    place = folder.resolve()
    found = [p for at in (place.parent, place) for p in at.glob(f".{escape(place.name)}.*-*")]
    return sorted(p for p in found if LEFTOVER.fullmatch(p.name.removeprefix(f".{place.name}.")))


def seal(folder: Path) -> None:
    """Give a model that is about to be put in place its id, in ``config.json`` and its weights.

    The id is a hash of all that was written: saving the same model twice gives equal files.
    """
    config = _json(folder / CONFIG)
    if not isinstance(config, dict):
        return
    names = files_below(folder)
    files = {name: _hash(folder / name) for name in names}
    number = fingerprint([json.dumps(files, sort_keys=True)])
    for name in names:
        if matches(name, WEIGHTS):
            _stamp(folder / name, number)
    config[KEY] = {"id": number, "files": files}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_one_save(folder: Path) -> None:
    """Refuse weights of another save than ``config.json``'s: a kill came between the two.

    Weights without an id, of older versions or other tools, pass.

    Raises: TwinlineError naming the file and where the rest of the save lies.
    """
    save = _save_of(_json(folder / CONFIG))
    ours = save.get("id")
    for name in declared_files(folder, WEIGHTS):
        if name == HEAD and name not in save.get("files", ()):
            continue  # it is not read
        theirs = save_id(folder / name)
        if theirs is None or theirs == ours:
            continue
        if ours is None and not stopped_saves(folder):
            continue  # another program has written the config.json
        raise TwinlineError(
            f"{folder} holds {name} of another save than its {CONFIG}, as a save that was stopped "
            f"half-way leaves it{whereabouts(folder)}: save the model again."
        )


def whereabouts(folder: Path) -> str:
    """Where the other files of a save that was stopped lie, in words; nothing if nowhere."""
    rest = leftovers(folder)
    return f"; the save's other files lie in {' and '.join(map(str, rest))}" if rest else ""


def save_id(weights: Path) -> str | None:
    """The id of the save that wrote a safetensors file; None if it has none or is damaged."""
    try:
        with weights.open("rb") as file:
            metadata = _header(file).get("__metadata__", {})
    except (OSError, ValueError, AttributeError):
        return None
    save = metadata.get(KEY) if isinstance(metadata, dict) else None
    return save if isinstance(save, str) else None


def is_card(file: Path) -> bool:
    """Whether a file is a teacher's card: members, each with a path and a scale."""
    card = _json(file)
    members = card.get("members") if isinstance(card, dict) else None
    return isinstance(members, list) and bool(members) and all(map(is_member, members))


def is_card_of_itself(file: Path) -> bool:
    """Whether a teacher's card says no more than that the model beside it is the teacher."""
    card = _json(file)
    return is_card(file) and card["members"] == [{"path": ".", "scale": "unit"}]


def is_member(line: Any) -> bool:
    """Whether a line of a teacher's card says where a scorer is and what its scale is."""
    return isinstance(line, dict) and isinstance(line.get("path"), str) and "scale" in line


def is_log(file: Path) -> bool:
    """Whether a file is the metrics log of a training run, or empty."""
    try:
        with file.open(encoding="utf-8") as lines:
            first = lines.readline(100_000)
        return not first or set(json.loads(first)) >= LOG_KEYS
    except (OSError, ValueError, TypeError):
        return False


def marked_card(text: str) -> str:
    """A model card with the mark by which it is known as ours until somebody changes it."""
    return f"{text}\n<!-- twinline {fingerprint([text])} -->\n"


def is_our_readme(file: Path) -> bool:
    """Whether a model card is one of ours that nobody has changed."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    mark = README_MARK.search(text)
    return mark is not None and mark[1] == fingerprint([text[: mark.start()]])


BY_CONTENT: dict[str, Callable[[Path], bool]] = {
    CARD: is_card,
    README: is_our_readme,
    LOG: is_log,
}
"""Files that are known as ours by what they hold."""


def _save_of(config: Any) -> dict[str, Any]:
    """The id and the files of the save that wrote a ``config.json``; nothing where it has none."""
    save = config.get(KEY) if isinstance(config, dict) else None
    if not isinstance(save, dict) or not isinstance(save.get("files"), dict):
        return {}
    return {"id": save.get("id"), "files": save["files"]}


def _hash(file: Path) -> str:
    """A hash of a file's content, of a ``config.json`` without its seal; "" if unreadable."""
    if file.name == CONFIG and isinstance(config := _json(file), dict):
        config.pop(KEY, None)
        return fingerprint([json.dumps(config, sort_keys=True)])
    try:
        return fingerprint([file.read_bytes()])
    except OSError:
        return ""


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _header(file: Any) -> dict[str, Any]:
    """A safetensors file's header; the file then stands at its data."""
    size = int.from_bytes(file.read(8), "little")
    if size > 100_000_000:  # the format's own limit
        raise ValueError("no safetensors file")
    header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise ValueError("no safetensors file")
    return header


def _stamp(weights: Path, save: str) -> None:
    """Write a save's id into the header of a safetensors file."""
    stamped = weights.with_name(weights.name + ".stamped")
    with weights.open("rb") as old, stamped.open("wb") as new:
        header = _header(old)
        header["__metadata__"] = {**header.get("__metadata__", {}), KEY: save}
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # data begins at a multiple of 8
        new.write(len(raw).to_bytes(8, "little") + raw)
        shutil.copyfileobj(old, new, 2**20)
    os.replace(stamped, weights)
