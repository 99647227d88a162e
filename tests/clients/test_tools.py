"""Tools with OpenAI's own SDK and its helpers, with the embedded model."""

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.clients.common import MESSAGES, MODEL


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome", "Oslo"]
    days: int


TOOLS = [openai.pydantic_function_tool(Weather)]


@pytest.fixture(scope="module")
def strict(url: str) -> Iterator[openai.OpenAI]:
    """A client that refuses answers that do not fit OpenAI's types."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_a_required_call(strict: openai.OpenAI) -> None:
    """The answer is one object; its arguments fit the schema, and a pydantic model reads them."""
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    answer = strict.chat.completions.parse(**ask, tool_choice="required", temperature=0)

    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name, call.id[:5]) == ("function", "Weather", "call_")
    assert isinstance(call.function.parsed_arguments, Weather)


def test_a_streamed_call(strict: openai.OpenAI) -> None:
    """The helper's events and its result equal the whole answer."""
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
    """The SDK's own call object and the result are sent back, with and without tools."""
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
