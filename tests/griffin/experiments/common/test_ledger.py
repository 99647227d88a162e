"""Computed answers are kept and not computed again, however the process ended."""

import json
from pathlib import Path

import pytest

from griffin.errors import GriffinError
from griffin.experiments.common.ledger import Ledger


def test_a_question_is_answered_once(tmp_path: Path) -> None:
    """In this process and the next. The order of a question's fields does not matter."""
    asked = []

    def compute() -> dict[str, list[int]]:
        asked.append(1)
        return {"found": [1, 2]}

    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl", {"model": "a"})
    for question in ({"x": 1, "y": 2}, {"y": 2, "x": 1}):
        assert ledger.once(question, compute) == {"found": [1, 2]}
    assert Ledger(tmp_path / "deep" / "ledger.jsonl", {"model": "a"}).once({"x": 1, "y": 2}, compute) == {
        "found": [1, 2]
    }

    assert len(asked) == 1


def test_another_question_or_subject_has_another_answer(tmp_path: Path) -> None:
    """Two models may share a folder."""
    path = tmp_path / "ledger.jsonl"
    Ledger(path, {"model": "a"}).put({"x": 1}, "one")

    assert Ledger(path, {"model": "a"}).get({"x": 2}) is None
    assert Ledger(path, {"model": "b"}).get({"x": 1}) is None


def test_half_a_line_is_no_answer(tmp_path: Path) -> None:
    """If a process was killed while it wrote, all other lines can be read, and the file can be used."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, {})
    ledger.put({"x": 1}, "one")
    ledger.put({"x": 2}, "two")
    path.write_text(path.read_text()[:-9])
    again = Ledger(path, {})
    assert (again.get({"x": 1}), again.get({"x": 2})) == ("one", None)
    again.put({"x": 2}, "two")

    assert Ledger(path, {}).get({"x": 2}) == "two"
    path.write_text("[1]\nnonsense\n" + path.read_text())
    assert Ledger(path, {}).get({"x": 1}) == "one"


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    """Nor an answer that JSON cannot hold."""
    path = tmp_path / "ledger.jsonl"
    for compute in (lambda: 1 / 0, lambda: {1, 2}):
        with pytest.raises((ZeroDivisionError, TypeError)):
            Ledger(path, {}).once({"x": 1}, compute)

    assert not path.exists()


def test_answers_are_what_a_second_run_reads(tmp_path: Path) -> None:
    """Tuples become lists the first time, too."""
    assert Ledger(tmp_path / "l.jsonl", {}).once({}, lambda: (1, 2.5)) == json.loads("[1, 2.5]")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """One line names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(GriffinError, match=r"cannot write '.*file/ledger.jsonl': "):
        Ledger(tmp_path / "file" / "ledger.jsonl", {}).put({}, 1)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(GriffinError, match=r"cannot read '.*folder.jsonl': Is a directory"):
        Ledger(tmp_path / "folder.jsonl", {})
