"""A cross-encoder fine-tuned on a pair task: the teacher's first part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import check_value, instance
from ..batching import ShuffledBatches
from ..checkpoints import load_classifier, longest_input
from ..data import Pairs
from ..errors import TwinlineError
from ..fingerprints import tokenizer_print
from ..folders import output_folder, whole_folder
from ..hashing import fingerprint
from ..loop import Batch, Run, deciding, train
from ..model_card import cross_encoder_card
from ..options import TeachOptions
from ..ownership import CROSS_ENCODER_FILES, README, marked_card
from ..randomness import fork_generators
from ..scales import to_unit
from ..sources import find_model
from ..statistics import pearson
from ..teacher import (
    CrossEncoderScorer,
    pad_rows,
    pair_rows,
    write_card,
)
from ..text import Pair
from ..tokenization import load_tokenizer
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
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Fine-tune ``base`` to read two texts together; write a cross-encoder to ``output``.

    The one output is a logit whose sigmoid is the unit score; the loss is binary cross-entropy to
    the label on the unit scale. Which text comes first is drawn anew at every step, so that the
    order carries nothing.

    Args:
        folder: checkpoints and ``metrics.jsonl``; a run found there goes on.
        overwrite: replace files in ``output`` that Twinline did not write.
    Raises: TwinlineError if the base or the output cannot be used.
    """
    instance("pairs", pairs, Pairs)
    instance("validation", validation, Pairs, optional=True)
    options = check_value("options", options or TeachOptions(), TeachOptions)
    output_folder(output, "output", overwrite, CROSS_ENCODER_FILES)
    start = find_model(base)
    with fork_generators(options.seed):  # draws the new head
        model = load_classifier(start, new_head=True)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(start)
    given: list[Pair] = list(zip(pairs.sentence1, pairs.sentence2, strict=True))
    labels = pairs.unit_score
    rows = pair_rows(tokenizer, given)
    turned = pair_rows(tokenizer, [(b, a) for a, b in given])
    limit = longest_input(model) or VERY_LONG
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
                  "tokenizer": tokenizer_print(tokenizer),
                  "pairs": fingerprint([*pairs.sentence1, *pairs.sentence2, labels.tobytes()])},
        evaluate=evaluate,
        title="teaching",
        show_progress=show_progress,
    )  # fmt: skip
    save_cross_encoder(output, model, tokenizer, overwrite)
    return run


def save_cross_encoder(
    output: str | Path, model: Any, tokenizer: Any, overwrite: bool = False
) -> None:
    """A folder for sentence-transformers' ``CrossEncoder``, and a teacher that knows its scale."""
    tokenizer.model_max_length = longest_input(model) or VERY_LONG
    model.config.sentence_transformers = {
        "activation_fn": "torch.nn.modules.activation.Sigmoid",
        "version": "5.0.0",
    }
    with whole_folder(output, overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_card(folder, [{"path": ".", "scale": "logit"}])
        (folder / README).write_text(marked_card(cross_encoder_card()), encoding="utf-8")
