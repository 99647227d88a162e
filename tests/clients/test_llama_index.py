"""LlamaIndex's OpenAILike: texts, chats, streams, a tool, pydantic models."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients import python
from tests.clients.common import tokens_at
from tests.models import coder
from tests.server.process import running

SCRIPT = Path(__file__).with_name("llama_index_script.py")


@pytest.fixture(scope="module")
def answers(tiny_url: str) -> dict[str, Any]:
    return python.run(SCRIPT, "small", f"{tiny_url}/v1", "tiny")


@pytest.mark.parametrize(("kind", "pieces"), [("texts", 8), ("chats", 16)])
def test_texts(answers: dict[str, Any], kind: str, pieces: int) -> None:
    """complete and chat give the same text whole, streamed and with asyncio."""
    found = answers[kind]

    assert found["whole"] == found["later"] == "".join(found["pieces"]) != ""
    assert len([piece for piece in found["pieces"] if piece]) == pieces


def test_usage(answers: dict[str, Any]) -> None:
    assert answers["texts"]["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


def test_sparsity(answers: dict[str, Any], tiny_url: str) -> None:
    """additional_kwargs reach the server, and ``raw`` is the whole answer."""
    assert answers["chats"]["sparsity"] == 0.5
    assert tokens_at(tiny_url, 0.5) >= 45


@pytest.mark.parametrize("way", ["by_tool", "by_schema"])
def test_a_model(answers: dict[str, Any], way: str) -> None:
    """as_structured_llm validates the answer."""
    person = answers["structured"][way]

    assert list(person) == ["name", "age", "home"]
    assert person["home"]["city"] in ("Paris", "Rome")


def test_a_tool(answers: dict[str, Any]) -> None:
    """predict_and_call runs the function."""
    city = answers["called"]["input"]["city"]

    assert answers["called"]["output"] == f"sunny in {city}"


def test_errors(answers: dict[str, Any]) -> None:
    """They are those of OpenAI's SDK, with the server's message."""
    assert answers["bad_model"]["name"] == "NotFoundError"
    assert "model 'other' does not exist here" in answers["bad_model"]["message"]


def test_answers_make_sense() -> None:
    with running("--model", str(coder("0.5b"))) as server:
        found = python.run(SCRIPT, "coder", f"{server.url}/v1", "qwen2.5-coder-0.5b")

    assert "Paris" in found["text"]
    assert list(found["structured"].values()) == [{"name": "Ann", "age": 31, "home": {"city": "Rome"}}] * 2
