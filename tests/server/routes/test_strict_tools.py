"""Strict tools with tool_choice auto: a real engine, and random weights with a bias towards opening a call."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from griffin import Checkpoint
from tests.server import tiny_checkpoint
from tests.server.client import post, stream
from tests.server.process import running
from tests.server.routes.test_forced_tools import CHAT, PARAMETERS
from tests.server.routes.test_tools import put_together

MARKS = ["<tool_call>", "</tool_call>"]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def opening(smollm2: Checkpoint) -> dict[str, int]:
    """A bias that makes the model open a call wherever it may."""
    return {str(len(smollm2.tokenizer)): 100}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, smollm2: Checkpoint) -> Iterator[str]:
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.add_tokens(MARKS, special_tokens=False)
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("strict") / "tiny", tokenizer, context=2048)
    with running("--model", str(folder), "--dtype", "float32", OMP_NUM_THREADS="1") as server:
        yield server.url


@pytest.mark.parametrize(
    "more",
    [{}, {"griffin": {"draft": "none"}}, {"sparsity": 0.5}, {"griffin": {"mode": "guarded"}}, {"temperature": 0}],
    ids=str,
)
def test_an_opened_call_is_held_to_its_schema(url: str, opening: dict[str, int], more: dict[str, Any]) -> None:
    """The model opens several calls, one after the other; a stream gives the same."""
    asked = {"messages": HI, "tools": [WEATHER], "max_tokens": 160, "seed": 2, "logit_bias": opening, **more}
    [whole] = post(url, CHAT, **asked).raise_for_status().json()["choices"]
    _, streamed, _ = put_together(stream(url, CHAT, **asked), 0)

    calls = [call["function"] for call in whole["message"]["tool_calls"]]
    assert len(calls) > 2
    for call in calls[:-1]:
        assert call["name"] == "weather"
        jsonschema.validate(json.loads(call["arguments"]), {**PARAMETERS, "additionalProperties": False})
    assert [call["arguments"] for call in streamed] == [call["arguments"] for call in calls]


def test_lossless_is_the_full_model(url: str, opening: dict[str, int]) -> None:
    """Drafts open calls, too, and are cut where the grammar refuses them."""
    asked = {"messages": HI, "tools": [WEATHER, NOW], "max_tokens": 120, "temperature": 0, "logit_bias": opening}
    dense, lossless = (
        post(url, CHAT, **asked, **more).raise_for_status().json()["choices"][0]["message"]["tool_calls"]
        for more in ({"griffin": {"draft": "none"}}, {"sparsity": 0.5, "griffin": {"mode": "lossless"}})
    )

    assert [call["function"] for call in lossless] == [call["function"] for call in dense]


def test_text_is_free(url: str) -> None:
    """An answer without calls has the same tokens as with a tool that is not strict."""
    ask = {"messages": HI, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    ask["logit_bias"] = {"1": 1}
    loose = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    strict, free = (post(url, CHAT, **ask, tools=[tool]).json()["choices"][0]["token_ids"] for tool in (WEATHER, loose))

    assert strict == free


def test_one_call_ends_the_answer(url: str, opening: dict[str, int]) -> None:
    """With ``parallel_tool_calls`` false, in /v1/responses too."""
    asked = {"messages": HI, "tools": [WEATHER], "parallel_tool_calls": False, "max_tokens": 400}
    [choice] = post(url, CHAT, **asked, logit_bias=opening).raise_for_status().json()["choices"]
    flat = {"type": "function", **WEATHER["function"]}
    response = {"input": "Hi", "tools": [flat], "parallel_tool_calls": False, "logit_bias": opening}
    item = post(url, "/v1/responses", **response).raise_for_status().json()["output"][0]

    assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("tool_calls", 1)
    jsonschema.validate(json.loads(item["arguments"]), PARAMETERS)


def test_a_schema_that_cannot_be_compiled_is_refused(url: str) -> None:
    """A call could not be held to it. The schema of a tool that is not strict is not compiled."""
    parameters = {"type": "object", "properties": {"a": {"type": "string", "format": "nope"}}}
    for strict, status in ((True, 400), (False, 200)):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}
        answer = post(url, CHAT, messages=HI, tools=[WEATHER, tool] if strict else [tool], max_tokens=1)
        assert answer.status_code == status, answer.text
        if strict:
            assert answer.json()["error"]["param"] == "tools[1].function.parameters"


@pytest.mark.parametrize("more", [{"min_tokens": 4}, {"ignore_eos": True}], ids=str)
def test_an_answer_that_must_go_on(url: str, opening: dict[str, int], more: dict[str, Any]) -> None:
    """This grammar never ends the answer, so these fields are allowed, in all three APIs."""
    asked = {**more, "max_tokens": 6, "logit_bias": opening}
    function = WEATHER["function"]
    tool = {"name": "weather", "input_schema": PARAMETERS, "strict": True}
    bodies = {
        CHAT: {"messages": HI, "tools": [WEATHER], **asked},
        "/v1/responses": {"input": "Hi", "tools": [{"type": "function", **function}], **asked},
        "/v1/messages": {"messages": HI, "tools": [tool], **asked},
    }
    for path, body in bodies.items():
        if path == "/v1/responses":
            body["max_output_tokens"] = body.pop("max_tokens")
        usage = post(url, path, **body).raise_for_status().json()["usage"]
        assert usage.get("completion_tokens", usage.get("output_tokens")) == 6, path


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    "part",
    [{"const": "<|im_end|>"}, {"enum": ["a", "x<tool_call>y"]}, {"properties": {"</tool_call>": {"type": "null"}}}],
    ids=str,
)
def test_a_schema_that_spells_a_mark_is_refused(url: str, choice: str, part: dict[str, Any]) -> None:
    """The error comes before the answer and names the tool. A description may contain marks."""
    schema = {"type": "object", "description": "no <tool_call>", "properties": {"description": part}}
    tools = [WEATHER, {"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}]
    asked = {"messages": HI, "tools": tools, "tool_choice": choice, "max_tokens": 4}
    answer = post(url, CHAT, **asked)
    schema["properties"] = {}
    described = post(url, CHAT, **asked)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "tools[1].function.parameters"
    assert "special token" in answer.json()["error"]["message"]
    assert described.status_code == 200, described.text
