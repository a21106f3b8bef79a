"""Field cases of processes: encoders are copied and sent, and a program's own state stays its own.

The numbers in the tests' names are those of the cases.
"""

import copy
import csv
import logging
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinline import Encoder, Teacher, convert
from twinline.conversion import transfer
from twinline.data import Pairs, load, load_pairs
from twinline.data.retrieval import Retrieval
from twinline.errors import TwinlineError
from twinline.evaluate import evaluate
from twinline.options import DistillOptions, RetrievalOptions, TeachOptions, TransferOptions
from twinline.precision import int8_here, product_rates
from twinline.recipes import DistillRecipe
from twinline.training import distill, student, teach
from twinline.training.retrieval import train_retrieval
from vocabulary import WORDS

TEXTS = [" ".join(WORDS[:n]) for n in range(1, 12)] + [" ".join(WORDS * 5), ""]
PAIRS = [("a man", "a woman"), ("dogs run", "the sun")]
needs_int8 = pytest.mark.skipif(not int8_here(), reason="no VNNI here")
DTYPES = ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)]


def encoder(base: Path, attention: str, dtype: str, **options: Any) -> Encoder:
    return Encoder(convert(base, attention), dtype=dtype, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["softmax", "linear", "lightning", "hybrid"])
def test_field_19_a_copied_or_pickled_encoder_gives_the_same_bits(
    tiny_bert: Path, attention: str, dtype: str
) -> None:
    one = encoder(tiny_bert, attention, dtype)
    want = one.encode(TEXTS)
    for other in copies(one):
        assert (other.encode(TEXTS) == want).all()
        assert other.dtype == dtype
        assert other.model.state_dict().keys() == one.model.state_dict().keys()


@needs_int8
def test_field_19_a_process_pool_encodes(tiny_bert: Path) -> None:
    one = encoder(tiny_bert, "linear", "int8")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert (pool.submit(one.encode, TEXTS).result(timeout=120) == one.encode(TEXTS)).all()


def copies(one: Any) -> list[Any]:
    return [copy.deepcopy(one), pickle.loads(pickle.dumps(one))]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: Any, tiny_bert: Path, tiny_tokenizer: Any) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig.from_pretrained(tiny_bert, num_labels=1, initializer_range=0.5)
    folder: Path = tmp_path_factory.mktemp("cross-encoder")
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_field_19_a_teacher_with_its_cache_can_be_copied_and_pickled(
    tiny_bert: Path, cross_encoder: Path, tmp_path: Path, dtype: str
) -> None:
    twin = encoder(tiny_bert, "softmax", dtype)
    scale: Any = ["logit", None]
    kept = Teacher(cross_encoder, twin, scale=scale, cache=tmp_path / "scores.sqlite")
    for other in copies(kept):
        assert other.fingerprint == kept.fingerprint
        assert (other.predict(PAIRS) == kept.predict(PAIRS)).all()
    fresh = Teacher(cross_encoder, twin, scale=scale)
    for other in copies(fresh):
        assert (other.predict(PAIRS) == kept.predict(PAIRS)).all()


@needs_int8
def test_field_19_the_state_of_int8_shows_its_weights_and_ranges(tiny_bert: Path) -> None:
    """Whatever a vector depends on is a tensor of the state: a fingerprint of it sees a change."""
    held = {
        name: encoder(tiny_bert, "linear", "int8", calibration=[text]).model.state_dict()
        for name, text in (("short", "a"), ("long", " ".join(WORDS)))
    }
    assert any(not torch.equal(held["short"][name], held["long"][name]) for name in held["short"])
    products = [name for name, tensor in held["short"].items() if tensor.dtype == torch.int8]
    assert len(products) == 2 * 6, "of each layer queries, keys, values, out, up and down"
    for name in products:
        assert torch.equal(held["short"][name], held["long"][name]), name


@needs_int8
def test_field_19_a_state_that_is_loaded_is_what_encodes(tiny_bert: Path) -> None:
    short, long = (
        encoder(tiny_bert, "softmax", "int8", calibration=[text]) for text in ("a", " ".join(WORDS))
    )
    assert not np.array_equal(short.encode(TEXTS), long.encode(TEXTS))
    short.model.load_state_dict(long.model.state_dict())
    assert (short.encode(TEXTS) == long.encode(TEXTS)).all()


@pytest.fixture
def pairs(tiny_pairs: Path) -> Pairs:
    return load_pairs(tiny_pairs, scale=(0, 1))


def process_state() -> dict[str, Any]:
    """What a program's other parts can see of the process."""
    from transformers.utils import logging as theirs

    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "numpy's generator": str(np.random.get_state()),
        "random's generator": random.getstate(),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, logging.getLogger("twinline").level),
        "transformers' logging": theirs.get_verbosity(),
        "csv": csv.field_size_limit(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }


def short(**given: Any) -> DistillOptions:
    return DistillOptions(alpha=0, epochs=0.2, evaluate_every=1, **given)


