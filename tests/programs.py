"""Programs of the system that some tests need."""

import os
import shutil

import pytest


def require(*names: str) -> str:
    """The path of the first that is there; without one the test is skipped, in continuous integration it fails."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{' or '.join(names)} is not installed")
    return path
