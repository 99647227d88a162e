"""Scripts for a Python of their own, for clients whose requirements exclude ours."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

# All that they need, each in one version.
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSTALL_S = 600
SCRIPT_S = 600
# A proxy that is not there: a script reaches this machine alone.
ALONE = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}


def pinned(name: str) -> str:
    """The version of a package there."""
    found = re.search(rf"^{re.escape(name)}==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert found, f"{REQUIREMENTS} does not pin {name}"
    return found[1]


def environment() -> Path:
    """The interpreter of a virtual environment with them, which is made once for each state of the file.

    Where it cannot be made, the test is skipped; in continuous integration it fails.
    """
    state = hashlib.sha256(f"{sys.version} {REQUIREMENTS.read_text()}".encode()).hexdigest()[:16]
    folder = user_cache_path("griffin") / "test-clients" / state
    python, ready = folder / "bin/python", folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Test files run side by side.
    with FileLock(folder.with_suffix(".lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, python)
            ready.touch()
    return python


def run(script: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [environment(), script, *arguments], env={**own, **ALONE}, capture_output=True, text=True, timeout=SCRIPT_S
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def _make(folder: Path, python: Path) -> None:
    # --no-deps: nothing that the file does not name.
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps", "-r", REQUIREMENTS]
    for command in ([sys.executable, "-m", "venv", folder], install):
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode:
            reason = f"no environment for {REQUIREMENTS.name}: {done.stderr.strip()[-500:]}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
