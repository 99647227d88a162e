"""Finds the project's C library, which is compiled at installation.

Only ``decode/c`` and ``model/guard.py`` load it. Both work without it if there was no C compiler.
"""

import importlib.machinery
from pathlib import Path


def compiled(directory: Path = Path(__file__).parent) -> Path | None:
    """The compiled library in a directory, or None if there is none."""
    found = (directory / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in found if path.exists()), None)
