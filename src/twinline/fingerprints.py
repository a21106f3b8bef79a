"""Fingerprints of what gives scores: equal where nothing that moves a score differs.

A score cache is keyed by them, and a training run is known by them. What only changes how fast a
score is made (batch size, device, progress) is never in one. Options that cannot move a score are
left out: a limit's rule without a limit, or the dot product of vectors of length 1 for their
cosine.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from .hashing import fingerprint
from .options import ModelOptions

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
         "pad_token_id", "position_table", "normalize")  # fmt: skip
"""What decides a twin encoder's vectors beside ``ModelOptions`` and its weights."""
NOT_SCORES = {
    "_name_or_path", "name_or_path", "architectures", "dtype", "id2label", "label2id",
    "sentence_transformers", "torch_dtype", "transformers_version", "twinline", "use_cache",
}  # fmt: skip
"""Keys of a model's configuration that no score depends on."""


def weights_print(module: nn.Module) -> str:
    """Of all of a module's weights."""
    tensors = (tensor.detach().cpu().contiguous() for tensor in module.state_dict().values())
    return fingerprint(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)


def tokenizer_print(tokenizer: Any) -> str:
    """Of how a tokenizer cuts texts, whatever truncation or padding was last asked of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return fingerprint([repr(sorted(tokenizer.get_vocab().items())), repr(tokenizer)])
    state = json.loads(backend.to_str())
    return fingerprint([json.dumps({**state, "truncation": None, "padding": None})])


def model_print(model: Any) -> str:
    """Of a ``TwinlineModel`` beside its weights: its options, and switches set since."""
    names = (*SHAPE, *(option.name for option in fields(ModelOptions)))
    options = {name: getattr(model.config, name) for name in names}
    far = [getattr(layer.attention, "far", None) for layer in model.each_layer()]
    return fingerprint([json.dumps(options, sort_keys=True), repr(far)])


def encoder_print(encoder: Any) -> str:
    """Of a twin encoder as it is now: it may have been trained on since it was loaded."""
    similarity, config = encoder.similarity_name, encoder.model.config
    if similarity == "dot" and config.normalize:
        similarity = "cosine"
    limit, windows = encoder.max_tokens, encoder.windows
    cuts = None if limit is None else encoder.on_overflow != "error"
    if windows is not None and limit is not None and windows >= limit:
        windows = None
    reads = [similarity, limit, cuts, windows, encoder.dtype, encoder.default_prompt_text]
    return fingerprint([
        "twin", json.dumps(reads), model_print(encoder.model), tokenizer_print(encoder.tokenizer),
        weights_print(encoder.model), weights_print(encoder.head),
    ])  # fmt: skip


def cross_encoder_print(model: Any, tokenizer: Any, limit: int | None, on_overflow: str) -> str:
    """Of a classifier of transformers' as it is now, and of what it does with longer pairs."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in NOT_SCORES}
    rule = None if limit is None else {"warn": "truncate"}.get(on_overflow, on_overflow)
    return fingerprint([
        "cross-encoder", json.dumps([limit, rule]), json.dumps(config, sort_keys=True, default=str),
        tokenizer_print(tokenizer), weights_print(model),
    ])  # fmt: skip
