"""Which files Twinline writes, and which of those that stand in a folder are its own.

A save replaces and removes only files that Twinline wrote. A model's ``config.json`` says which
those are: under ``twinline`` it lists the files of its save, and the save's id, which its weights
carry too. Files that have no such place are known by their content.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from .errors import TwinlineError
from .hashing import fingerprint

CONFIG = "config.json"
CARD = "teacher.json"
README = "README.md"
LOG = "metrics.jsonl"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "similarity.safetensors")
"""A model's weights and its score head's, which are put in place before all else."""
VOCABULARIES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)
"""What only some tokenizers write beside ``tokenizer.json``."""
MODEL_FILES = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *VOCABULARIES,
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
ALWAYS = (CONFIG, "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Files of every saved model: where others' stand, training need not begin."""
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
"""In ``config.json``: a save's id and files. In the header of its weights: the id."""
README_MARK = re.compile(r"\n<!-- twinline ([0-9a-f]{32}) -->\n$")
LOG_KEYS = {"step", "pairs", "tokens"}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a relative name is one of those declared."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def files_below(folder: Path) -> list[str]:
    """The names, relative to ``folder``, of all files and links below it."""
    found = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder).as_posix() for name in names + links]
    return sorted(found)


def written_files(folder: Path) -> set[str]:
    """The files of a folder that Twinline wrote, by their relative names.

    Version 0.1.0 listed nothing: a folder of its model type has the files that it always wrote.
    """
    here = [name for name in files_below(folder) if matches(name, MODEL_FILES)]
    by_content = {CARD: is_card, README: is_our_readme, LOG: is_log}
    found = {name for name, is_ours in by_content.items() if is_ours(folder / name)}
    config = _json(folder / CONFIG)
    if not isinstance(config, dict):
        return found
    seal = config.get(KEY)
    if isinstance(seal, dict):
        listed = seal.get("files")
        names = {CONFIG, *(listed if isinstance(listed, list) else ())}
        return found | {
            name
            for name in here
            if name in names
            and name not in by_content
            # A list outlives the weights beside it where another library writes its own there.
            and (not matches(name, WEIGHTS) or save_id(folder / name) is not None)
        }
    if config.get("model_type") == "twinline":
        skipped = (*by_content, *VOCABULARIES)
        return found | {name for name in here if not matches(name, skipped)}
    return found


def seal(folder: Path) -> None:
    """Give a model that is about to be put in place its id, in ``config.json`` and its weights.

    The id is a hash of all that was written: saving the same model twice gives equal files.
    """
    config = _json(folder / CONFIG)
    if not isinstance(config, dict):
        return
    config.pop(KEY, None)
    names = files_below(folder)
    contents = ((folder / name).read_bytes() for name in names if name != CONFIG)
    save = fingerprint(chain([json.dumps(config, sort_keys=True), *names], contents))
    for name in names:
        if matches(name, WEIGHTS):
            _stamp(folder / name, save)
    config[KEY] = {"id": save, "files": names}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_one_save(folder: Path) -> None:
    """Refuse weights of another save than ``config.json``'s: a kill came between the two.

    Weights without an id, of older versions or other tools, pass.

    Raises: TwinlineError naming the file and where the rest of the save lies.
    """
    config = _json(folder / CONFIG)
    sealed = config.get(KEY) if isinstance(config, dict) else None
    ours = sealed.get("id") if isinstance(sealed, dict) else None
    for name in files_below(folder):
        if not matches(name, WEIGHTS):
            continue
        theirs = save_id(folder / name)
        # Another tool's config beside our score head says nothing of an interrupted save.
        if theirs is None or theirs == ours or (ours is None and name.startswith("similarity")):
            continue
        rest = sorted(folder.resolve().parent.glob(f".{folder.resolve().name}.*"))
        where = f"; the save's other files lie in {' and '.join(map(str, rest))}" if rest else ""
        raise TwinlineError(
            f"{folder} holds {name} of another save than its {CONFIG}, as a save that was stopped "
            f"half-way leaves it{where}: save the model again."
        )


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


def marked(text: str) -> str:
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
