"""The environment for scripts of other clients: when it is made or removed, and what scripts can reach."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.clients import python

SHOW_PROXIES = "import json, urllib.request; print(json.dumps(urllib.request.getproxies()))"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the environments."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "griffin/test-clients"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The environments that were made. Each is an empty folder."""
    folders: list[Path] = []

    def make(folder: Path, _: Path) -> None:
        folder.mkdir()
        folders.append(folder)

    monkeypatch.setattr(python, "_make", make)
    return folders


def unused(folder: Path, seconds: float) -> Path:
    """An environment for other requirements or another Python."""
    folder.mkdir(parents=True)
    (folder / python.READY).touch()
    os.utime(folder / python.READY, (time.time() - seconds,) * 2)
    return folder


def test_an_environment_is_made_once_for_each_state(
    home: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other requirements or another Python need another environment; the earlier one is used again later."""
    first = python.environment()
    assert python.environment() == first == made[0] / "bin/python"
    other = tmp_path / "requirements.txt"
    other.write_text("other==1\n")
    with monkeypatch.context() as patch:
        patch.setattr(python, "REQUIREMENTS", other)
        python.environment()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "another")
        python.environment()

    assert python.environment() == first
    assert len(made) == len({*made}) == 3
    assert all(folder.is_dir() for folder in made)


def test_unused_environments_are_removed(home: Path, made: list[Path]) -> None:
    """They are removed when another is made. One that another checkout or Python may use stays."""
    old, recent = unused(home / "old", python.UNUSED_S + 60), unused(home / "recent", python.UNUSED_S - 60)
    half = home / "half-made"
    half.mkdir()
    python.environment()

    assert {each for each in home.iterdir() if each.is_dir()} == {recent, made[0]}
    assert not old.exists()
    assert not half.exists()
    os.utime(made[0] / python.READY, (0, 0))
    python.environment()
    assert time.time() - (made[0] / python.READY).stat().st_mtime < 60


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_an_environment_that_cannot_be_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ci: str, outcome: type[BaseException]
) -> None:
    """If making one fails or takes too long, tests are skipped with the reason, but fail in continuous integration."""
    monkeypatch.setenv("CI", ci)
    with monkeypatch.context() as patch:
        patch.setattr(python, "INSTALL_S", 0)
        with pytest.raises(outcome, match=r"requirements\.txt: venv took longer than 0 s"):
            python.environment()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho cannot execute >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(outcome, match=r"requirements\.txt: cannot execute"):
        python.environment()
    assert not list(home.glob(f"*/{python.READY}"))


def test_a_script_reaches_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxies of this process do not count, in upper or lower case."""
    for name in ("http_proxy", "HTTPS_PROXY", "https_proxy", "all_proxy", "ALL_PROXY", "ftp_proxy", "No_Proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(python, "environment", lambda: Path(sys.executable))
    (tmp_path / "script.py").write_text(SHOW_PROXIES)

    away = "http://127.0.0.1:9"
    assert python.run(tmp_path / "script.py") == {"http": away, "https": away, "no": "127.0.0.1"}
