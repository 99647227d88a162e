"""Real models that are too large to come with the project, for tests of answers that must make sense."""

from pathlib import Path

import pytest

FOLDER = Path.home() / ".cache/griffin-models"


def coder(size: str = "0.5b") -> Path:
    """The file of Qwen2.5-Coder; the test is skipped where it is missing."""
    path = FOLDER / f"qwen2.5-coder-{size}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path
