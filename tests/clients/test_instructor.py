"""instructor: pydantic models as answers, in its modes, streamed, and with retries."""

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
    """instructor validates the answer of a named tool, a strict one, a schema, and /v1/responses."""
    person = answers["modes"][mode]

    assert list(person) == ["name", "age", "home"]
    assert person["name"] in ("Ann", "Bob")
    assert person["home"]["city"] in ("Paris", "Rome")


def test_piece_by_piece(answers: dict[str, Any]) -> None:
    """The objects of create_partial grow to the whole answer."""
    assert len(answers["partial"]) > 8
    assert answers["partial"][0]["name"] is None
    assert answers["partial"][-1] == answers["modes"]["TOOLS"]


def test_sparsity(answers: dict[str, Any]) -> None:
    """extra_body reaches the server, and create_with_completion keeps the server's report."""
    assert answers["pruned"]["sparsity"] == 0.5


def test_a_refused_answer_is_sent_back(answers: dict[str, Any]) -> None:
    """If a validator refuses an answer, instructor sends it back with the error, as a call in the history."""
    assert answers["refused"]["attempts"] == 2
    assert "must be of full age" in answers["refused"]["message"]


def test_errors(answers: dict[str, Any]) -> None:
    """The error has the server's message."""
    assert "model 'other' does not exist here" in answers["bad_model"]["message"]


def test_answers_make_sense() -> None:
    """This also holds in the modes without a schema."""
    with running("--model", str(coder("0.5b"))) as server:
        modes = python.run(SCRIPT, "coder", f"{server.url}/v1", "qwen2.5-coder-0.5b")["modes"]

    assert list(modes) == ["TOOLS", "JSON", "MD_JSON"]
    assert all(person == {"name": "Ann", "age": 31, "home": {"city": "Rome"}} for person in modes.values())
