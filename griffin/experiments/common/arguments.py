"""Kinds of values that flags take, each refused with one line that says what is wanted."""

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
    """--sparsities; ``told``: the standard ones, in words."""
    parser.add_argument("--sparsities", type=sparsity, nargs="+", metavar="S", default=list(standard), help=f"({told})")


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """Where the server looks, too."""
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="the server's, where it has one of its own (the user's cache)"
    )


def removing(sparsities: Iterable[float]) -> list[float]:
    """Each once, in order, but for 0, which is the full model."""
    return sorted({value for value in sparsities if value})


def file(text: str) -> Path:
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a directory")
    return Path(text)
