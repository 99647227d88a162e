"""Tools by OpenAI's own SDK: its helpers with the embedded model, and an agent with one that knows how to call."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.clients.common import CODER, MESSAGES, MODEL

MOST_TURNS = 6


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome", "Oslo"]
    days: int


TOOLS = [openai.pydantic_function_tool(Weather)]


@pytest.fixture(scope="module")
def strict(url: str) -> Iterator[openai.OpenAI]:
    """A client that refuses an answer that is not as OpenAI's types say."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_a_required_call(strict: openai.OpenAI) -> None:
    """One object, whose arguments are as the schema says; a model of one's own reads them."""
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    answer = strict.chat.completions.parse(**ask, tool_choice="required", temperature=0)

    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name, call.id[:5]) == ("function", "Weather", "call_")
    assert isinstance(call.function.parsed_arguments, Weather)


def test_a_streamed_call(strict: openai.OpenAI) -> None:
    """The helper's events, and what it puts together, are the whole answer's."""
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "temperature": 0}
    ask["tool_choice"] = {"type": "function", "function": {"name": "Weather"}}
    [whole] = strict.chat.completions.create(**ask).choices
    with strict.chat.completions.stream(**ask) as stream:
        events = list(stream)
        [choice] = stream.get_final_completion().choices

    assert (choice.finish_reason, whole.finish_reason) == ("stop", "stop")
    assert whole.message.tool_calls
    assert choice.message.tool_calls
    [call], [same] = whole.message.tool_calls, choice.message.tool_calls
    assert same.function.arguments == call.function.arguments
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in deltas) == call.function.arguments
    assert len(deltas) > 4
    assert [event.name for event in events if event.type == "tool_calls.function.arguments.done"] == ["Weather"]


def test_a_history_goes_on(strict: openai.OpenAI) -> None:
    """The call as the SDK has it, and its answer, are sent back; also where no tools are offered any more."""
    ask: dict[str, Any] = {
        "model": MODEL,
        "tools": TOOLS,
        "temperature": 0,
        "tool_choice": "required",
        "max_tokens": 60,
    }
    [choice] = strict.chat.completions.create(**ask, messages=MESSAGES, parallel_tool_calls=False).choices
    assert choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "sunny"}
    history: Any = [*MESSAGES, choice.message, result]
    for tools in (TOOLS, openai.omit):
        again = strict.chat.completions.create(model=MODEL, messages=history, tools=tools, max_tokens=8)
        assert again.usage
        assert again.usage.prompt_tokens > 60
    with pytest.raises(openai.BadRequestError) as refused:
        strict.chat.completions.create(model=MODEL, messages=history[:-1], tools=TOOLS)

    assert refused.value.param == "messages[1].tool_calls"


# An agent.


@pytest.fixture(scope="module")
def coder(coder_url: str) -> Iterator[openai.OpenAI]:
    """A client of a model that was trained to call functions."""
    with openai.OpenAI(base_url=f"{coder_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def function(name: str, description: str, **parameters: str) -> Any:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


AGENT_TOOLS = [
    function("get_temperature", "The current temperature in a city, in degrees Celsius.", city="string"),
    function("get_population", "How many people live in a city.", city="string"),
]
RESULTS = {"get_temperature": "-7 degrees Celsius", "get_population": "717710 people"}
INSTRUCTIONS = (
    "You call functions to find facts. Once you have all the results you need, answer the user in plain words and call "
    "nothing more."
)
QUESTION = "What is the temperature in Oslo, and how many people live there?"


def whole(client: openai.OpenAI, ask: dict[str, Any]) -> tuple[str | None, list[tuple[str, str, str]], str]:
    [choice] = client.chat.completions.create(**ask).choices
    calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.message.content, calls, choice.finish_reason


def streamed(client: openai.OpenAI, ask: dict[str, Any]) -> tuple[str | None, list[tuple[str, str, str]], str]:
    with client.chat.completions.stream(**ask) as stream:
        [choice] = stream.get_final_completion().choices
    calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.message.content, calls, choice.finish_reason


@pytest.mark.parametrize(("ask_once", "sparsity"), [(whole, 0), (streamed, 0.25)])
def test_an_agent_calls_two_tools(coder: openai.OpenAI, ask_once: Callable[..., Any], sparsity: float) -> None:
    """Until it has what it needs to answer, by its own choice."""
    messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": QUESTION}]
    called: list[tuple[str, dict[str, Any]]] = []
    content: str | None = None
    for _ in range(MOST_TURNS):
        ask = {"model": CODER, "messages": messages, "tools": AGENT_TOOLS, "temperature": 0, "max_tokens": 200}
        content, calls, reason = ask_once(coder, {**ask, "extra_body": {"sparsity": sparsity}})
        assert reason == ("tool_calls" if calls else "stop")
        if not calls:
            break
        made = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": text}} for id, name, text in calls
        ]
        messages.append({"role": "assistant", "content": content, "tool_calls": made})
        messages += [{"role": "tool", "tool_call_id": id, "content": RESULTS[name]} for id, name, _ in calls]
        called += [(name, json.loads(text)) for _, name, text in calls]

    assert called == [("get_temperature", {"city": "Oslo"}), ("get_population", {"city": "Oslo"})]
    assert content
    assert "-7" in content
    assert "717710" in content.replace(",", "")
