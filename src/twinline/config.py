"""What a ``TwinlineModel`` is built from, as it is saved beside the weights."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from . import arguments
from .attention import ATTENTION, FEATURE_MAPS, AttentionSpec
from .errors import TwinlineError
from .options import AttentionOptions, ModelOptions, at_least, share
from .pooling import POOLINGS

POSITION_RULES = ("tiled", "interpolated")


def one_of(name: str, value: str, allowed: Any) -> None:
    arguments.one_of(name, value, sorted(allowed))


SHAPE = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
         "intermediate_size", "type_vocab_size", "pad_token_id", "position_table"), int
    ),
    **dict.fromkeys(("hidden_dropout_prob", "initializer_range", "layer_norm_eps"), float),
    "normalize": bool,
}  # fmt: skip
"""The types of what is not declared in ``options``."""


class TwinlineConfig(PreTrainedConfig):
    """Shape, attention, positions and pooling of a ``TwinlineModel``.

    There is no ``max_position_embeddings`` on purpose: libraries that find one cut texts there
    without a word. ``position_table`` is the number of learned positions, not a limit.

    Raises: TwinlineError when an option contradicts another or is not known.
    """

    model_type = "twinline"
    # Set from ModelOptions; named here for readers and type checkers.
    attention: str
    feature_map: str
    local: int
    position_rule: str
    position_period: int | None
    pooling: str

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        intermediate_size: int = 1536,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
        position_table: int = 512,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        self.position_table = position_table
        self.normalize = normalize
        shape = {name: getattr(self, name) for name in SHAPE}
        for name, value in shape.items():
            setattr(self, name, arguments.check_value(name, value, SHAPE[name]))
        kwargs.pop("twinline", None)  # a save's id and files (``ownership``): not the model's
        hints = arguments.hints_of(ModelOptions)
        for option in fields(ModelOptions):  # declared, with their meaning, in options.py
            value = kwargs.pop(option.name, option.default)
            setattr(
                self, option.name, arguments.check_value(option.name, value, hints[option.name])
            )
        self.pooling = self.pooling or "mean"
        one_of("attention", self.attention, ATTENTION)
        one_of("feature_map", self.feature_map, FEATURE_MAPS)
        one_of("position_rule", self.position_rule, POSITION_RULES)
        one_of("pooling", self.pooling, POOLINGS)
        one_of("hidden_act", hidden_act, ACT2FN)
        at_least(self, 1, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        at_least(self, 1, "intermediate_size", "type_vocab_size", "position_table")
        share(self, "hidden_dropout_prob")
        if hidden_size % num_attention_heads:
            raise TwinlineError(
                f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads "
                f"({num_attention_heads})."
            )
        if self.local < 0 or (self.local and self.local % 2 == 0):
            raise TwinlineError(f"local must be an odd number of tokens or 0, not {self.local}.")
        period = self.position_period
        if period is not None and not 1 <= period <= position_table:
            raise TwinlineError(
                f"position_period must lie between 1 and position_table ({position_table}), "
                f"not {period}."
            )
        if POOLINGS[self.pooling].looks and not self.sentences:
            raise TwinlineError(f"pooling {self.pooling!r} needs sentences: set sentences to true.")
        if self.words_only and not (self.sentences and POOLINGS[self.pooling].by_sentence):
            raise TwinlineError(
                f"words_only is for pooling by the sentence, not {self.pooling!r}: set sentences "
                "to true and pooling to sentence or latent, or words_only to false."
            )
        if POOLINGS[self.pooling].layers > num_hidden_layers:
            raise TwinlineError(
                f"pooling {self.pooling!r} needs {POOLINGS[self.pooling].layers} layers; "
                f"num_hidden_layers is {num_hidden_layers}."
            )
        super().__init__(**kwargs)
        self.attention_spec(0)  # refuses what does not fit together

    @property
    def projection_dim(self) -> int:
        """Width of ``pooler_output``, under the name by which sentence-transformers asks for it."""
        return self.hidden_size * POOLINGS[self.pooling].layers

    def attention_spec(self, layer: int) -> AttentionSpec:
        """What layer number ``layer`` builds its attention from."""
        chosen = {option.name: getattr(self, option.name) for option in fields(AttentionOptions)}
        return AttentionSpec(
            heads=self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            layer=layer,
            layers=self.num_hidden_layers,
            **chosen,
        )
