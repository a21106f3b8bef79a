"""The command line: one function a verb, no logic.

A user's mistake ends with one sentence on standard error and status 2; Ctrl-C with status 130.
Every option is a field of a dataclass in ``options``; ``--recipe FILE`` reads them from YAML.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError, UnusedCliTokensError

from .errors import TwinlineError
from .recipe import read_yaml
from .recipes import ConvertRecipe, DistillRecipe, RetrievalRecipe, TeachRecipe
from .strict_options import check_tokens, check_values, types_of
from .study.verbs import study

Flat = Parameter(name="*")

app = App(
    name="twinline",
    help="Distil a slow cross-encoder into a fast twin encoder with linear attention.",
    help_epilogue="Every training verb takes --recipe FILE.yaml; other options override it.",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),  # else every list has an option --empty-…
    suppress_keyboard_interrupt=False,  # main says how a stopped command goes on
)

Dtype = Literal["float32", "bfloat16", "int8", "auto"]
Overwrite = Annotated[
    bool, Parameter(negative=(), help="Replace files in OUTPUT that Twinline did not write.")
]

app.command(study)


@app.command
def convert(
    output: Path,
    *,
    recipe: Annotated[ConvertRecipe | None, Flat] = None,
    overwrite: Overwrite = False,
) -> None:
    """Give a pretrained encoder new attention, and transfer it on unlabelled text (--texts).

    Parameters
    ----------
    output
        Folder of the new model; its checkpoints lie beside it under OUTPUT.work until it is done.
    """
    from .files import remove_work, work_folder
    from .folders import output_folder
    from .training import converted

    folder = output_folder(output, "output", overwrite)
    work = work_folder(folder)
    encoder = converted(recipe or ConvertRecipe(), work)
    encoder.save(folder, overwrite)
    remove_work(work)
    print(f"wrote {output}: {encoder.model.config.attention} attention, width {encoder.dimension}")


@app.command
def teach(
    output: Path,
    *,
    recipe: Annotated[TeachRecipe | None, Flat] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a cross-encoder on pairs: the teacher.

    Parameters
    ----------
    output
        Folder of the cross-encoder; a stopped run goes on from OUTPUT.work.
    """
    from .files import remove_work, work_folder
    from .folders import output_folder
    from .ownership import CROSS_ENCODER_FILES, LOG
    from .training import teach as run_teach
    from .training import training_pairs

    options = recipe or TeachRecipe()
    folder = output_folder(output, "output", overwrite, (*CROSS_ENCODER_FILES, LOG))
    work = work_folder(folder)
    pairs, validation = training_pairs(options)
    run = run_teach(
        options.base, pairs, folder, validation=validation, options=options.train, folder=work,
        overwrite=overwrite,
    )  # fmt: skip
    keep_log(work, folder)
    remove_work(work)
    print(f"wrote {output}" + best(run))


