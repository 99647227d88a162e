"""Kinds of values that flags take. A wrong value is refused in one line that says what is right."""

import argparse
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadtest.objective import MEANINGS
from loadtest.prompts import sendable


def _number(text: str, kind: type[int] | type[float], accepted: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not accepted(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


count = partial(_number, kind=int, accepted=lambda value: value >= 1, wanted="a whole number of at least 1")
whole = partial(_number, kind=int, accepted=lambda value: value >= 0, wanted="a whole number of at least 0")
positive = partial(_number, kind=float, accepted=lambda value: 0 < value < math.inf, wanted="a number above 0")
natural = partial(_number, kind=float, accepted=lambda value: 0 <= value < math.inf, wanted="a number of at least 0")
sparsity = partial(_number, kind=float, accepted=lambda value: 0 <= value < 1, wanted="at least 0 and below 1")


def url(text: str) -> str:
    """An address, without the slash or the /v1 that people copy with it."""
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise argparse.ArgumentTypeError(f"'{text}' is not an address such as http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise argparse.ArgumentTypeError("the address holds a name or password; use --api-key-file")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def key(text: str) -> str:
    """The API key in a file."""
    try:
        key = Path(text).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot read '{text}': {error}") from None
    if not key:
        raise argparse.ArgumentTypeError(f"'{text}' is empty")
    return bearer(key)


def bearer(text: str) -> str:
    """An API key that fits into a header."""
    if not text.strip() or not text.isascii() or not text.isprintable():
        raise argparse.ArgumentTypeError("the key is not one line of ASCII characters")
    return text


def json_object(text: str) -> dict[str, Any]:
    """Fields of a request, without those that have flags of their own."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"'{text[:200]}' is not JSON: {error}") from None
    if not sendable(value):
        raise argparse.ArgumentTypeError(f"'{text}' holds a value that JSON has no form for")
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is not an object such as {{\"top_p\": 0.9}}")
    if taken := sorted({"prompt", "messages", "stream", "sparsity"}.intersection(value)):
        raise argparse.ArgumentTypeError(f"'{taken[0]}' has a flag of its own; see --help")
    if several := [name for name in ("n", "best_of") if value.get(name) not in (None, 1)]:
        raise argparse.ArgumentTypeError(f"'{several[0]}': one answer is measured for each request")
    return value


def limit(text: str) -> tuple[str, float]:
    """A name of MEANINGS and its limit in milliseconds."""
    name, _, milliseconds = text.partition("=")
    if name not in MEANINGS:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=MILLISECONDS with one of {', '.join(MEANINGS)}")
    return name, positive(milliseconds)


def file(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a directory")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory '{path.parent}'")
    # Fail before the load, not after it.
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to '{path.parent}'")
    return path
