"""The project's C, compiled at installation: where it lies.

Only ``decode/c`` and ``model/guard.py`` load it. Both go without it where no C compiler was found.
"""

import importlib.machinery
from pathlib import Path


def compiled(directory: Path = Path(__file__).parent) -> Path | None:
    """The compiled library in a directory, or None if there is none."""
    found = (directory / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in found if path.exists()), None)
