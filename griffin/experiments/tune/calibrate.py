"""Calibrate a model for method griffin+: once, on some thousands of tokens of general text.

Text like what the model will be used for is best; books and news do. What is found, 270 bytes for each feed-forward
neuron, is kept in the user's cache, where the server and all experiments find it. On the way it takes up to 6 GB of
host memory, for models of 10 billion parameters and more somewhat more. Do not calibrate on text that results are to be
reported on.
"""

import argparse
from functools import partial
from pathlib import Path

from griffin.errors import GriffinError
from griffin.experiments.common import arguments as kinds
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import write_whole
from griffin.experiments.common.study import Study, add_model_arguments, open_model
from griffin.experiments.common.texts import evenly, read_text, start_of, tokens_of
from griffin.method.plus.calibration import identity
from griffin.method.plus.measurement import calibrate
from griffin.method.preparation import calibration_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--text", type=kinds.file, nargs="+", metavar="FILE", help="plain text (two books, from the hub or --data)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where books.jsonl is")
    parser.add_argument("--sequences", type=kinds.count, default=96, metavar="N", help="to read (%(default)s)")
    parser.add_argument(
        "--tokens", type=partial(kinds.whole, lowest=2), default=384, metavar="N", help="of each (%(default)s)"
    )
    kinds.add_cache_dir(parser)
    parser.add_argument("--to", type=Path, metavar="FILE", help="write there instead of the user's cache")


def run(arguments: argparse.Namespace) -> None:
    """Raises: GriffinError, ValueError: with one line for the user."""
    cache_dir = arguments.cache_dir
    study = open_model(arguments.model, arguments.dtype, arguments.device, arguments.data, Path(), cache_dir)
    model = study.checkpoint.model.requires_grad_(False)
    ids = _from_files(study, arguments.text) if arguments.text else read_text(study, "books").ids
    sequences = spread(ids, start_of(study.tokenizer), arguments.sequences, arguments.tokens)
    with Progress(len(sequences)) as progress:

        def advance() -> None:
            progress.advance()
            progress.begin("reading, forwards and backwards")

        found = calibrate(model, sequences, advance)
    path = arguments.to or calibration_path(model, cache_dir)
    write_whole(path, found.packed(identity(model)))
    print(f"{study.name} is calibrated on {len(sequences) * arguments.tokens} tokens: {path}")


def _from_files(study: Study, files: list[Path]) -> list[int]:
    try:
        text = "\n".join(file.read_text(errors="replace") for file in files)
    except OSError as error:
        raise GriffinError(f"--text: cannot read '{error.filename}': {error.strerror}") from error
    return tokens_of(study.tokenizer, text)


def spread(ids: list[int], start: list[int], count: int, tokens: int) -> list[list[int]]:
    """Sequences that each begin with ``start``, evenly from all of a text.

    Raises:
        ValueError: there is not enough of it.
    """
    own = tokens - len(start)
    if own < 1 or len(ids) < count * own:
        raise ValueError(
            f"--text: has {len(ids)} tokens, but {count} sequences of {tokens} are wanted; "
            "give more of it, or fewer --sequences"
        )
    return [[*start, *part] for part in evenly(ids, own, count)]
