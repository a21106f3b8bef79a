"""A pretrained softmax encoder becomes a ``TwinlineModel``: its weights, then its attention.

``convert`` copies the weights; ``transfer`` trains only what the new attention added, until every
layer's output matches the softmax layer's on unlabelled text. No label is seen by either.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import check_value
from .attention import HybridAttention
from .attention.blocks import Layout, parts
from .attention.hybrid import read_sentences
from .attention.linear import linear_attention
from .attention.softmax import softmax_attention
from .attention.spec import FAINT
from .batching import ShuffledBatches, pad, token_ids
from .checkpoints import (
    CONVERTIBLE,
    check_tensors,
    quiet_transformers,
    read_tensors,
    stock_pooling,
    weight_files,
)
from .config import TwinlineConfig
from .errors import TwinlineError
from .fingerprints import model_print, tokenizer_print
from .hashing import fingerprint
from .loop import Batch, Run, train
from .model import TwinlineModel
from .options import LoopOptions, ModelOptions, TransferOptions
from .sentences import sentence_roles
from .sources import find_model, is_cross_encoder, read_config
from .text import text_list
from .tokenization import check_tokenizer, load_tokenizer

TAKEN_OVER = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


@torch.random.fork_rng(())  # a new module draws weights, which are all replaced
def convert(name_or_path: str | Path, attention: str = "linear", **options: Any) -> TwinlineModel:
    """A pretrained encoder with its weights kept and its attention replaced.

    Args:
        name_or_path: a BERT, RoBERTa, XLM-R or DistilBERT checkpoint, or one that twinline saved.
        attention: "softmax" (outputs equal the original's), "linear", "lightning" or "hybrid".
        options: any other option of ``TwinlineConfig``. Pooling and normalisation are taken from
            the folder's sentence-transformers files where it has them, else mean and none.
    Returns: the model in eval mode; new parameters are at their start until ``transfer``.
    Raises: TwinlineError if the model is not found, unreadable or of a type not convertible.
    """
    if options.get("pooling", "") is None:  # as the base model does
        del options["pooling"]
    if unknown := options.keys() - known_options():
        raise TwinlineError(
            f"convert has no option {', '.join(sorted(unknown))}; known: "
            f"{', '.join(sorted(known_options()))}."
        )
    folder = find_model(name_or_path)
    source = read_config(folder)
    kind = source.get("model_type")
    if kind == TwinlineConfig.model_type:
        return reconvert(folder, attention, options)
    names = CONVERTIBLE.get(str(kind))
    if names is None:
        raise TwinlineError(
            f"A model of type {kind!r} ({folder}) cannot be converted; those that can: "
            f"{', '.join(CONVERTIBLE)}, {TwinlineConfig.model_type}."
        )
    if is_cross_encoder(folder):
        raise TwinlineError(
            f"{folder} is a cross-encoder, which reads two texts together and makes no vector: "
            "score pairs with Teacher, or name a model that encodes one text."
        )
    if source.get("position_embedding_type", "absolute") != "absolute":
        raise TwinlineError(f"{folder} has relative positions; only absolute ones are converted.")
    tensors = read_tensors(folder, names.prefix)

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise TwinlineError(f"The checkpoint {folder} lacks the tensor {name}.")
        return tensors.pop(name)

    taken = {
        ours: source[theirs]
        for ours in TAKEN_OVER
        if (theirs := names.config.get(ours, ours)) in source
    }
    table = take("embeddings.position_embeddings.weight")
    if names.positions_after_pad:
        pad_id = source.get("pad_token_id")
        table = table[(1 if pad_id is None else pad_id) + 1 :]
    types = tensors.pop("embeddings.token_type_embeddings.weight", None)
    if types is None:
        types = torch.zeros(1, table.shape[1])
    taken |= {"position_table": len(table), "type_vocab_size": len(types)}
    taken |= stock_pooling(folder, options.get("pooling"))
    config = TwinlineConfig(attention=attention, **{**taken, **options})
    config.name_or_path = str(folder)
    model = TwinlineModel(config)
    state = {
        "embeddings.word.weight": take("embeddings.word_embeddings.weight"),
        "embeddings.position.weight": table,
        "embeddings.token_type.weight": types,
        "embeddings.norm.weight": take("embeddings.LayerNorm.weight"),
        "embeddings.norm.bias": take("embeddings.LayerNorm.bias"),
    }
    for i in range(config.num_hidden_layers):
        theirs = names.layer.format(i=i)
        for part in ("weight", "bias"):
            projections = [take(f"{theirs}{name}.{part}") for name in names.qkv]
            state[f"layers.{i}.qkv.{part}"] = torch.cat(projections)
            for ours in ("out", "attention_norm", "up", "down", "norm"):
                name = f"{theirs}{getattr(names, ours)}.{part}"
                state[f"layers.{i}.{ours}.{part}"] = take(name)
    check_tensors((), tensors, folder, heads=True)
    load_state(model, state, folder)
    tell_sentences(model, folder)
    model.train(False)
    return model


def known_options() -> set[str]:
    """The options of ``TwinlineConfig`` that a caller of ``convert`` may give."""
    shape = inspect.signature(TwinlineConfig.__init__).parameters.keys() - {"self", "kwargs"}
    return shape | {option.name for option in fields(ModelOptions)}


def reconvert(folder: Path, attention: str, options: dict[str, Any]) -> TwinlineModel:
    """A twinline model with another attention: what both kinds have is kept."""
    old = load_model(folder)
    kept = {k: v for k, v in old.config.to_diff_dict().items() if k not in ("model_type", "dtype")}
    config = TwinlineConfig(**{**kept, **options, "attention": attention})
    config.name_or_path = str(folder)
    model = TwinlineModel(config)
    ours = model.state_dict()
    state = {
        name: tensor
        for name, tensor in old.state_dict().items()
        if name in ours and ours[name].shape == tensor.shape
    }
    load_state(model, state, folder)
    tell_sentences(model, folder)
    model.train(False)
    return model


def tell_sentences(model: TwinlineModel, folder: Path) -> None:
    """Give a model that keeps sentences apart its tokenizer's punctuation."""
    if model.roles is not None:
        made = sentence_roles(load_tokenizer(folder))
        model.roles[: len(made)] = made[: len(model.roles)]


def load_model(folder: Path) -> TwinlineModel:
    """A saved TwinlineModel.

    Raises: TwinlineError if its weights cannot be read or do not fit its configuration.
    """
    from safetensors import SafetensorError

    from . import auto  # noqa: F401  so that transformers knows the folder's model type

    try:
        weight_files(folder)
        # Whatever dtype the file has: half precision is for encoding, chosen where it is loaded.
        with quiet_transformers():
            model: TwinlineModel = TwinlineModel.from_pretrained(folder, dtype=torch.float32)
    except TwinlineError:
        raise
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise TwinlineError(f"The model in {folder} cannot be read: {words[0]}") from error
    check_finite(model, folder)
    return model


def check_finite(model: TwinlineModel, folder: Path) -> None:
    """Refuse weights that are not numbers: every vector would be none either."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TwinlineError(
                f"The model in {folder} holds NaN or infinity in {name}: its training or its file "
                "broke; use an earlier checkpoint."
            )


def load_state(model: TwinlineModel, state: dict[str, Tensor], folder: Path) -> None:
    """Load ``state``; only what new attention or a learned pooling added may stay at its start."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # tells each tensor's shape on a line of its own
        reason = str(error).splitlines()[-1].strip()
        raise TwinlineError(
            f"The checkpoint {folder} does not fit its configuration: {reason}"
        ) from error
    new = re.compile(r"layers\.\d+\.(attention|local)\.|pool\.|roles$")
    lacking = [name for name in missing if not new.match(name)]
    if lacking or unexpected:
        raise TwinlineError(
            f"The checkpoint {folder} lacks {lacking[:3]} or has unknown {unexpected[:3]} tensors."
        )
    check_finite(model, folder)


def transfer(
    model: TwinlineModel,
    texts: Iterable[str],
    options: TransferOptions | None = None,
    *,
    tokenizer: Any = None,
    folder: Path | None = None,
    show_progress: bool | None = None,
) -> Run:
    """Train what the new attention added until each layer's output matches softmax's, in place.

    Every layer reads what the softmax layers below it made (teacher forcing), and its loss is
    ``‖attention − softmax‖² / ‖softmax‖²`` over real tokens, after the output projection (Hedgehog,
    arXiv 2402.04347, sec. 4.2, matches weights instead). The pretrained weights do not change.

    Args:
        model: weights in half precision are widened to float32 first.
        texts: unlabelled; tokenised with ``tokenizer`` or the one of ``model.name_or_path``.
        folder: checkpoints and ``metrics.jsonl``; a run found there goes on.
    Raises: TwinlineError if there is no text, or ``texts`` are none.
    """
    if not isinstance(model, TwinlineModel):
        raise TwinlineError(
            f"transfer trains a TwinlineModel, as convert makes it, not {type(model).__name__}."
        )
    given = text_list(texts)
    options = check_value("options", options or TransferOptions(), TransferOptions)
    nn.Module.to(model, torch.float32)
    added = learned(model)
    maps = any("_map." in name for name in added)
    if not added or not options.steps:  # softmax, and linear with elu, relu or exp
        return Run()
    if tokenizer is None:
        tokenizer = load_tokenizer(model.name_or_path or "")
    check_tokenizer(tokenizer, model.config.to_dict())
    table = model.config.position_table
    if not given:
        raise TwinlineError("Attention transfer needs text: the source has no line of it.")
    ids = token_ids(tokenizer, given)
    cut = [row[i : i + table] for row in ids for i in range(0, len(row), table)]
    joined = stretch(ids, min(options.stretch_tokens, table))
    singles = ShuffledBatches([len(row) for row in cut], options.texts, options.seed)
    tokens = sum(map(len, cut)) / len(cut) * options.texts
    longs = ShuffledBatches(
        [len(row) for row in joined], max(1, round(tokens / len(joined[0]))), options.seed
    )

    stretches = options.stretches
    if stretches is None:
        short = float(np.median([len(row) for row in cut])) < 2 * model.config.block_size
        stretches = 0.5 if model.config.attention == "hybrid" and short else 0.0

    def batch_at(step: int) -> Batch:
        random = np.random.default_rng((options.seed, step))
        if random.random() < stretches:
            rows = [joined[i] for i in longs[step]]
            shift = int(random.integers(max(1, len(rows[0]) // 2)))  # blocks start anywhere
            rows = [row[shift:] for row in rows]
        else:
            rows = [cut[i] for i in singles[step]]
        block = max(1, model.config.block_size // int(random.choice([1, 1, 2, 4])))
        block = block if model.config.attention == "hybrid" else model.config.block_size
        alone = maps and step < options.alone * options.steps
        inputs = (*pad(rows, model.config.pad_token_id), block, alone)
        return Batch(inputs, pairs=len(rows), tokens=sum(map(len, rows)))

    def loss(layers: Any, inputs: tuple[Tensor, Tensor, int, bool]) -> Tensor:
        ids, mask, block, alone = inputs
        device = model.device
        return transfer_loss(layers, ids.to(device), mask.to(device), options.mass, block, alone)

    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    dropout = model.config.hidden_dropout_prob
    set_dropout(model, 0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in added)
    try:
        return train(
            model, batch_at, loss,
            LoopOptions(
                steps=options.steps, learning_rate=options.learning_rate, warmup=0.05,
                weight_decay=0.0, checkpoint_every=options.checkpoint_every, seed=options.seed,
            ),
            folder=folder,
            identity={
                "transfer": vars(options),
                "texts": fingerprint(given),
                "tokenizer": tokenizer_print(tokenizer),
                "model": model_print(model),
            },
            title=f"attention transfer ({model.config.attention})",
            show_progress=show_progress,
        )  # fmt: skip
    finally:
        set_dropout(model, dropout)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def learns(model: TwinlineModel) -> bool:
    """Whether the model's attention has anything that transfer trains (softmax has not)."""
    return bool(learned(model))


def learned(model: TwinlineModel) -> list[str]:
    """The names of what transfer trains; a linear branch that is switched off reads nothing, and
    so has nothing to learn."""
    off = model.config.attention == "hybrid" and not model.config.far
    return [
        name for name, p in model.named_parameters()
        if transferred(name) and p.requires_grad and not (off and ".attention." in name)
    ]  # fmt: skip


def transferred(name: str) -> bool:
    """Whether transfer trains the parameter of this name: what mixes in softmax's place.

    The convolution before the attention stays as it is: softmax itself would read through it.
    """
    return ".attention." in name or ".local.beside." in name


def set_dropout(model: TwinlineModel, probability: float) -> None:
    """Set every dropout of the model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def stretch(ids: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Texts joined in their order and cut to ``length`` tokens each; one shorter if need be."""
    flow = [token for row in ids for token in row]
    whole = [flow[i : i + length] for i in range(0, len(flow) - length + 1, length)]
    return whole or [flow]


def transfer_loss(
    model: TwinlineModel, ids: Tensor, real: Tensor, mass: float, block: int, alone: bool
) -> Tensor:
    """Mean over layers of the relative squared error; see ``transfer``.

    For ``hybrid``, in blocks of ``block`` tokens, ``mass`` times the squared error of the log-odds
    of the softmax mass outside a token's own block is added: identity-initialised maps give the
    linear branch far too little of it. With ``alone`` its maps are trained as linear attention.
    """
    mask = None if bool(real.all()) else real
    weights = real[:, :, None].to(torch.float32)  # (b, n, 1)
    losses = []
    count = real.sum(dim=1)
    with torch.no_grad():
        x, starts = model.begin(ids, real, None)
    for layer in model.each_layer():
        with torch.no_grad():
            source = layer.source(x, mask)
            q, k, v = layer.split(source)
            given = layer.given((k, v), mask, None, count, starts)
            if starts is not None and model.config.anchors and not alone:
                layout = Layout.of(starts, mask, block)
                exact, _ = read_sentences(q, k, v, None, q[..., :1], None, layout, given[-1])
            else:
                exact = softmax_attention(q, k, v, mask)  # (b, h, n, d)
            target = layer.project(exact)
            scale = (target.square() * weights).sum()
        attention = layer.attention
        if not isinstance(attention, HybridAttention):
            mixed = attention(q, k, v, mask, *given)
        elif alone:
            mixed = linear_attention(attention.q_map(q), attention.k_map(k, count), v, mask)
        else:
            mixed, log_odds = attention.attend(q, k, v, mask, block, *given)
            if attention.far:  # else it holds nothing, whatever is wanted
                with torch.no_grad():
                    number = blocks_of(starts, real, block)
                    wanted, some = outside(q, k, real, number, model.config.neighbours)
                    wanted = wanted - FAINT * model.config.anchors
                error = torch.where(some, log_odds - wanted, 0.0).square()  # (b, h, n)
                losses.append(mass * error.sum() / some.expand_as(error).sum().clamp_min(1))
        made = layer.project(mixed, layer.beside(source, mask, v))
        losses.append(((made - target).square() * weights).sum() / scale)
        with torch.no_grad():
            x = layer.after_attention(x, target)
    return torch.stack(losses).sum() / len(model.layers)


def blocks_of(starts: Tensor | None, real: Tensor, block: int) -> Tensor:
    """The block in which each token stands, (batch, length), of texts padded on the right."""
    if starts is None:
        return (torch.arange(real.shape[1], device=real.device) // block).expand_as(real)
    return parts(starts, real, block)[0]


def outside(
    q: Tensor, k: Tensor, real: Tensor, number: Tensor, neighbours: int
) -> tuple[Tensor, Tensor]:
    """Softmax's log-odds of attending outside the near blocks, and where there is an outside.

    Both (batch, heads or 1, length), from ``q, k`` (batch, heads, length, head_dim) of texts padded
    on the right, each token in block ``number`` (batch, length).
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (b, h, n, n)
    near = ((number[:, :, None] - number[:, None]).abs() <= neighbours)[:, None]  # (b, 1, n, n)
    key = real[:, None, None, :]
    low = torch.finfo(scores.dtype).min
    log_near = scores.masked_fill(~(near & key), low).logsumexp(-1)
    log_far = scores.masked_fill(~(~near & key), low).logsumexp(-1)
    some = (~near & key).any(-1) & real[:, None, :]
    return log_far - log_near, some
