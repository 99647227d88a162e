"""The process that compiles forms: the packages that it finds, and the errors if it cannot begin."""

import logging
from pathlib import Path

import pytest

from server.errors import as_api_error
from server.text import grammar_checker
from server.text.grammar_checker import CheckerFailed, FormRefused, GrammarChecker

READS = "import json, sys\nsys.stdin.readline()\n"


def checker(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> GrammarChecker:
    """A checker that runs another program."""
    file = folder / "program.py"
    file.write_text(program)
    monkeypatch.setattr(grammar_checker, "PROGRAM", file)
    return GrammarChecker("{}", 3, [2])


@pytest.mark.parametrize("folder", ["site", "with ' and \" and é"])
def test_the_checker_finds_packages_where_the_server_does(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example in the user's own directory or in PYTHONPATH."""
    place = tmp_path / folder
    place.mkdir()
    (place / "only_here.py").write_text("GRAMMAR = 'found'")
    monkeypatch.syspath_prepend(str(place))
    answers = 'print("{}")\nprint(json.dumps({"grammar": only_here.GRAMMAR}), flush=True)\nsys.stdin.read()'
    found = checker(f"import only_here\n{READS}{answers}", tmp_path, monkeypatch)

    assert found.grammar("regex", "a") == "found"
    found.close()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
        (f"{READS}raise SystemExit('some words')", "code 1 before it began; it said: some words"),
        ("import os\nos.abort()", "code -6 before it began; it said: nothing"),
        ("import sys\nsys.exit('x' * 60_000 + 'the end')", "xthe end"),
    ],
)
def test_a_checker_that_cannot_begin_is_a_fault_of_the_server(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the process's output. The answer is a 500 without it and names no field."""
    found = checker(program, tmp_path, monkeypatch)
    with pytest.raises(CheckerFailed) as failure:
        found.grammar("regex", "a")
    found.close()

    with caplog.at_level(logging.ERROR, "griffin"):
        answer = as_api_error(failure.value)
    assert words in caplog.text
    assert (answer.status, answer.param) == (500, None)
    assert words not in str(answer)


def test_a_checker_that_ends_at_a_form_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process had begun, so the form may be the reason."""
    found = checker(f'{READS}print("{{}}", flush=True)\nsys.stdin.readline()', tmp_path, monkeypatch)

    with pytest.raises(FormRefused, match="the compiler's process has ended"):
        found.grammar("regex", "a")
    assert not found.runs
