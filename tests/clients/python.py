"""Scripts in a Python environment of their own, for clients whose requirements exclude ours."""

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
# All packages that the scripts need, each in one version.
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# A complete environment has this file. A test that uses the environment touches it.
READY = "ready"
INSTALL_S = 600
# An environment that no test has used for so long is unused: a script ends after ``programs.SCRIPT_S``.
UNUSED_S = 24 * 3600
# No proxy listens there, so a script reaches only this machine.
ALONE = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}


def pinned(name: str) -> str:
    """The version of a package in the requirements."""
    found = re.search(rf"^{re.escape(name)}==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert found, f"{REQUIREMENTS} does not pin {name}"
    return found[1]


def environment() -> Path:
    """The interpreter of a virtual environment, made once for each state of the file and of Python.

    Making one removes those that no test has used for UNUSED_S. Younger ones stay, because tests of another checkout or
    another Python may use them. If none can be made, the test is skipped; in continuous integration it fails.
    """
    state = hashlib.sha256(f"{sys.version} {REQUIREMENTS.read_text()}".encode()).hexdigest()[:16]
    home = user_cache_path("griffin") / "test-clients"
    folder = home / state
    python = folder / "bin/python"
    home.mkdir(parents=True, exist_ok=True)
    # Test files run in parallel.
    with FileLock(home / "lock"):
        if not (folder / READY).exists():
            _remove_unused(home)
            _make(folder, python)
        (folder / READY).touch()
    return python


def run(script: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints."""
    # Remove all proxy variables: those in lower case would win, and all_proxy would count, too.
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return printed([environment(), script, *arguments], env={**own, **ALONE, "PYTHONPATH": str(ROOT)})


def _make(folder: Path, python: Path) -> None:
    # --no-deps: install only what the file names.
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
    """Remove incomplete environments, too: only the holder of the lock makes one."""
    for folder in home.iterdir():
        ready = folder / READY
        if folder.is_dir() and not (ready.exists() and time.time() - ready.stat().st_mtime < UNUSED_S):
            shutil.rmtree(folder, ignore_errors=True)
