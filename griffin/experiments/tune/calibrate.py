"""Calibrate a model for method griffin+: it reads general text once, forwards and backwards.

Use text like that of later requests; books and news work too. Do not use text on which you will report results.

It takes a few minutes with the default model (135 million parameters) on two CPU cores; with ten times the parameters,
ten times as long. A stopped run starts from the beginning. It needs up to 6 GB of memory beside the model, a little
more for models of 10 billion parameters and more.

The result has 270 bytes for each feed-forward neuron. It is kept in the user's cache. Experiments find it there, and
so does the server at its next start.

examples:
  python -m griffin calibrate --text book.txt news.txt
  python -m griffin calibrate --model Qwen/Qwen3-0.6B --cache-dir /srv/griffin
"""

import argparse
from functools import partial
from pathlib import Path

from griffin.errors import GriffinError
from griffin.experiments.common import kinds
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import write_whole
from griffin.experiments.common.study import add_model_arguments, open_model
from griffin.experiments.common.texts import evenly, read_text, start_of, tokens_of
from griffin.method.plus.measurement import calibrate
from griffin.method.preparation import calibration_path
from griffin.model.identity import identity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--text",
        type=kinds.file,
        nargs="+",
        metavar="FILE",
        help="files of plain text (books from the hub, or from --data)",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with books.jsonl, whose books are the text")
    parser.add_argument(
        "--sequences", type=kinds.count, default=96, metavar="N", help="sequences to read (%(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=partial(kinds.whole, lowest=2),
        default=384,
        metavar="N",
        help="tokens of each sequence (%(default)s)",
    )
    kinds.add_cache_dir(parser)
    parser.add_argument("--to", type=Path, metavar="FILE", help="write this file, not one in the cache")


def run(arguments: argparse.Namespace) -> None:
    """Calibrate, and say where the result is.

    Raises:
        GriffinError, ValueError: one line for the user.
    """
    cache_dir = arguments.cache_dir
    text = None if arguments.text is None else _joined(arguments.text)
    study = open_model(
        arguments.model, arguments.dtype, arguments.device, arguments.data, Path(), cache_dir, arguments.quantize
    )
    model = study.checkpoint.model.requires_grad_(False)
    ids = read_text(study, "books").ids if text is None else tokens_of(study.tokenizer, text)
    sequences = spread(ids, start_of(study.tokenizer), arguments.sequences, arguments.tokens)
    with Progress(len(sequences)) as progress:

        def advance() -> None:
            progress.advance()
            progress.begin("reading, forwards and backwards")

        found = calibrate(model, sequences, advance)
    path = arguments.to or calibration_path(model, cache_dir)
    write_whole(path, found.packed(identity(model)))
    print(f"{study.name} is calibrated on {len(sequences) * arguments.tokens} tokens: {path}")


def _joined(files: list[Path]) -> str:
    try:
        return "\n".join(file.read_text(errors="replace") for file in files)
    except OSError as error:
        raise GriffinError(f"--text: cannot read '{error.filename}': {error.strerror}") from error


def spread(ids: list[int], start: list[int], count: int, tokens: int) -> list[list[int]]:
    """Sequences of a text, spread evenly over all of it. Each begins with ``start``.

    Raises:
        ValueError: the text is too short.
    """
    own = tokens - len(start)
    if own < 1 or len(ids) < count * own:
        raise ValueError(
            f"--text: has {len(ids)} tokens, but {count} sequences of {tokens} are wanted; "
            "give more text, or fewer --sequences"
        )
    return [[*start, *part] for part in evenly(ids, own, count)]
