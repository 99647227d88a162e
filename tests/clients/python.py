"""Scripts for a Python of their own, for clients whose requirements exclude ours."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

from tests.programs import printed

ROOT = Path(__file__).parents[2]
# All that they need, each in one version.
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# A file of a whole environment. A test that asks for the environment touches it.
READY = "ready"
INSTALL_S = 600
# An environment that no test asked for this long is not in use: a script ends after ``programs.SCRIPT_S``.
UNUSED_S = 24 * 3600
# A proxy that is not there: a script reaches this machine alone.
ALONE = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}


def pinned(name: str) -> str:
    """The version of a package there."""
    found = re.search(rf"^{re.escape(name)}==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert found, f"{REQUIREMENTS} does not pin {name}"
    return found[1]


def environment() -> Path:
    """The interpreter of a virtual environment with them, made once for each state of the file and of Python.

    Making one removes those that no test has asked for in UNUSED_S. Others stay: tests of another checkout, or with
    another version of Python, may be using them. Where none can be made, the test is skipped; in continuous integration
    it fails.
    """
    state = hashlib.sha256(f"{sys.version} {REQUIREMENTS.read_text()}".encode()).hexdigest()[:16]
    home = user_cache_path("griffin") / "test-clients"
    folder = home / state
    python = folder / "bin/python"
    home.mkdir(parents=True, exist_ok=True)
    # Test files run side by side.
    with FileLock(home / "lock"):
        if not (folder / READY).exists():
            _remove_unused(home)
            _make(folder, python)
        (folder / READY).touch()
    return python


def run(script: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints."""
    # Python prefers proxies in lower case, and there is all_proxy.
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return printed([environment(), script, *arguments], env={**own, **ALONE, "PYTHONPATH": str(ROOT)})


def _make(folder: Path, python: Path) -> None:
    # --no-deps: nothing that the file does not name.
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps", "-r", REQUIREMENTS]
    for command in ([sys.executable, "-m", "venv", folder], install):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            _give_up(f"{command[2]} took longer than {INSTALL_S} s")
        if done.returncode:
            _give_up(done.stderr.strip()[-500:])


def _give_up(fault: str) -> NoReturn:
    reason = f"no environment for {REQUIREMENTS.name}: {fault}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _remove_unused(home: Path) -> None:
    """Also those without the mark, left half made: whoever makes one holds the lock."""
    for folder in home.iterdir():
        ready = folder / READY
        if folder.is_dir() and not (ready.exists() and time.time() - ready.stat().st_mtime < UNUSED_S):
            shutil.rmtree(folder, ignore_errors=True)
