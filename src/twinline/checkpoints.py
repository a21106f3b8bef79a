"""What pretrained checkpoints hold: where each kind keeps its weights, and how it pools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from .errors import TwinlineError
from .ownership import check_one_save
from .sources import is_cross_encoder, read_json, read_object


@dataclass(frozen=True)
class Names:
    """Where a checkpoint kind keeps what we need; ``{i}`` is the layer's number."""

    layer: str
    """Prefix of a layer."""
    qkv: tuple[str, str, str]
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str
    prefix: str
    """What a checkpoint with a task head puts before every name."""
    config: dict[str, str]
    """Our option -> the checkpoint's, where the names differ."""
    positions_after_pad: bool = False
    """Positions start at pad_token_id + 1: the rows before are no positions."""


BERT = Names(
    layer="encoder.layer.{i}.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
    prefix="bert.",
    config={},
)
ROBERTA = Names(**{**vars(BERT), "prefix": "roberta.", "positions_after_pad": True})
DISTILBERT = Names(
    layer="transformer.layer.{i}.",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
    prefix="distilbert.",
    config={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
    },
)
CONVERTIBLE = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
}


BODY = re.compile(r"\.layers?\.\d+\.|^layers\.\d+\.|embeddings\.\w+\.(weight|bias)$")
"""Names of tensors inside an encoder: its layers and embeddings, not a task's head."""


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: those that transformers reads, whatever else is there.

    Raises: TwinlineError if there are none, one of several is missing, or they are of another save
        than their configuration.
    """
    check_one_save(folder)
    for whole in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        index = whole.with_name(whole.name + ".index.json")
        if whole.is_file():
            return [whole]
        if index.is_file():
            places = read_object(index).get("weight_map")
            names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise TwinlineError(
                    f"{folder} lacks {missing[0]}, which {index.name} names: copy all of its files."
                )
            return [folder / name for name in names]
    others = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:3])
    there = f"; it has {others}, which no library reads under such a name" if others else ""
    raise TwinlineError(f"{folder} holds no weights named model.safetensors{there}.")


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in fp32, without a task head's prefix.

    Raises: TwinlineError if they cannot be read, or are of another save than their configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    try:
        for file in weight_files(folder):
            if file.suffix == ".bin":
                tensors |= torch.load(file, map_location="cpu", weights_only=True)
            else:
                tensors |= load_file(file)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TwinlineError(f"The weights in {folder} cannot be read: {reason}") from error
    # Old checkpoints, google-bert/bert-base-uncased among them, call a norm's weights by Greek.
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    found = {}
    for name, tensor in tensors.items():
        for theirs, ours in old.items():
            name = name.replace(theirs, ours)
        found[name.removeprefix(prefix)] = tensor.float()
    return found


def check_tensors(
    missing: Iterable[str], unexpected: Iterable[str], folder: Path, heads: bool = False
) -> None:
    """Refuse a checkpoint that is not of its configuration's architecture.

    Args:
        missing: names of tensors that the model has and the checkpoint has not.
        unexpected: the other way round.
        heads: heads of other tasks may be unexpected.
    Raises: TwinlineError naming the first tensors of each.
    """
    if lacking := sorted(missing):
        raise TwinlineError(
            f"The checkpoint {folder} lacks {len(lacking)} of the model's tensors "
            f"({', '.join(lacking[:3])}), or has them in another shape: save the model again."
        )
    if extra := sorted(name for name in unexpected if not heads or BODY.search(name)):
        raise TwinlineError(
            f"The checkpoint {folder} holds {len(extra)} tensors that its configuration has no "
            f"place for ({', '.join(extra[:3])}): restore the config.json that belongs to it."
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside the block transformers reports nothing: what is missing is told in one sentence."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_classifier(folder: Path, new_head: bool = False) -> Any:
    """A classifier of transformers with one output, in fp32 and eval mode.

    Args:
        new_head: whatever head the checkpoint has is replaced by one with random weights.
    Raises: TwinlineError if it cannot be read, lacks tensors, or has several outputs.
    """
    from transformers import AutoModelForSequenceClassification

    weight_files(folder)
    options = {"num_labels": 1, "ignore_mismatched_sizes": True} if new_head else {}
    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype=torch.float32, output_loading_info=True, **options
            )
    except Exception as error:  # transformers, torch and safetensors raise kinds of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TwinlineError(f"{folder} cannot be read as a cross-encoder: {reason}") from error
    body = re.compile(rf"^{re.escape(model.base_model_prefix)}\.(?!pooler\.)")
    absent = [*info["missing_keys"], *(str(name) for name, *_ in info["mismatched_keys"])]
    absent = [name for name in absent if not new_head or body.match(name)]
    if absent and not new_head and not is_cross_encoder(folder):
        raise TwinlineError(
            f"{folder} is no cross-encoder: give one, or a twin encoder as an Encoder object."
        )
    check_tensors(absent, info["unexpected_keys"], folder, heads=True)
    if model.config.num_labels != 1:
        raise TwinlineError(
            f"The cross-encoder {folder} has {model.config.num_labels} outputs; a teacher of "
            "scores needs one."
        )
    return model.eval()


def longest_input(model: Any) -> int | None:
    """The longest input of a model of transformers, in tokens; None if it has no such limit.

    Families that number positions behind the padding token's (RoBERTa's, MPNet) leave the first
    rows of their table unused; their position embeddings say so.
    """
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        table: Any = getattr(module, "weight", None)
        if name.endswith("position_embeddings") and isinstance(table, Tensor):
            padding = getattr(module, "padding_idx", None)
            limit = len(table) - (0 if padding is None else padding + 1)
    numbers = [len(x[0]) for name, x in model.named_buffers() if name.endswith("position_ids")]
    return limit if limit is None else min([limit, *numbers])


def stock_modules(folder: Path) -> dict[str, str]:
    """The folder of each module that sentence-transformers' ``modules.json`` lists, by its kind.

    Raises: TwinlineError if the file lists anything else.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    try:
        modules = read_json(file)
        return {str(m["type"]).rsplit(".", 1)[-1]: str(m["path"]) for m in list(modules)}
    except (AttributeError, KeyError, TypeError) as error:
        raise TwinlineError(f"{file} lists no modules with a type and a path.") from error


