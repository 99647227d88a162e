"""Programs of the system that some tests need, and a way to run scripts with them."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT_S = 600


def require(*names: str) -> str:
    """The path of the first program that is installed. If there is none, the test is skipped; in CI it fails."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{' or '.join(names)} is not installed")
    return path


def printed(command: Sequence[str | Path], **options: Any) -> dict[str, Any]:
    """The JSON that a script prints within ``SCRIPT_S`` seconds. ``options`` go to ``subprocess.run``."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_S, **options)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
