"""Anthropic's own SDK for Python: messages, streams, tools and token counts work as with Anthropic's server."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.common import MESSAGES, MODEL, tokens_at
from tests.server.process import running
from tests.server.routes.test_tools import CALL
from tests.server.scripted import ScriptedEngine, served

# The SDK has no argument for the temperature.
GREEDY = {"temperature": 0}
ASKED: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "extra_body": GREEDY}
TOOL: dict[str, Any] = {
    "name": "f",
    "description": "Looks up a number.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]},
}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_stream_is_the_same_message(url: str, client: anthropic.Anthropic, sparsity: float) -> None:
    """Text, reason and usage are the same; the message has griffin, too."""
    before, asked = tokens_at(url, sparsity), {**ASKED, "extra_body": {**GREEDY, "sparsity": sparsity}}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert whole.content[0].text == text == final.content[0].text
    assert text
    assert whole.stop_reason == final.stop_reason
    assert whole.usage.output_tokens == final.usage.output_tokens
    read = [each.usage.input_tokens + each.usage.cache_read_input_tokens for each in (whole, final)]
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    assert read == [counted.input_tokens] * 2
    assert whole.griffin["sparsity"] == sparsity
    assert tokens_at(url, sparsity) == before + 2 * whole.usage.output_tokens


def test_a_system_prompt_and_a_stop(client: anthropic.Anthropic) -> None:
    """The message has the stop string that was found."""
    asked = {**ASKED, "max_tokens": 40, "system": "You repeat what you are told."}
    whole = client.messages.create(**asked)
    [block] = whole.content
    stop = block.text.split()[2]
    answer = client.messages.create(**asked, stop_sequences=[stop])

    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == block.text[: block.text.index(stop)]


def test_a_tool_that_must_be_called(client: anthropic.Anthropic) -> None:
    """The call fits the tool's schema, and its result goes back."""
    asked = {**ASKED, "max_tokens": 100, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}
    answer = client.messages.create(**asked)
    [call] = answer.content
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "42"}
    told = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**{**ASKED, "messages": told}, tools=[TOOL])

    assert (call.type, call.name, answer.stop_reason) == ("tool_use", "f", "tool_use")
    assert call.input["a"] <= 99
    assert final.content[0].input == call.input
    assert after.usage.input_tokens + after.usage.cache_read_input_tokens > answer.usage.input_tokens


def test_a_form(client: anthropic.Anthropic) -> None:
    """The answer is JSON that fits the schema."""
    config = {"format": {"type": "json_schema", "schema": TOOL["input_schema"]}}
    answer = client.messages.create(**{**ASKED, "max_tokens": 60}, output_config=config)

    assert json.loads(answer.content[0].text)["a"] <= 99


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "other"}, anthropic.NotFoundError),
        ({"max_tokens": 0}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": "x " * 100_000}]}, anthropic.BadRequestError),
    ],
)
def test_errors_are_the_sdks_own(client: anthropic.Anthropic, changes: Any, error: type[Exception]) -> None:
    """The status decides the class; the body has Anthropic's form."""
    with pytest.raises(error) as raised:
        client.messages.create(**{**ASKED, **changes})
    assert raised.value.body["type"] == "error"


def test_a_fault_in_a_stream_is_raised() -> None:
    """The error comes after the text so far."""
    with (
        served(ScriptedEngine(fail_after=2)) as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
        client.messages.stream(model="scripted", messages=HI, max_tokens=9) as stream,
        pytest.raises(anthropic.APIStatusError, match="inside the server"),
    ):
        stream.until_done()


def test_the_helper_that_runs_tools() -> None:
    """The SDK calls the function itself, with the arguments that the model wrote."""
    asked: list[int] = []

    @anthropic.beta_tool
    def f(a: int) -> str:
        """Looks up a number.

        Args:
            a: which.
        """
        asked.append(a)
        return "42"

    with (
        served(ScriptedEngine(CALL, once=True)) as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        runner = client.beta.messages.tool_runner(
            model="scripted", messages=HI, max_tokens=200, tools=[f], max_iterations=1
        )
        [message] = list(runner)

    assert (asked, message.stop_reason) == ([1], "tool_use")


def test_a_key() -> None:
    """The SDK sends it in a header of its own."""
    with running("--max-model-len", "64", "--api-keys", "first,second") as process:
        with anthropic.Anthropic(base_url=process.url, api_key="second", max_retries=0) as client:
            assert client.messages.count_tokens(model=MODEL, messages=HI).input_tokens > 0
        with (
            anthropic.Anthropic(base_url=process.url, api_key="third", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.count_tokens(model=MODEL, messages=HI)