def do_recipe(base: Path, pairs: Path, output: Path) -> None:
    student(
        DistillRecipe(
            base=str(base), data=str(pairs), scale=(0, 1), similarity="dse", train=short(),
            transfer=TransferOptions(steps=1),
        ),
        output,
    )  # fmt: skip


def do_retrieval(encoder: Encoder) -> None:
    documents = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(4)]
    task = Retrieval(["a", "man", "plays", "sun"], np.arange(4), documents, "tiny", "train", 0)
    train_retrieval(encoder, [task], options=RetrievalOptions(pairs=2, epochs=1))


VERBS: dict[str, Callable[[Path, Path, Path], object]] = {
    "load": lambda base, pairs, output: load(pairs, scale=(0, 1)),
    "convert": lambda base, pairs, output: convert(base, "hybrid"),
    "Encoder": lambda base, pairs, output: Encoder(base),
    "bfloat16": lambda base, pairs, output: Encoder(base, dtype="bfloat16").encode(TEXTS),
    "auto": lambda base, pairs, output: (product_rates.cache_clear(), Encoder(base, dtype="auto")),
    "save": lambda base, pairs, output: Encoder(base).save(output / "saved"),
    "transfer": lambda base, pairs, output: transfer(
        convert(base, "linear"), TEXTS, TransferOptions(steps=1)
    ),
    "teach": lambda base, pairs, output: teach(
        base, load(pairs, scale=(0, 1)), output / "taught", options=TeachOptions(epochs=0.1)
    ),
    "distill": lambda base, pairs, output: distill(
        Encoder(base), load(pairs, scale=(0, 1)), options=short()
    ),
    "recipe": do_recipe,
    "retrieval": lambda base, pairs, output: do_retrieval(Encoder(convert(base, "linear"))),
    "evaluate": lambda base, pairs, output: evaluate(Encoder(base), load(pairs, scale=(0, 1))),
}
if int8_here():
    VERBS["int8"] = lambda base, pairs, output: encoder(base, "linear", "int8")


@pytest.mark.parametrize("verb", VERBS)
def test_field_24_nothing_changes_what_a_program_shares_with_it(
    tiny_bert: Path, tiny_pairs: Path, tmp_path: Path, verb: str
) -> None:
    torch.manual_seed(24)  # no seed of a training's step
    before = process_state()
    VERBS[verb](tiny_bert, tiny_pairs, tmp_path)
    assert process_state() == before


def test_field_24_an_error_in_training_restores_the_generator_too(
    tiny_bert: Path, pairs: Pairs
) -> None:
    torch.manual_seed(24)
    before = torch.get_rng_state()
    one = Encoder(tiny_bert)
    with torch.no_grad():
        one.model.layers[0].up.bias.fill_(float("nan"))
    with pytest.raises(TwinlineError, match="The loss became nan"):
        distill(one, pairs, options=short())
    assert torch.equal(torch.get_rng_state(), before)


def test_field_24_a_seed_makes_the_same_weights_whatever_was_drawn_before(
    tiny_bert: Path, pairs: Pairs, tmp_path: Path
) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        output = tmp_path / str(seed)
        teach(tiny_bert, pairs, output, options=TeachOptions(epochs=0.2, seed=5))
        found.append((output / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_field_24_a_program_that_has_an_accelerator_of_its_own_is_told() -> None:
    """accelerate's state is one a process: training would be in its mixed precision, unseen."""
    program = """
from accelerate import Accelerator
Accelerator(mixed_precision="bf16")
import torch
from twinline.loop import Batch, LoopOptions, train
try:
    train(torch.nn.Linear(1, 1), lambda n: Batch(torch.ones(1, 1), 1, 1),
          lambda m, x: m(x).mean(), LoopOptions(steps=1))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("TwinlineError This process has an Accelerator with mixed prec")


def test_field_24_a_training_that_is_stopped_leaves_no_dropout_behind(
    tiny_bert: Path, tiny_pairs: Path
) -> None:
    """An interrupt, or a loss that is not finite: encoding is the same every time."""
    encoder = Encoder(tiny_bert)
    pairs = load_pairs(tiny_pairs, scale=(0, 1))
    options = DistillOptions(alpha=0, epochs=2.0, learning_rate=1e30)
    with pytest.raises(TwinlineError, match="The loss became"):
        distill(encoder, pairs, options=options, show_progress=False)
    assert not any(module.training for module in encoder.model.modules())
    encoder = Encoder(tiny_bert)
    for module in (encoder.model, encoder.head):
        module.train()
    vectors = [encoder.encode(["a man plays the guitar"]) for _ in range(2)]
    assert (vectors[0] == vectors[1]).all()


def test_field_24_a_new_head_draws_nothing_and_says_that_it_is_random(tiny_bert: Path) -> None:
    before = torch.random.get_rng_state()
    encoder = Encoder(tiny_bert, similarity="dse")
    assert (torch.random.get_rng_state() == before).all()
    with pytest.warns(UserWarning, match="its weights are random"):
        encoder.score(["a man"], ["rain"])
