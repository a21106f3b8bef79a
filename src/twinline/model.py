"""The student: a BERT-shaped encoder whose attention is one of ``attention.ATTENTION``.

Read top to bottom: embeddings, a layer, the model; its configuration is in ``config``. Shapes stand
on the lines; ``b`` is batch, ``n`` length, ``h`` heads, ``d`` head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import ATTENTION, Ends, Lent
from .attention.blocks import ends_of
from .attention.folded import FoldedAttention
from .attention.spec import real_first
from .bysentence import SentencePooling
from .checkpoints import check_tensors
from .config import TwinlineConfig
from .local import Local
from .ownership import check_one_save
from .pooling import POOLINGS
from .sentences import places_in_sentences, sentence_starts, words
from .stca import Sentences

PIECE = 2048
"""Tokens that a layer works on at a time where no gradient is asked for. What it makes of them on
the way (the feed-forward, features, scores) then stays near the processor, and the memory of a long
text grows by its states alone; fewer tokens would leave each product too little to do."""

ON_GPU = 65_536
"""That on a GPU, which fewer tokens would leave idle."""

KEPT = 262_144
"""Tokens up to which a hybrid keeps q, k and v between collecting and reading; those of a longer
text are made twice, which costs an eighth of the time and saves half of the memory."""


class Embeddings(nn.Module):
    """Sum of word, position and type embeddings, normalised."""

    def __init__(self, config: TwinlineConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.position = nn.Embedding(config.position_table, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.rule = config.position_rule
        self.period = config.position_period or config.position_table

    def positions(self, place: Tensor, last: Tensor) -> Tensor:
        """Position embeddings (b, n, hidden) of tokens at ``place`` (b, n), for any length.

        ``last`` (b, 1) is the place of each text's last token.
        """
        if self.rule == "tiled":
            embedded: Tensor = self.position(place % self.period)
            return embedded
        # Texts that fit keep their positions; longer ones are squeezed into the table, each by its
        # own length, so that a text's vector does not depend on what it is batched with.
        squeeze = (self.period - 1) / last.clamp_min(self.period - 1).to(torch.float32)
        exact = place * squeeze  # (b, n)
        low = exact.floor().long().clamp_max(self.period - 1)
        high = (low + 1).clamp_max(self.period - 1)
        part = (exact - low).unsqueeze(-1).to(self.position.weight.dtype)  # (b, n, 1)
        return torch.lerp(self.position(low), self.position(high), part)

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor,
        token_type_ids: Tensor | None,
        place: Tensor | None = None,
    ) -> Tensor:
        """``place`` (b, n) is each token's; None: counted over real tokens."""
        if place is None:
            place = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
        last = place.amax(dim=1, keepdim=True)  # (b, 1)

        def embed(part: slice) -> Tensor:
            kind = 0 if token_type_ids is None else token_type_ids[:, part]
            types: Tensor = self.token_type.weight[kind]  # (hidden,) or (b, n, hidden)
            x = self.word(input_ids[:, part]) + types + self.positions(place[:, part], last)
            out: Tensor = self.dropout(self.norm(x))
            return out

        length = input_ids.shape[1]
        if torch.is_grad_enabled() or length <= PIECE:
            return embed(slice(None))
        out = self.word.weight.new_empty(*input_ids.shape, self.word.embedding_dim)
        for start in range(0, length, PIECE):
            out[:, start : start + PIECE] = embed(slice(start, start + PIECE))
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised (post-norm)."""

    def __init__(self, config: TwinlineConfig, layer: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads, self.anchors = config.num_attention_heads, config.anchors
        self.local: nn.ModuleDict | None = None
        if config.local:
            parts = {part: Local(hidden, config.local) for part in ("before", "beside")}
            self.local = nn.ModuleDict(parts)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention = ATTENTION[config.attention](config.attention_spec(layer))
        self.out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.up = nn.Linear(hidden, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def source(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What ``split`` is given of the layer's input; both (b, n, hidden)."""
        return x if self.local is None else x + cast(Tensor, self.local["before"](x, mask))

    def beside(self, source: Tensor, mask: Tensor | None, v: Tensor | None = None) -> Tensor | None:
        """What ``project`` adds to the heads, (b, n, hidden), if anything; v is ``split``'s."""
        if self.local is None:
            return None
        folded = isinstance(self.attention, FoldedAttention)  # whose values are weighted already
        own = self.values(source) if v is None or folded else v
        return cast(Tensor, self.local["beside"](own.transpose(1, 2).flatten(2), mask))

    def split(self, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of ``x`` (b, n, hidden), each (b, h, n, d)."""
        if isinstance(self.attention, FoldedAttention):  # features, where encoding is all
            return self.attention.split(x, count)
        q, k, v = self.heads_of(self.qkv(x), 3)
        return q, k, v

    def queries(self, x: Tensor) -> Tensor:
        """``split``'s first, and where that is possible no more is made."""
        if isinstance(self.attention, FoldedAttention):
            return self.attention.queries(x)
        if not isinstance(self.qkv, nn.Linear):
            return self.split(x)[0]
        rows = slice(0, x.shape[-1])
        return self.heads_of(F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows]), 1)[0]

    def keys(self, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``split``'s second and third, likewise."""
        if isinstance(self.attention, FoldedAttention):
            return self.attention.keys(x, count)
        if not isinstance(self.qkv, nn.Linear):
            return self.split(x)[1:]
        rows = slice(x.shape[-1], None)
        k, v = self.heads_of(F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows]), 2)
        return k, v

    def values(self, x: Tensor) -> Tensor:
        """``split``'s third alone, each token's own weight not in it; piece by piece."""
        made = []
        for part in x.split(PIECE, dim=1):
            if isinstance(self.attention, FoldedAttention):
                made.append(self.attention.values(part))
            elif isinstance(self.qkv, nn.Linear):
                rows = slice(2 * x.shape[-1], None)
                weight, bias = self.qkv.weight[rows], self.qkv.bias[rows]
                made.append(self.heads_of(F.linear(part, weight, bias), 1)[0])
            else:
                made.append(self.split(part)[2])
        return torch.cat(made, dim=2) if len(made) > 1 else made[0]

    def heads_of(self, projected: Tensor, parts: int) -> Tensor:
        """(b, n, parts * hidden) to (parts, b, h, n, d)."""
        b, n, _ = projected.shape
        return projected.view(b, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4)

    def given(
        self,
        kv: tuple[Tensor, Tensor],
        mask: Tensor | None,
        lent: Lent | None,
        count: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Any, ...]:
        """What the attention takes behind q, k, v and mask: see ``attention``."""
        if not getattr(self.attention, "reads_lent", False):
            return ()
        ends = None
        if self.anchors:
            ends = Ends(ends_of(kv[0], mask), ends_of(kv[1], mask))
        return lent, count, starts, ends

    def project(self, mixed: Tensor, beside: Tensor | None = None) -> Tensor:
        """Heads joined and projected: (b, h, n, d) to (b, n, hidden)."""
        joined = mixed.transpose(1, 2).flatten(2)
        out: Tensor = self.out(joined if beside is None else joined + beside)
        return out

    def after_attention(self, x: Tensor, projected: Tensor) -> Tensor:
        """What follows ``project``: residual, norm, feed-forward; all (b, n, hidden)."""
        x = self.attention_norm(x + self.dropout(projected))
        fed = self.down(self.activation(self.up(x)))  # (b, n, intermediate) inside
        out: Tensor = self.norm(x + self.dropout(fed))
        return out

    def whole(
        self,
        x: Tensor,
        mask: Tensor | None,
        lent: Lent | None = None,
        count: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """The layer at once: (b, n, hidden) to (b, n, hidden)."""
        source = self.source(x, mask)
        q, k, v = self.split(source, count)
        mixed = self.attention(q, k, v, mask, *self.given((k, v), mask, lent, count, starts))
        return self.after_attention(x, self.project(mixed, self.beside(source, mask, v)))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        overwrite: bool = False,
        lent: Lent | None = None,
        count: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """``overwrite`` lets the result take x's memory, where no gradient is asked for.

        ``count`` (b,) is how many tokens each text reads, lent ones too; ``starts`` (b, n) where
        its sentences begin, if they are kept apart.
        """
        b, n, _ = x.shape
        most = PIECE if x.device.type == "cpu" else ON_GPU
        if torch.is_grad_enabled() or b * n <= most or lent is not None:
            return self.whole(x, mask, lent, count, starts)
        out = x if overwrite else torch.empty_like(x)
        rows = max(1, most // n)
        for start in range(0, b, rows):
            part = slice(start, start + rows)
            real = None if mask is None else mask[part]
            counted = None if count is None else count[part]
            begun = None if starts is None else starts[part]
            if n <= most:
                out[part] = self.whole(x[part], real, None, counted, begun)
            else:
                self.by_pieces(x[part], real, out[part], counted, begun)
        return out

    def by_pieces(
        self,
        x: Tensor,
        mask: Tensor | None,
        out: Tensor,
        count: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> None:
        """``whole`` for a long text, x to ``out`` (1, n, hidden), which may be the same memory.

        The attention collects its state over all pieces first and is then read piece by piece. A
        kind that cannot do so mixes at once.
        """
        own = 0 if mask is None or real_first(mask) is not None else int(mask.sum())
        if 0 < own < x.shape[1]:  # a piece of padding would be the last without the last token
            begin = None if starts is None else starts[:, :own]
            out[:, :own] = self(x[:, :own], None, False, None, count, begin)
            out[:, own:] = 0
            return
        attention: Any = self.attention
        multiple = getattr(attention, "piece", None)
        if mask is not None and real_first(mask) is not None:
            multiple = None  # padding before or between tokens: pieces would not be blocks
        piece = PIECE if multiple is None else multiple * max(1, PIECE // multiple)
        many = -(-x.shape[1] // piece)
        masks = [None] * many if mask is None else mask.split(piece, dim=1)
        begun = [None] * many if starts is None else starts.split(piece, dim=1)
        source = self.source(x, mask)
        sources = source.split(piece, dim=1)
        parts = list(zip(x.split(piece, dim=1), out.split(piece, dim=1), masks, strict=True))
        beside = self.beside(source, mask)
        asides = [None] * len(parts) if beside is None else beside.split(piece, dim=1)
        if multiple is None:
            q, *kv = self.split(source, count)
            given = self.given((kv[0], kv[1]), mask, None, count, starts)
            mixed = attention(q, *kv, mask, *given).split(piece, dim=2)
            for (part, made, _), whole, aside in zip(parts, mixed, asides, strict=True):
                made.copy_(self.after_attention(part, self.project(whole, aside)))
            return
        keep = attention.reads_keys and x.shape[1] <= KEPT
        kept = [self.split(read, count) for read in sources] if keep else []
        ends = None
        if self.anchors:
            ends = Ends(*self.keys(ends_of(source, mask), count))
        told: list[tuple[Any, ...]] = [()] * many  # what comes with each piece, if it is asked for
        if getattr(attention, "reads_lent", False):
            here = [(not i, i == many - 1) for i in range(many)]
            told = [
                (count, start, ends and replace(ends, here=one))
                for start, one in zip(begun, here, strict=True)
            ]
        states = [
            attention.collect(
                *(kept[i][1:] if keep else self.keys(sources[i], count)), real, *told[i][:1]
            )
            for i, (_, _, real) in enumerate(parts)
        ]
        for i, ((part, made, real), state) in enumerate(
            zip(parts, attention.join(states), strict=True)
        ):
            if attention.reads_keys:
                q, *kv = kept[i] if keep else self.split(sources[i], count)
                mixed = attention.read(q, tuple(kv), real, state, *told[i])
            else:
                mixed = attention.read(self.queries(sources[i]), None, real, state, *told[i])
            made.copy_(self.after_attention(part, self.project(mixed, asides[i])))


class TwinlineModel(PreTrainedModel):
    """Token ids to token states and one vector a text.

    ``model(input_ids, attention_mask)`` with both (batch, length) returns ``last_hidden_state``
    (batch, length, hidden_size) and ``pooler_output`` (batch, projection_dim), the text's vector
    before normalisation. Any length is accepted; nothing is cut.
    """

    config_class = TwinlineConfig
    base_model_prefix = "twinline"
    main_input_name = "input_ids"

    def __init__(self, config: TwinlineConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        layers = [Layer(config, i) for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        pooling = POOLINGS[config.pooling]
        self.pooled_by_sentence = config.sentences and pooling.by_sentence
        self.pool = pooling.make(
            config.hidden_size, config.num_attention_heads, self.pooled_by_sentence
        )
        # In the middle layers states say most of how a sentence differs from its neighbours
        # (``benchmarks/finding.py``); 0: no layer is looked at.
        self.middle = round(2 / 3 * len(layers)) if pooling.looks else 0
        self.apart = config.sentences and getattr(ATTENTION[config.attention], "reads_lent", False)
        self.roles: Tensor | None  # what each token may be for a sentence's end, from ``convert``
        told = self.apart or self.pooled_by_sentence
        known = torch.zeros(config.vocab_size, dtype=torch.uint8) if told else None
        self.register_buffer("roles", known)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every parameter gets its start here: what a checkpoint lacks is otherwise left as is."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif reset := getattr(module, "reset", None):  # maps, slopes and gains know their start
            reset()

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, but a checkpoint that does not fit is refused, not filled up.

        Raises: TwinlineError naming the tensors that are missing or have no place, or a file of
            another save.
        """
        if Path(path).is_dir():
            check_one_save(Path(path))
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("ignore_mismatched_sizes", True)  # they are refused here, by name
        loaded: Any = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        absent = [*info["missing_keys"], *(str(name) for name, *_ in info["mismatched_keys"])]
        check_tensors(absent, info["unexpected_keys"], path)
        if Path(path).is_dir():
            # A relative path means another folder once the user has moved.
            model.config.name_or_path = model.name_or_path = str(Path(path).absolute())
        return (model, info) if wants_info else model

    def memory_for(self, tokens: int) -> int:
        """Bytes that a text of so many tokens takes where no gradient is asked for.

        The states in and out, what the attention keeps of q, k and v, and each token's number and
        places; measured peaks lie within a tenth of it, beside the weights.
        """
        attention: Any = self.layers[0].attention
        kept = 5  # the states out; q, k, v and what comes out of them
        if getattr(attention, "piece", None) is not None:
            kept = (5 if tokens <= KEPT else 2) if attention.reads_keys else 0
        width: int = self.config.hidden_size * self.embeddings.word.weight.element_size()
        kept += 3 * bool(self.config.local)
        return tokens * (width * (1 + kept) + 150)

    def begin(
        self, input_ids: Tensor, real: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the first layer reads (b, n, hidden), and where sentences begin (b, n) if that is
        asked for."""
        if self.roles is None:
            return self.embeddings(input_ids, real, token_type_ids), None
        starts = self.sentence_starts(input_ids, real)
        anew = self.apart and self.config.anchors
        place = places_in_sentences(starts, real) if anew else None
        return self.embeddings(input_ids, real, token_type_ids, place), starts

    def sentence_starts(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Where sentences begin (b, n), if they are told apart: see ``sentences``."""
        assert self.roles is not None
        longest: int = self.config.longest_sentence
        return sentence_starts(input_ids, real, self.roles, longest)

    def pooled_tokens(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Which tokens have a part in a text's vector, (b, n)."""
        if not self.config.words_only:
            return real
        assert self.roles is not None
        return words(input_ids, real, self.roles)

    def each_layer(self) -> Iterator[Layer]:
        """The layers, first to last, by their own type."""
        return cast(Iterator[Layer], iter(self.layers))

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        lent: Lent | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Token states, and one vector a text.

        With ``output_attentions`` the result's are the weights of a learned pooling, layer by
        layer. With ``lent`` the batch's texts read one another's prose: see ``attention.Lent``.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = real.bool()  # (b, n)
        mask = None if bool(real.all()) else real
        x, starts = self.begin(input_ids, real, token_type_ids)
        # A layer that works by pieces cuts a sentence between two; a pooling reads it whole.
        cut = None if starts is None else starts | (real & (real.long().cumsum(dim=1) % PIECE == 1))
        count = real.sum(dim=1)
        if lent is not None:
            count = count + lent.gathered(lent.tokens.sum(dim=1).to(x.dtype))
        states, sentences = [x], None
        own = self.pooled_tokens(input_ids, real)
        read = own if lent is None else lent.mask(own)
        keep = output_hidden_states or POOLINGS[self.config.pooling].layers > 1
        for number, layer in enumerate(self.each_layer(), 1):
            x = layer(x, mask, overwrite=not keep, lent=lent, count=count, starts=cut)
            states = [*states, x] if keep else [x]
            if number == self.middle and starts is not None:
                seen = x.detach()  # the encoder is not to be bent until its sentences are found
                sentences = cast(SentencePooling, self.pool).look(seen, starts, own)
                sentences = sentences if lent is None else sentences.joined(seen, read)
        if self.pooled_by_sentence and sentences is None and starts is not None:
            sentences = Sentences.of(x, starts, own)
            sentences = sentences if lent is None else sentences.joined(x, read)
        pooled = states if lent is None else [state.flatten(0, 1) for state in states]
        vector, weights = self.pool(pooled, read, sentences)
        hidden_states = tuple(states) if output_hidden_states else None
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=vector,  # (b, projection_dim)
            hidden_states=hidden_states,
            attentions=weights if output_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output
