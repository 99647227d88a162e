"""Checked values of a GGUF file's keys; errors name the key."""

import math
from typing import Any

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_file import GgufFile

# The largest number in 32 bits with a sign.
MOST = 2**31 - 1
# More tokens than any model reads.
MOST_TOKENS = 2**24


def number(file: GgufFile, key: str, most: float = math.inf) -> Any:
    """A number above 0, or None if the key is missing. A list with a number for each layer must have equal values.

    Raises:
        LoadError: the value is not such a number, or above ``most``.
    """
    value = file.own(key)
    if isinstance(value, list):
        if not value or any(each != value[0] for each in value):
            raise refused(file, key, f"differs from layer to layer ({short(value)}), which is not supported")
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise refused(file, key, f"is {short(value)}, but must be a number above 0")
    if value > most:
        raise refused(file, key, f"is {short(value)}, but must be at most {most:g}")
    return value


def size(file: GgufFile, key: str, most: int = MOST) -> Any:
    """A whole number of at least 1, or None; otherwise like ``number``."""
    value = number(file, key)
    if value is not None and not (isinstance(value, int) and value <= most):
        raise refused(file, key, f"is {short(value)}, but must be a whole number from 1 to {most}")
    return value


def tokens(file: GgufFile, key: str) -> Any:
    """A number of tokens; like ``size``."""
    return size(file, key, MOST_TOKENS)


def positive(file: GgufFile, key: str) -> Any:
    """Like ``number``, but a list is refused."""
    value = file.own(key)
    if isinstance(value, list):
        raise refused(file, key, f"is {short(value)}, but must be a number above 0")
    return number(file, key)


def require_equal(file: GgufFile, key: str, expected: int) -> None:
    """
    Raises:
        LoadError: the key is there, with another value.
    """
    found = file.own(key)
    if found is not None and found != expected:
        raise refused(file, key, f"is {found}, but should be {expected}")


def refused(file: GgufFile, key: str, why: str, *, bare: bool = False) -> LoadError:
    """The error about one key of a file. ``bare``: the key is not under the architecture's name."""
    name = key if bare else f"{file.architecture}.{key}"
    return LoadError(f"{file.path.name} cannot be served correctly: its key {name} {why}")


def short(value: Any) -> str:
    """A value as errors show it."""
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
