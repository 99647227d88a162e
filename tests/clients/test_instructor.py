"""instructor: models of pydantic's as answers, in its modes, piece by piece, and asked for again."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients import python
from tests.models import coder
from tests.server.process import running

SCRIPT = Path(__file__).with_name("instructor_script.py")
MODES = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS")


@pytest.fixture(scope="module")
def answers(tiny_url: str) -> dict[str, Any]:
    return python.run(SCRIPT, "small", f"{tiny_url}/v1", "tiny")


@pytest.mark.parametrize("mode", MODES)
def test_a_model(answers: dict[str, Any], mode: str) -> None:
    """Validated by instructor: a named tool, also a strict one, a schema, and by responses."""
    person = answers["modes"][mode]

    assert list(person) == ["name", "age", "home"]
    assert person["name"] in ("Ann", "Bob")
    assert person["home"]["city"] in ("Paris", "Rome")


def test_piece_by_piece(answers: dict[str, Any]) -> None:
    """create_partial: the object grows to the whole answer."""
    assert len(answers["partial"]) > 8
    assert answers["partial"][0]["name"] is None
    assert answers["partial"][-1] == answers["modes"]["TOOLS"]


def test_sparsity(answers: dict[str, Any]) -> None:
    """extra_body reaches the server, and create_with_completion keeps what it reports."""
    assert answers["pruned"]["sparsity"] == 0.5


def test_asked_again(answers: dict[str, Any]) -> None:
    """What a validator refuses goes back with its error, as the history of a call."""
    assert answers["refused"]["attempts"] == 2
    assert "must be of full age" in answers["refused"]["message"]


def test_errors(answers: dict[str, Any]) -> None:
    """The server's words."""
    assert "model 'other' does not exist here" in answers["bad_model"]["message"]


def test_answers_make_sense() -> None:
    """Also in the modes that hold to no schema."""
    with running("--model", str(coder("0.5b"))) as server:
        modes = python.run(SCRIPT, "coder", f"{server.url}/v1", "qwen2.5-coder-0.5b")["modes"]

    assert list(modes) == ["TOOLS", "JSON", "MD_JSON"]
    assert all(person == {"name": "Ann", "age": 31, "home": {"city": "Rome"}} for person in modes.values())
