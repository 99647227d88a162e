"""Single values of a GGUF file's keys: a number where one must be, or a refusal that names the key."""

import math
from typing import Any

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_file import GgufFile

# What fits into 32 bits with a sign.
MOST = 2**31 - 1
# No model reads as many tokens.
MOST_TOKENS = 2**24


def number(file: GgufFile, key: str, most: float = math.inf) -> Any:
    """A number above 0, or None if the key is not there. A list with a number for each layer must have one value.

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
        raise refused(file, key, f"is {short(value)}, and must be a number above 0")
    if value > most:
        raise refused(file, key, f"is {short(value)}, and must be at most {most:g}")
    return value


def size(file: GgufFile, key: str, most: int = MOST) -> Any:
    """A whole number from 1 on, or None; else as ``number``."""
    value = number(file, key)
    if value is not None and not (isinstance(value, int) and value <= most):
        raise refused(file, key, f"is {short(value)}, and must be a whole number from 1 to {most}")
    return value


def tokens(file: GgufFile, key: str) -> Any:
    """As ``size``: how many tokens of a text."""
    return size(file, key, MOST_TOKENS)


def positive(file: GgufFile, key: str) -> Any:
    """As ``number``, but a list is refused."""
    value = file.own(key)
    if isinstance(value, list):
        raise refused(file, key, f"is {short(value)}, and must be a number above 0")
    return number(file, key)


def require_equal(file: GgufFile, key: str, expected: int) -> None:
    """
    Raises:
        LoadError: the key is there, and says something else.
    """
    found = file.own(key)
    if found is not None and found != expected:
        raise refused(file, key, f"is {found}, but should be {expected}")


def refused(file: GgufFile, key: str, why: str, *, bare: bool = False) -> LoadError:
    """The refusal of a file by a key. ``bare``: the key is not under the architecture's name."""
    name = key if bare else f"{file.architecture}.{key}"
    return LoadError(f"{file.path.name} cannot be served as it is meant: its key {name} {why}")


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
