"""A cross-encoder fine-tuned on a pair task: the teacher's first part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batching import ShuffledBatches, load_tokenizer
from ..cache import Pair
from ..data import Pairs
from ..errors import TwinlineError
from ..files import fingerprint, whole_folder, writable_folder
from ..loop import Batch, Run, deciding, train
from ..options import TeachOptions
from ..randomness import own_generators
from ..sources import find_model
from ..statistics import pearson
from ..teacher import (
    CrossEncoderScorer,
    pad_rows,
    pair_rows,
    positions_of,
    to_unit,
    write_card,
)
from .distill import labels_of

VERY_LONG = 10**9


def teach(
    base: str | Path,
    pairs: Pairs,
    output: str | Path,
    *,
    validation: Pairs | None = None,
    options: TeachOptions | None = None,
    folder: Path | None = None,
    show_progress: bool | None = None,
) -> Run:
    """Fine-tune ``base`` to read two texts together; write a cross-encoder to ``output``.

    The one output is a logit whose sigmoid is the unit score; the loss is binary cross-entropy to
    the label on the unit scale. Which text comes first is drawn anew at every step, so that the
    order carries nothing.

    Args:
        folder: checkpoints and ``metrics.jsonl``; a run found there goes on.
    Raises: TwinlineError if the base or the output cannot be used.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    options = options or TeachOptions()
    writable_folder(output, "output")
    start = find_model(base)
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # that the new head is new is no news
    try:
        with own_generators(options.seed):  # draws the new head
            model = AutoModelForSequenceClassification.from_pretrained(
                str(start), num_labels=1, dtype=torch.float32
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise TwinlineError(f"The model {base} cannot become a cross-encoder: {error}") from error
    finally:
        logging.set_verbosity(told)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(start)
    given: list[Pair] = list(zip(pairs.sentence1, pairs.sentence2, strict=True))
    labels = pairs.unit_score
    rows = pair_rows(tokenizer, given)
    turned = pair_rows(tokenizer, [(b, a) for a, b in given])
    limit = positions_of(model.config) or VERY_LONG
    if long := [i + 1 for i, (ids, _) in enumerate(rows) if len(ids) > limit]:
        raise TwinlineError(
            f"Pair {long[0]} has more than the cross-encoder's {limit} tokens ({len(long)} pairs "
            "do): shorten or leave out those pairs."
        )
    batches = ShuffledBatches([len(ids) for ids, _ in rows], options.pairs, options.seed)
    steps = max(1, round(options.epochs * batches.per_epoch))
    scorer = CrossEncoderScorer(model, tokenizer, "logit")

    def batch_at(number: int) -> Batch:
        chosen = batches[number]
        turn = np.random.default_rng((options.seed, number)).random(len(chosen)) < 0.5
        read = [turned[i] if t else rows[i] for i, t in zip(chosen, turn, strict=True)]
        inputs = pad_rows(read, model.config.pad_token_id or 0, model.device)
        if not scorer.types:
            del inputs["token_type_ids"]
        label = torch.tensor(labels[chosen], dtype=torch.float32, device=model.device)
        return Batch((inputs, label), len(chosen), sum(len(ids) for ids, _ in read))

    def loss(module: nn.Module, inputs: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        logits = module(**inputs[0]).logits[:, 0].float()
        return nn.functional.binary_cross_entropy_with_logits(logits, inputs[1])

    evaluate = None
    if validation is not None:
        read = list(zip(validation.sentence1, validation.sentence2, strict=True))
        gold = labels_of(validation)

        def evaluate() -> float:
            return pearson(to_unit(scorer(read), "logit"), gold)

    for name, parameter in model.named_parameters():
        if name.endswith("word_embeddings.weight"):
            parameter.requires_grad_(not options.freeze_words)
    run = train(
        model, batch_at, loss, options.loop(steps),
        folder=folder,
        identity={"teach": deciding(options),
                  "pairs": fingerprint([*pairs.sentence1, *pairs.sentence2, labels.tobytes()])},
        evaluate=evaluate,
        title="teaching",
        show_progress=show_progress,
    )  # fmt: skip
    save_cross_encoder(output, model, tokenizer)
    return run


def save_cross_encoder(output: str | Path, model: Any, tokenizer: Any) -> None:
    """A folder for sentence-transformers' ``CrossEncoder``, and a teacher that knows its scale."""
    tokenizer.model_max_length = positions_of(model.config) or VERY_LONG
    model.config.sentence_transformers = {
        "activation_fn": "torch.nn.modules.activation.Sigmoid",
        "version": "5.0.0",
    }
    with whole_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_card(folder, [{"path": ".", "scale": "logit"}])
