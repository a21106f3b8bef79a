"""What pretrained checkpoints hold: where each kind keeps its weights, and how it pools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from .errors import TwinlineError
from .sources import read_json


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


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in fp32, without a task head's prefix."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    legacy = folder / "pytorch_model.bin"
    try:
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= load_file(file)
        if not files and legacy.is_file():
            tensors = torch.load(legacy, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TwinlineError(f"The weights in {folder} cannot be read: {reason}") from error
    if not tensors:
        raise TwinlineError(f"{folder} holds no weights (model.safetensors).")
    # Old checkpoints, google-bert/bert-base-uncased among them, call a norm's weights by Greek.
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    found = {}
    for name, tensor in tensors.items():
        for theirs, ours in old.items():
            name = name.replace(theirs, ours)
        found[name.removeprefix(prefix)] = tensor.float()
    return found


def stock_pooling(folder: Path, wanted: str | None = None) -> dict[str, Any]:
    """Pooling and normalisation as the folder's sentence-transformers files declare them.

    With ``wanted``, that pooling, whatever the folder declares.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return {"pooling": wanted or "mean", "normalize": False}
    kinds = {m["type"].rsplit(".", 1)[-1]: m["path"] for m in read_json(modules)}
    chosen = wanted or "mean"
    if others := kinds.keys() - {"Transformer", "Pooling", "Normalize", "Dropout"}:
        if wanted is None:
            raise TwinlineError(
                f"{folder} ends in {', '.join(sorted(others))}, which is not converted: give "
                "pooling= to leave it out."
            )
    elif "Pooling" in kinds and wanted is None:
        modes = read_json(folder / kinds["Pooling"] / "config.json")
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
