"""The benchmark runs, and its output can be read by people and by programs."""

import json
import sys

import pytest

from griffin.experiments.__main__ import main


def test_table_then_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each contestant, and the same figures as one line of JSON at the end."""
    flags = ["--prompt-tokens", "8", "--tokens", "4", "--rounds", "1", "--sparsities", "0", "0.5", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["griffin.experiments", "latency", *flags])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    results = {row["name"]: row for row in json.loads(lines[-1])["results"]}

    assert list(results) == ["generate", "griffin 0", "griffin 0.5"]
    assert results["griffin 0.5"]["active_parameters"] == 94_701_888
    assert all(row["tokens_per_second"] > 0 for row in results.values())
    assert [line.split()[0] for line in lines[2:5]] == ["generate", "griffin", "griffin"]


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback for a wrong model or a wrong number."""
    for flags in (["--model", "./nowhere"], ["--tokens", "1"]):
        monkeypatch.setattr(sys, "argv", ["griffin.experiments", "latency", *flags])
        assert main() == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
