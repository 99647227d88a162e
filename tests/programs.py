"""Programs of the system that some tests need, and scripts for them."""

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
    """The path of the first that is there; without one the test is skipped, in continuous integration it fails."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{' or '.join(names)} is not installed")
    return path


def printed(command: Sequence[str | Path], **options: Any) -> dict[str, Any]:
    """The JSON that a script prints, within ``SCRIPT_S``. ``options``: as of ``subprocess.run``."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_S, **options)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
