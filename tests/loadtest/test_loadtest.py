"""The command against a real server, and against none."""

import json
import sys

import pytest

from loadtest.__main__ import main
from tests.server.scripted import ScriptedEngine, served


def test_table_then_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each sparsity has its row, and every request is in it."""
    with served(ScriptedEngine(step_s=0.002)) as url:
        monkeypatch.setattr(
            sys, "argv", ["loadtest", "--url", url, "--rate", "50", "--requests", "4", "--max-tokens", "5"]
        )
        assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["by_sparsity"]

    assert list(rows) == ["0", "0.5"]
    assert all(row["requests"] == 4 and row["errors"] == {} for row in rows.values())
    assert all(row["itl_ms"]["p50"] > 0 for row in rows.values())
    assert [line.split()[0] for line in lines[1:3]] == ["0", "0.5"]


def test_no_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are counted by kind, and the exit code says that nothing was answered."""
    monkeypatch.setattr(sys, "argv", ["loadtest", "--url", "http://127.0.0.1:9", "--rate", "50", "--requests", "2"])

    assert main() == 1
    assert "2 x ConnectError" in capsys.readouterr().out
