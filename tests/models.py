"""Real models that are too large for the repository, for tests whose answers must make sense."""

from pathlib import Path

import pytest

FOLDER = Path.home() / ".cache/griffin-models"


def coder(size: str = "0.5b") -> Path:
    """The path of Qwen2.5-Coder's file; the test is skipped if the file is missing."""
    path = FOLDER / f"qwen2.5-coder-{size}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path