@app.command
def distill(
    output: Path,
    *,
    recipe: Annotated[DistillRecipe | None, Flat] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert an encoder, transfer its attention and distil a teacher into it.

    Parameters
    ----------
    output
        Folder of the student; a stopped run goes on from OUTPUT.work.
    """
    from .files import remove_work, work_folder
    from .folders import output_folder
    from .training import student

    folder = output_folder(output, "output", overwrite)
    work = work_folder(folder)
    encoder, run = student(recipe or DistillRecipe(), work)
    encoder.save(folder, overwrite)
    keep_log(work / "distill", folder)
    remove_work(work)
    print(f"wrote {output}" + best(run))


@app.command
def retrieval(
    output: Path,
    *,
    recipe: Annotated[RetrievalRecipe | None, Flat] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a student to find the long document that a question or an answer is about.

    Parameters
    ----------
    output
        Folder of the student; a stopped run goes on from OUTPUT.work.
    """
    from .files import remove_work, work_folder
    from .folders import output_folder
    from .training.retrieval import searcher

    folder = output_folder(output, "output", overwrite)
    work = work_folder(folder)
    encoder, run = searcher(recipe or RetrievalRecipe(), work)
    encoder.save(folder, overwrite)
    keep_log(work / "retrieval", folder)
    remove_work(work)
    found = "" if run.best is None else f": validation nDCG@10 {run.best:.4f} at {run.best_step}"
    print(f"wrote {output}{found}")


@app.command
def evaluate(
    model: Path,
    *,
    data: str = "stsb",
    split: str | None = None,
    scale: tuple[float, float] | None = None,
    columns: tuple[str, ...] | None = None,
    teacher_scale: str | None = None,
    far: bool = True,
    dtype: Dtype = "float32",
    similarity: Literal["cosine", "dot", "late"] | None = None,
) -> None:
    """Pearson and Spearman of a twin encoder, or of a teacher, with 95 % bootstrap intervals.

    Parameters
    ----------
    model
        Folder of a twin encoder or of a teacher (a cross-encoder).
    data
        A task (stsb, mrpc, qqp, qnli), "builtin", or a CSV, TSV, JSONL or Parquet file.
    split
        The task's split; by default the one to validate on.
    scale
        Lowest and highest score of a file.
    columns
        Names of a file's columns: first text, second text, score.
    teacher_scale
        logit or unit: the model is a cross-encoder that does not declare its own.
    far
        --no-far switches the linear branch of a hybrid off.
    dtype
        Numbers that a twin encoder computes with (see encode).
    similarity
        How a twin encoder scores, if not as its folder says; late compares the sentences that a
        pooling by the sentence weighs most.
    """
    from contextlib import nullcontext

    from .data import load
    from .evaluate import evaluate as measure
    from .evaluate import far_off, far_share
    from .training import scorer_of

    scorer = scorer_of(model, teacher_scale, dtype, similarity)
    pairs = load(data, split, scale=scale, columns=columns)
    hybrid = getattr(getattr(scorer, "model", None), "config", None)
    is_hybrid = hybrid is not None and hybrid.attention == "hybrid"
    if not far and not is_hybrid:
        raise TwinlineError(f"--no-far is for a hybrid; {model} is none.")
    with nullcontext() if far else far_off(scorer.model):  # type: ignore[union-attr]
        found = measure(scorer, pairs)
        print(f"{pairs.name} {pairs.split}, {len(pairs)} pairs")
        print(f"Pearson  {found.pearson}")
        print(f"Spearman {found.spearman}")
        if is_hybrid and far:
            shares = far_share(scorer, pairs.sentence1 + pairs.sentence2)  # type: ignore[arg-type]
            print("linear branch's share by layer " + " ".join(f"{s:.3f}" for s in shares))


@app.command
def encode(
    model: Path,
    source: str,
    output: Path,
    *,
    on_overflow: Literal["error", "warn", "truncate"] = "error",
    max_tokens: int | None = None,
    prompt: str | None = None,
    normalize: bool = False,
    dtype: Dtype = "float32",
    max_batch_tokens: int | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Vectors of texts, written as a NumPy file (texts, width).

    Parameters
    ----------
    model
        Folder of a twin encoder.
    source
        Texts: a .txt file (one a line), or a JSONL, CSV or Parquet file with a column "text".
    output
        The .npy file.
    on_overflow
        What happens to a text above max_tokens.
    max_tokens
        Longest text to read; without it, texts of any length are read whole.
    prompt
        Put before every text.
    normalize
        Make every vector's length 1.
    dtype
        int8 is the fastest on a processor with VNNI; auto takes float32 or bfloat16, whichever
        this machine multiplies faster.
    max_batch_tokens
        Padded tokens in a batch; by default what suits the device.
    overwrite
        Replace the output if it is there.
    """
    import numpy as np

    from .data import read_texts
    from .encoder import Encoder
    from .files import output_file, whole_file
    from .progress import Progress

    output_file(output, ".npy", overwrite)
    encoder = Encoder(model, max_tokens=max_tokens, on_overflow=on_overflow, dtype=dtype)
    texts = encoder.encode_iter(
        read_texts(source), prompt=prompt, normalize_embeddings=normalize,
        max_batch_tokens=max_batch_tokens, return_token_counts=True,
    )  # fmt: skip
    made = tokens = longest = 0
    header = {"descr": "<f4", "fortran_order": False, "shape": (0, encoder.dimension)}
    # Written as it is made: neither the texts nor the vectors need to fit into memory.
    with whole_file(output) as file, Progress("encoding", total=None) as progress:
        np.lib.format.write_array_header_1_0(file, header)
        for vector, count in texts:
            file.write(vector.astype("<f4").tobytes())
            made, tokens, longest = made + 1, tokens + count, max(longest, count)
            progress.advance()
        file.seek(0)  # NumPy leaves room for the count to grow
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (made, encoder.dimension)})
    print(
        f"wrote {output}: {made} texts, {tokens} tokens (longest {longest}), "
        f"width {encoder.dimension}, {encoder.dtype}"
    )


@app.command
def inspect(
    source: str,
    *,
    model: str = "all-MiniLM-L6-v2",
    limits: tuple[int, ...] = (128, 256, 512, 2048, 8192),
) -> None:
    """How long the texts of a file are, and what a limit on their tokens would drop.

    Parameters
    ----------
    source
        Texts: a .txt file (one a line), or a JSONL, CSV or Parquet file with a column "text".
    model
        The encoder whose tokenizer counts: a path, or a name.
    limits
        Limits to report on, in tokens, special ones counted.
    """
    from .data import read_texts
    from .inspection import inspection
    from .sources import find_model
    from .tokenization import load_tokenizer

    print(inspection(read_texts(source), load_tokenizer(find_model(model)), limits))


@app.command(name="long-pairs")
def long_pairs(
    output: Path,
    *,
    data: str = "stsb",
    split: str | None = None,
    scale: tuple[float, float] | None = None,
    columns: tuple[str, ...] | None = None,
    construction: str = "context",
    length: int = 2048,
    carrier: str = "novels",
    carrier_split: str | None = None,
    model: str = "all-MiniLM-L6-v2",
    skip_longer: bool = False,
    limit: int | None = None,
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Long pairs of exactly so many tokens, built from short ones and prose, as Parquet.

    Parameters
    ----------
    output
        The .parquet file: sentence1, sentence2, score, the short pair's row, and where in each
        text the sentence stands that counts, as a share.
    data
        A task (stsb, mrpc, qqp, qnli), "builtin", or a CSV, TSV, JSONL or Parquet file.
    split
        The task's split; by default the one to validate on.
    scale
        Lowest and highest score of a file.
    columns
        Names of a file's columns: first text, second text, score.
    construction
        context, keyed, shared, repeat or composite (docs/long-pairs.md).
    length
        Tokens of every text, special ones counted.
    carrier
        Prose: novels, qmsum, squality or qnli below TWINLINE_DATA; builtin, which the package makes
        itself; or a file of documents.
    carrier_split
        train, validation or test: no book or author serves two of them; by default the pairs' own.
    model
        The encoder whose tokenizer counts: a path, or a name.
    skip_longer
        Leave out pairs with a sentence that does not fit.
    limit
        The first so many pairs alone.
    seed
        Draws prose and places.
    overwrite
        Replace the output if it is there.
    """
    from .data import load
    from .data.carriers import SPLITS, load_carrier
    from .data.long import long_pairs as build
    from .data.long import write_parquet
    from .files import output_file
    from .sources import find_model
    from .tokenization import load_tokenizer

    output_file(output, ".parquet", overwrite)
    pairs = load(data, split, scale=scale, columns=columns)
    if limit is not None:
        if limit < 1:
            raise TwinlineError(f"limit must be at least 1, not {limit}.")
        pairs = pairs.select(range(min(limit, len(pairs))))
    tokenizer = load_tokenizer(find_model(model))
    own = pairs.split if pairs.split in SPLITS else "validation"
    prose = None
    if construction != "repeat":
        prose = load_carrier(carrier, carrier_split or own, tokenizer)
    made = build(pairs, construction, length, tokenizer, prose, seed=seed, skip_longer=skip_longer)
    write_parquet(made, output)
    left_out = f"; {made.too_long} pairs did not fit and were left out" if made.too_long else ""
    print(f"wrote {output}: {len(made.pairs)} pairs of {length} tokens{left_out}")


@app.command
def demo(output: Path = Path("twinline-demo"), *, data: str | None = None) -> None:
    """Teacher, transfer and distillation on STS-B in ten minutes, and what came out of them.

    Parameters
    ----------
    output
        Folder for the models, the table and the picture; finished parts in it are kept.
    data
        "stsb" or "builtin"; by default STS-B where it is found, else the built-in set.
    """
    from .demo import run_demo

    run_demo(output, data)


def keep_log(work: Path, folder: Path) -> None:
    """Put a run's metrics log beside its model."""
    from .files import write_whole

    if (work / "metrics.jsonl").is_file():
        write_whole(folder / "metrics.jsonl", (work / "metrics.jsonl").read_bytes())


def best(run: Any) -> str:
    """The best evaluation of a run, and what shared texts spared it, in words."""
    told = ""
    if run.best is not None:
        told = f": validation Pearson {run.best:.4f} at step {run.best_step}"
    if run.spared:
        times = 1 + run.spared / run.tokens
        told += f"; shared texts were read once, {times:.2f} times fewer tokens"
    return told


def with_recipe(tokens: Sequence[str]) -> list[str]:
    """``tokens`` without ``--recipe FILE``, whose values become the options' defaults."""
    from cyclopts.config import Dict

    rest = list(tokens)
    app.config = []
    for place, token in enumerate(rest):
        if token == "--recipe" or token.startswith("--recipe="):
            value = token.partition("=")[2]
            taken = 1
            if not value:
                if place + 1 == len(rest):
                    raise TwinlineError("--recipe needs a YAML file.")
                value, taken = rest[place + 1], 2
            values = read_yaml(value)
            app.config = [Dict(values, source=value, use_commands_as_keys=False)]
            rest = rest[:place] + rest[place + taken :]
            check_values(values, types_for(rest), value)
            break
    check_tokens(rest, types_for(rest))
    return rest


def types_for(tokens: Sequence[str]) -> dict[str, Any]:
    """The types of the options of the verb that ``tokens`` begin with."""
    found = app
    for token in tokens:
        if token.startswith("-") or token not in found:
            break
        found = found[token]
    return types_of(found.default_command) if found.default_command else {}


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point of the ``twinline`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # theirs; ours stay
    try:
        rest = with_recipe(sys.argv[1:] if tokens is None else tokens)
        app(rest, exit_on_error=False, print_error=False, result_action="return_value")
    except (TwinlineError, CycloptsError) as error:
        # cyclopts wraps what an option's own check raised.
        cause = error.__cause__ if isinstance(error.__cause__, TwinlineError) else error
        said = str(cause)
        if isinstance(cause, UnusedCliTokensError):
            unused = ", ".join(map(repr, cause.unused_tokens or ()))
            said = f"This command has no place for {unused}: --help tells what it takes."
        print(f"twinline: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ntwinline: stopped; given again, a command that trains goes on from its last "
              "checkpoint.", file=sys.stderr)  # fmt: skip
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
