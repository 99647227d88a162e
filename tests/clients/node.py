"""Scripts for node that use packages from npm."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.programs import printed, require

INSTALL_S = 300


def install(folder: Path, packages: Mapping[str, str]) -> None:
    """Install these versions of packages into a folder."""
    command = [require("npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    named = [f"{name}@{version}" for name, version in packages.items()]
    done = subprocess.run(
        [*command, "--prefix", ".", *named], cwd=folder, capture_output=True, text=True, timeout=INSTALL_S
    )
    assert done.returncode == 0, done.stderr


def run(script: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints. The script is copied beside the packages, where node looks for them."""
    copy = shutil.copy(script, folder)
    return printed([require("node"), copy, *arguments], cwd=folder)
