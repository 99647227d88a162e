"""Kinds of values that flags take, and flags of several commands. A wrong value gives an error of one line."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path


def _number(text: str, kind: type[int] | type[float], accepted: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not accepted(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def whole(text: str, lowest: int) -> int:
    return int(_number(text, int, lambda value: value >= lowest, f"a whole number of at least {lowest}"))


count = partial(whole, lowest=1)
sparsity = partial(_number, kind=float, accepted=lambda value: 0 <= value < 1, wanted="at least 0 and below 1")
positive = partial(_number, kind=float, accepted=lambda value: 0 < value < math.inf, wanted="above 0")


def add_sparsities(parser: argparse.ArgumentParser, standard: Sequence[float], told: str) -> None:
    """Add --sparsities. ``told``: its default in words."""
    parser.add_argument(
        "--sparsities", type=sparsity, nargs="+", metavar="S", default=list(standard),
        help=f"fractions of neurons removed, 0 to below 1 ({told})",
    )  # fmt: skip


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """Add --cache-dir, with the meaning that it has for the server."""
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="the same as the server's --cache-dir (the user's cache)"
    )


def removing(sparsities: Iterable[float]) -> list[float]:
    """The sparsities in order, without repetitions and without 0 (the full model)."""
    return sorted({value for value in sparsities if value})


def file(text: str) -> Path:
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a directory")
    return Path(text)
