"""Fingerprints of what gives scores: equal where nothing that moves a score differs.

A score cache is keyed by them, and a training run is known by them. What only changes how fast a
score is made (batch size, device, progress) is never in one. Options that cannot move a score are
left out: a limit's rule without a limit, or the dot product of vectors of length 1 for their
cosine.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import xxhash
from torch import nn

from .hashing import fingerprint
from .options import ModelOptions

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
         "pad_token_id", "position_table", "normalize")  # fmt: skip
"""What decides a twin encoder's vectors beside ``ModelOptions`` and its weights."""
NOT_SCORES = {
    "_name_or_path", "name_or_path", "architectures", "dtype", "id2label", "initializer_range",
    "label2id", "problem_type", "sentence_transformers", "torch_dtype", "transformers_version",
    "twinline", "use_cache",
}  # fmt: skip
"""Keys of a model's configuration that no score depends on."""


def weights_print(module: nn.Module) -> str:
    """A hash of all of a module's weights: fast, since a cache asks for it at every use."""
    digest = xxhash.xxh3_128()
    for tensor in module.state_dict().values():
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{plain.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_print(tokenizer: Any) -> str:
    """A hash of how a tokenizer cuts texts, whatever truncation was last asked of it."""
    rules = [repr(getattr(tokenizer, "split_special_tokens", False))]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        return fingerprint([*rules, json.dumps({**state, "truncation": None, "padding": None})])
    with TemporaryDirectory() as folder:  # one written in Python is known by its files
        files = map(Path, tokenizer.save_vocabulary(folder))
        rules += [json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True)]
        return fingerprint([*rules, *(file.read_bytes() for file in sorted(files))])


def model_print(model: Any) -> str:
    """A hash of a ``TwinlineModel`` beside its weights: its options, and switches set since."""
    names = (*SHAPE, *(option.name for option in fields(ModelOptions)))
    options = {name: getattr(model.config, name) for name in names}
    far = [getattr(layer.attention, "far", None) for layer in model.each_layer()]
    return fingerprint([json.dumps(options, sort_keys=True), repr(far)])


def encoder_print(encoder: Any) -> str:
    """A hash of a twin encoder as it is now: it may have been trained on since it was loaded."""
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


def cross_encoder_print(scorer: Any) -> str:
    """A hash of a cross-encoder as it is now, and of what it does with pairs that are too long."""
    config = {
        name: value
        for name, value in scorer.model.config.to_dict().items()
        if name not in NOT_SCORES and "dropout" not in name
    }
    rule = {"warn": "truncate"}.get(scorer.on_overflow, scorer.on_overflow)
    reads = [scorer.types, scorer.limit, None if scorer.limit is None else rule]
    return fingerprint([
        "cross-encoder", json.dumps(reads), json.dumps(config, sort_keys=True, default=str),
        tokenizer_print(scorer.tokenizer), weights_print(scorer.model),
    ])  # fmt: skip
