"""LiteLLM, which many programs use to reach their servers."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any, Literal

# Set before the import: use the package's own price list instead of fetching one.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import httpx
import litellm
import pytest
from pydantic import BaseModel

from tests.clients.common import MESSAGES, MODEL, PROMPT, tokens_at

# LiteLLM reads every attribute of a chunk, even those that pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Accessing the 'model_.*' attribute on the instance:pydantic.warnings.PydanticDeprecatedSince211"
)

TEXT, CHAT = f"text-completion-openai/{MODEL}", f"openai/{MODEL}"
HALF = {"sparsity": 0.5}


@pytest.fixture(autouse=True, scope="module")
def session() -> Iterator[None]:
    """Connections that are closed at the end, because LiteLLM never closes its own."""
    with pytest.MonkeyPatch.context() as monkeypatch, httpx.Client() as session:
        monkeypatch.setattr(litellm, "client_session", session)
        yield
    litellm.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LiteLLM sends no reports here. It gets an event loop, because it would never close its own."""
    monkeypatch.setattr(litellm, "telemetry", False)
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def server(url: str) -> dict[str, Any]:
    """The server in LiteLLM's terms."""
    return {"api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_retries": 0}


def test_completion(server: dict[str, Any]) -> None:
    """A prompt goes to /v1/completions."""
    answer = litellm.text_completion(model=TEXT, prompt=PROMPT, max_tokens=8, logprobs=1, **server)

    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].logprobs.tokens) == 8
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (27, 8)


def test_streamed_completion(server: dict[str, Any]) -> None:
    """The pieces join to the same text."""
    whole = litellm.text_completion(model=TEXT, prompt=PROMPT, max_tokens=8, **server)
    chunks = list(litellm.text_completion(model=TEXT, prompt=PROMPT, max_tokens=8, stream=True, **server))

    assert "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].text]) == 8


def test_several_prompts(server: dict[str, Any]) -> None:
    """A list of prompts is one request, and each prompt gets one choice."""
    answer = litellm.text_completion(model=TEXT, prompt=[PROMPT, "The capital of France is"], max_tokens=4, **server)

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[1].text


def test_messages_to_a_text_model(server: dict[str, Any]) -> None:
    """litellm.completion with a text model writes the messages into a prompt."""
    messages = [{"role": "user", "content": "The capital of France is"}]
    answer = litellm.completion(model=TEXT, messages=messages, max_tokens=4, **server)
    chunks = list(litellm.completion(model=TEXT, messages=messages, max_tokens=4, stream=True, **server))

    assert "Paris" in answer.choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_sparsity_of_a_completion(server: dict[str, Any], url: str, stream: bool) -> None:
    """extra_body reaches the server: the seven tokens after the first are pruned by half."""
    before = tokens_at(url, 0.5)
    answer = litellm.text_completion(
        model=TEXT, prompt=PROMPT, max_tokens=8, extra_body={**HALF, "ignore_eos": True}, stream=stream, **server
    )
    if stream:
        list(answer)

    assert tokens_at(url, 0.5) - before in (7, 8)


def test_chat(server: dict[str, Any]) -> None:
    """A conversation goes to /v1/chat/completions."""
    answer = litellm.completion(model=CHAT, messages=MESSAGES, max_tokens=24, **server)
    choice = answer.choices[0]

    assert "Paris" in choice.message.content
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat(server: dict[str, Any]) -> None:
    """The chunks add up to the same message and usage."""
    whole = litellm.completion(model=CHAT, messages=MESSAGES, max_tokens=24, **server)
    chunks = list(
        litellm.completion(
            model=CHAT, messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **server
        )
    )
    rebuilt = litellm.stream_chunk_builder(chunks)

    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.choices[0].finish_reason == whole.choices[0].finish_reason
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
    assert rebuilt.usage.prompt_tokens == whole.usage.prompt_tokens


def test_sparsity_of_a_chat(server: dict[str, Any]) -> None:
    """The answer keeps the server's report."""
    answer = litellm.completion(model=CHAT, messages=MESSAGES, max_tokens=8, extra_body=HALF, **server)

    assert answer.griffin["sparsity"] == 0.5
    assert answer.metrics["tokens_per_second"] > 0


def test_sparsity_by_the_models_name(server: dict[str, Any]) -> None:
    """An alias needs no extra field, so LiteLLM's own list of models can have it."""
    answer = litellm.completion(model=f"{CHAT}@sparsity=0.5", messages=MESSAGES, max_tokens=8, **server)

    assert answer.griffin["sparsity"] == 0.5


def test_asyncio(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """acompletion and atext_completion work, streamed or not."""

    async def ask() -> tuple[Any, Any, str]:
        # Use our own connections, as in ``session``.
        async with httpx.AsyncClient() as session:
            monkeypatch.setattr(litellm, "aclient_session", session)
            text = await litellm.atext_completion(model=TEXT, prompt=PROMPT, max_tokens=4, **server)
            chat = await litellm.acompletion(model=CHAT, messages=MESSAGES, max_tokens=4, **server)
            chunks = await litellm.acompletion(model=CHAT, messages=MESSAGES, max_tokens=4, stream=True, **server)
            return text, chat, "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    text, chat, streamed = asyncio.run(ask())

    assert text.choices[0].text
    assert chat.choices[0].message.content == streamed != ""


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]


WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": Weather.model_json_schema()}
TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"}


def test_tools(server: dict[str, Any]) -> None:
    """A call is the same streamed or not, and can be sent back in the history."""
    ask = {**TOOLS, "model": CHAT, "parallel_tool_calls": False, "temperature": 0, "max_tokens": 200, **server}
    [choice] = litellm.completion(messages=MESSAGES, **ask).choices
    chunks = list(litellm.completion(messages=MESSAGES, stream=True, **ask))
    [streamed] = litellm.stream_chunk_builder(chunks).choices

    [call], [same] = choice.message.tool_calls, streamed.message.tool_calls
    assert (choice.finish_reason, streamed.finish_reason) == ("tool_calls", "tool_calls")
    assert call.function.name == same.function.name == "weather"
    assert Weather.model_validate_json(call.function.arguments)
    assert same.function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = litellm.completion(messages=[*MESSAGES, choice.message, result], **ask)
    assert again.choices[0].message.tool_calls


def test_structured_output(server: dict[str, Any]) -> None:
    """LiteLLM sends a pydantic model as a strict schema."""
    answer = litellm.completion(model=CHAT, messages=MESSAGES, response_format=Weather, max_tokens=40, **server)

    assert Weather.model_validate_json(answer.choices[0].message.content)


def test_errors_are_litellms_own(server: dict[str, Any]) -> None:
    """A refused field is a BadRequestError with the server's sentence, an unknown model a NotFoundError."""
    with pytest.raises(litellm.BadRequestError, match="sparsity"):
        litellm.text_completion(model=TEXT, prompt=PROMPT, extra_body={"sparsity": 2}, **server)
    with pytest.raises(litellm.BadRequestError, match="sparsity"):
        litellm.completion(model=CHAT, messages=MESSAGES, extra_body={"sparsity": 2}, **server)
    with pytest.raises(litellm.NotFoundError, match="gpt-4"):
        litellm.completion(model="openai/gpt-4", messages=MESSAGES, **server)
