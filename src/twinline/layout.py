"""What a saved twin encoder's folder holds: a Hugging Face model, a sentence-transformers one, and
our own score head. Declared here and nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoints import stock_modules
from .errors import TwinlineError
from .folders import whole_folder
from .model import TwinlineModel
from .model_card import encoder_card
from .ownership import README, marked_card
from .pooling import POOLINGS
from .similarity import SIMILARITIES
from .sources import read_object
from .tokenization import lowers_case

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
HEAD_CONFIG = "similarity.json"
HEAD_WEIGHTS = "similarity.safetensors"
STOCK_SIMILARITIES = {None: "cosine", "cosine": "cosine", "dot": "dot", "dot_score": "dot"}
"""sentence-transformers' names of similarities, and ours."""


@dataclass(frozen=True)
class Prompts:
    """What sentence-transformers' files of a folder say of prompts."""

    texts: dict[str, str] = field(default_factory=dict)
    default: str | None = None
    """The name of the prompt that stands before every text for which none is chosen."""
    pooled: bool = True
    """Whether a prompt's tokens are pooled with the text's."""


def module(number: int, name: str, path: str) -> dict[str, Any]:
    return {
        "idx": number,
        "name": str(number),
        "path": path,
        "type": f"sentence_transformers.models.{name}",
    }


def stock_files(
    model: TwinlineModel, prompts: Prompts, similarity: str, lower_case: bool = False
) -> dict[str, Any]:
    """The JSON files by which ``SentenceTransformer(path)`` gives the vectors of ``Encoder``.

    Poolings it does not know are done in the model: its Transformer module then hands over
    ``pooler_output`` as the sentence's vector.
    """
    config = model.config
    stock = POOLINGS[config.pooling].stock
    modules = [module(0, "Transformer", "")]
    files: dict[str, Any] = {
        PROMPTS: {
            "model_type": "SentenceTransformer",
            "prompts": prompts.texts,
            "default_prompt_name": prompts.default,
            "similarity_fn_name": "dot" if similarity == "dot" else "cosine",
            # Poolings that sentence-transformers does not know have no file that says so.
            **({} if prompts.pooled else {"include_prompt": False}),
        }
    }
    if stock:
        modules.append(module(1, "Pooling", "1_Pooling"))
        files["1_Pooling/config.json"] = {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_mean_tokens": stock == "mean",
            "pooling_mode_cls_token": stock == "cls",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": prompts.pooled,
        }
        output, name = "last_hidden_state", "token_embeddings"
    else:
        output, name = "pooler_output", "sentence_embedding"
    files[TRANSFORMER] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": name,
        **({"do_lower_case": True} if lower_case else {}),
    }
    if config.normalize:
        number = len(modules)
        modules.append(module(number, "Normalize", f"{number}_Normalize"))
        files[f"{number}_Normalize/config.json"] = {}
    files[MODULES] = modules
    return files


def save_folder(
    path: str | Path,
    model: TwinlineModel,
    tokenizer: Any,
    similarity: str,
    head: nn.Module,
    prompts: Prompts,
    overwrite: bool = False,
) -> None:
    """Write the whole folder, or nothing under its name: see ``folders.whole_folder``.

    Raises: TwinlineError if the folder cannot be written, or holds a file with one of these names
        that Twinline did not write and ``overwrite`` is false.
    """
    from safetensors.torch import save_file

    for part in (model, head):
        for name, tensor in part.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise TwinlineError(
                    f"The model holds NaN or infinity in {name} and was not saved: train it again "
                    "from an earlier checkpoint."
                )
    with whole_folder(path, overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for name, content in stock_files(
            model, prompts, similarity, lowers_case(tokenizer)
        ).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / HEAD_CONFIG).write_text(json.dumps({"similarity": similarity}) + "\n")
        if weights := head.state_dict():
            save_file(weights, folder / HEAD_WEIGHTS)
        (folder / README).write_text(marked_card(encoder_card(model, similarity)), encoding="utf-8")


def load_head(folder: Path, width: int) -> tuple[str, nn.Module]:
    """The folder's score head: its kind, and the module with its weights.

    Without one of ours, the similarity that sentence-transformers' files declare, else cosine.

    Raises: TwinlineError if it is not known, or its weights cannot be read or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    outputs = 1
    if (folder / HEAD_CONFIG).is_file():
        name = read_object(folder / HEAD_CONFIG).get("similarity")
    else:
        name = declared_similarity(folder)
    if not isinstance(name, str) or name not in SIMILARITIES:
        raise TwinlineError(
            f"{folder / HEAD_CONFIG} names the similarity {name!r}; known: "
            f"{', '.join(SIMILARITIES)}."
        )
    learned = bool(SIMILARITIES[name](width).state_dict())  # else weights there are another's
    try:
        weights = load_file(folder / HEAD_WEIGHTS) if learned else {}
    except (SafetensorError, OSError) as error:
        raise TwinlineError(f"{folder / HEAD_WEIGHTS} cannot be read: {error}.") from error
    if "out.bias" in weights:
        outputs = len(weights["out.bias"])
    head = SIMILARITIES[name](width, outputs)
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise TwinlineError(
            f"{folder / HEAD_WEIGHTS} does not fit the {name!r} head: save the model again."
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in head.state_dict().values()):
        raise TwinlineError(f"{folder / HEAD_WEIGHTS} holds NaN or infinity: save the model again.")
    return name, head.eval()


def declared_similarity(folder: Path) -> str:
    """The similarity that sentence-transformers' files in the folder declare; cosine without any.

    Raises: TwinlineError if it is none that Twinline has.
    """
    file = folder / PROMPTS
    name = read_object(file).get("similarity_fn_name") if file.is_file() else None
    if name not in STOCK_SIMILARITIES:
        raise TwinlineError(
            f"{file} declares the similarity {name!r}, which Twinline does not have: give "
            f"similarity= ({', '.join(SIMILARITIES)})."
        )
    return STOCK_SIMILARITIES[name]


def load_prompts(folder: Path) -> Prompts:
    """What sentence-transformers' files in the folder say of prompts.

    Raises: TwinlineError if the default prompt is none of those declared, or a width for vectors is
        declared, which is ``encode``'s to choose.
    """
    file = folder / PROMPTS
    declared = read_object(file) if file.is_file() else {}
    texts = declared.get("prompts") or {}
    default = declared.get("default_prompt_name")
    if not isinstance(texts, dict) or (default is not None and default not in texts):
        raise TwinlineError(
            f"{file} names the default prompt {default!r}, which is not among its prompts "
            f"({', '.join(texts) or 'none'}): correct it there."
        )
    if declared.get("truncate_dim") is not None:
        raise TwinlineError(
            f"{file} declares truncate_dim={declared['truncate_dim']}: remove it there, and give "
            "truncate_dim to encode."
        )
    pooling = folder / stock_modules(folder).get("Pooling", "") / "config.json"
    pooled = declared.get("include_prompt", True) and (
        pooling.parent == folder or read_object(pooling).get("include_prompt", True)
    )
    return Prompts({str(name): str(text) for name, text in texts.items()}, default, bool(pooled))


def check_prompts(folder: Path) -> None:
    """Refuse a cross-encoder whose files put a prompt before every text.

    Raises: TwinlineError naming the file.
    """
    file = folder / PROMPTS
    declared = read_object(file) if file.is_file() else {}
    if (declared.get("prompts") or {}).get(declared.get("default_prompt_name")):
        raise TwinlineError(
            f"{file} declares a default prompt, which Twinline does not put before the texts of a "
            "cross-encoder: remove it there."
        )