def stock_pooling(folder: Path, wanted: str | None = None) -> dict[str, Any]:
    """Pooling and normalisation as the folder's sentence-transformers files declare them.

    With ``wanted``, that pooling, whatever the folder declares.
    """
    kinds = stock_modules(folder)
    if not kinds:
        return {"pooling": wanted or "mean", "normalize": False}
    if kinds.get("Transformer"):
        raise TwinlineError(
            f"{folder} keeps its transformer in {kinds['Transformer']}: name that folder, and give "
            "pooling= and normalize= as modules.json has them."
        )
    chosen = wanted or "mean"
    if others := kinds.keys() - {"Transformer", "Pooling", "Normalize", "Dropout"}:
        if wanted is None:
            raise TwinlineError(
                f"{folder} ends in {', '.join(sorted(others))}, which is not converted: give "
                "pooling= to leave it out."
            )
    elif "Pooling" in kinds and wanted is None:
        modes = read_object(folder / kinds["Pooling"] / "config.json")
        on = [k.removeprefix("pooling_mode_") for k, v in modes.items()
              if k.startswith("pooling_mode_") and v is True]  # fmt: skip
        on = on or [str(modes.get("pooling_mode", "mean"))]
        known = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}
        if len(on) != 1 or on[0] not in known:
            raise TwinlineError(
                f"{folder} pools by {', '.join(on)}; mean and cls are known: give pooling=."
            )
        chosen = known[on[0]]
    return {"pooling": chosen, "normalize": "Normalize" in kinds}
