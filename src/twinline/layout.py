"""What a saved twin encoder's folder holds: a Hugging Face model, a sentence-transformers one, and
our own score head. Declared here and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from .errors import TwinlineError
from .files import whole_folder
from .model import TwinlineModel
from .pooling import POOLINGS
from .similarity import SIMILARITIES
from .sources import read_json

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
HEAD_CONFIG = "similarity.json"
HEAD_WEIGHTS = "similarity.safetensors"


def module(number: int, name: str, path: str) -> dict[str, Any]:
    return {
        "idx": number,
        "name": str(number),
        "path": path,
        "type": f"sentence_transformers.models.{name}",
    }


def stock_files(model: TwinlineModel, prompts: dict[str, str], similarity: str) -> dict[str, Any]:
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
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "dot" if similarity == "dot" else "cosine",
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
        }
        output, name = "last_hidden_state", "token_embeddings"
    else:
        output, name = "pooler_output", "sentence_embedding"
    files[TRANSFORMER] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": name,
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
    prompts: dict[str, str],
) -> None:
    """Write the whole folder, or nothing under its name.

    Raises: TwinlineError if the folder cannot be written or holds somebody else's files.
    """
    from safetensors.torch import save_file

    with whole_folder(path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for name, content in stock_files(model, prompts, similarity).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        (folder / HEAD_CONFIG).write_text(json.dumps({"similarity": similarity}) + "\n")
        if weights := head.state_dict():
            save_file(weights, folder / HEAD_WEIGHTS)


def load_head(folder: Path, width: int) -> tuple[str, nn.Module]:
    """The folder's score head: its kind, and the module with its weights. Cosine if it has none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name, outputs = "cosine", 1
    if (folder / HEAD_CONFIG).is_file():
        name = read_json(folder / HEAD_CONFIG).get("similarity")
    if name not in SIMILARITIES:
        raise TwinlineError(
            f"{folder / HEAD_CONFIG} names the similarity {name!r}; known: "
            f"{', '.join(SIMILARITIES)}."
        )
    try:
        weights = load_file(folder / HEAD_WEIGHTS) if (folder / HEAD_WEIGHTS).is_file() else {}
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
    return name, head.eval()


def load_prompts(folder: Path) -> dict[str, str]:
    """The prompts that sentence-transformers' configuration in the folder declares."""
    file = folder / PROMPTS
    if not file.is_file():
        return {}
    prompts = read_json(file).get("prompts") or {}
    return {name: text for name, text in prompts.items() if text}
