"""Single values of a GGUF file's keys: a number where one must be, or a refusal that names the key."""

import math
from typing import Any

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_file import GgufFile


def number(file: GgufFile, key: str) -> Any:
    """A number above 0, or None if the key is not there. A list with a number for each layer must have one value.

    Raises:
        LoadError: the value is not such a number.
    """
    value = file.own(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise refused(file, key, f"differs from layer to layer ({short(value)}), which is not supported")
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool | str) or not (math.isfinite(value) and value > 0):
        raise refused(file, key, f"is {short(value)}, and must be a number above 0")
    return float(value) if isinstance(value, float) else int(value)


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
