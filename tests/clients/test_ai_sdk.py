"""The AI SDK from npm, in node: its two providers for chat completions, and responses."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients.common import CODER, tokens_at
from tests.clients.node import install, run
from tests.clients.versions import NPM_AI

SCRIPT = Path(__file__).with_suffix(".mjs")
PROMPT = "Ann (31) lives in Rome, and likes red and blue. Describe her in JSON."
WAYS = range(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages."""
    made = tmp_path_factory.mktemp("npm")
    install(made, NPM_AI)
    return made


@pytest.fixture(scope="module")
def answers(tiny_url: str, folder: Path) -> dict[str, Any]:
    return run(SCRIPT, folder, "small", f"{tiny_url}/v1", "tiny", PROMPT)


@pytest.mark.parametrize("way", WAYS)
def test_objects(answers: dict[str, Any], way: int) -> None:
    """generateObject validates the object itself; streamObject grows to the same object."""
    found = answers["objects"][way]

    assert list(found["object"]) == ["name", "age", "home", "colors"]
    assert found["streamed"] == found["partial"][-1] == found["object"]
    assert len(found["partial"]) > 8
    assert found["finishReason"] == "stop"
    assert found["usage"]["outputTokens"] > 20
    assert found["streamedUsage"] == found["usage"]


@pytest.mark.parametrize("way", WAYS)
def test_tools(answers: dict[str, Any], way: int) -> None:
    """The SDK runs the function, and the model calls again with the result in the history."""
    found = answers["called"][way]
    [[first], [second]] = found["calls"]

    assert (first["toolName"], second["toolName"]) == ("weather", "weather")
    assert first["input"]["city"] in ("Paris", "Rome")
    assert found["results"] == [f"sunny in {first['input']['city']}"]
    assert found["streamed"] == found["calls"]
    assert "".join(found["input"]).count("city") == 2
    assert found["types"].count("tool-input-start") == found["types"].count("tool-result") == 2
    assert "error" not in found["types"]
    whole, streamed = found["usage"]
    assert whole["totalTokens"] == streamed["totalTokens"] > 400


def test_other_fields(answers: dict[str, Any], tiny_url: str) -> None:
    """transformRequestBody adds fields: the requests of one provider were pruned."""
    assert answers["objects"]
    assert tokens_at(tiny_url, 0.5) > 100


def test_a_choice(answers: dict[str, Any]) -> None:
    assert answers["choice"] in ("a person", "a city")


def test_a_chat_by_responses_goes_on(answers: dict[str, Any]) -> None:
    """The SDK sends the messages again; references to stored items are refused."""
    assert answers["goneOn"]["inputTokens"] > 50
    assert answers["stored"]["statusCode"] == 400
    assert "this server keeps no items" in answers["stored"]["message"]


def test_errors(answers: dict[str, Any]) -> None:
    """They are the SDK's own, with the server's message."""
    assert answers["cutOff"]["name"] == "AI_NoObjectGeneratedError"
    name, message, status, again = answers["optional"].values()
    assert (name, status, again) == ("AI_APICallError", 400, False)
    assert "'required' is required to be supplied" in message
    assert answers["badModel"]["statusCode"] == 404


def test_answers_make_sense(coder_url: str, folder: Path) -> None:
    """An object has what the prompt says, and an agent with streamText calls two tools before it answers."""
    answers = run(SCRIPT, folder, "coder", f"{coder_url}/v1", CODER, PROMPT)

    assert answers["person"]["name"] == "Ann"
    assert answers["person"]["age"] == 31
    assert answers["person"]["home"]["city"] == "Rome"
    assert set(answers["person"]["colors"]) == {"red", "blue"}
    agent = answers["agent"]
    called = {(call["toolName"], call["input"]["city"]) for call in agent["calls"]}
    assert called == {("get_temperature", "Oslo"), ("get_population", "Oslo")}
    assert agent["reasons"][-1] == "stop"
    assert "-7" in agent["text"]
    assert "717710" in agent["text"].replace(",", "")
