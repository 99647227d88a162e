"""LangChain's two classes for OpenAI's API."""

import asyncio
import itertools
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.clients.common import MESSAGES, MODEL, PROMPT, tokens_at

QUESTION = str(MESSAGES[0]["content"])
HALF = {"sparsity": 0.5}


@pytest.fixture
def server(url: str) -> dict[str, Any]:
    """The server in LangChain's terms."""
    return {"model": MODEL, "base_url": f"{url}/v1", "api_key": "none", "temperature": 0, "max_retries": 0}


# The class OpenAI: texts


def test_invoke(server: dict[str, Any]) -> None:
    """A prompt gives a text."""
    assert "Paris" in OpenAI(**server, max_tokens=4).invoke("The capital of France is")


def test_several_prompts_in_one_call(server: dict[str, Any]) -> None:
    """generate sends all prompts in one request, and usage counts them together."""
    result = OpenAI(**server, max_tokens=4).generate([PROMPT, "The capital of France is"])

    assert [len(generations) for generations in result.generations] == [1, 1]
    assert "Paris" in result.generations[1][0].text
    assert result.generations[0][0].generation_info["finish_reason"] == "length"
    assert result.llm_output["token_usage"] == {"prompt_tokens": 32, "completion_tokens": 8, "total_tokens": 40}


def test_several_answers_to_each_prompt(server: dict[str, Any]) -> None:
    """Each prompt gets its own n texts."""
    prompts = [PROMPT, "The capital of France is"]
    llm = OpenAI(**{**server, "temperature": 1}, max_tokens=4, n=2, seed=1, extra_body={"echo": True})
    result = llm.generate(prompts)

    assert [len(generations) for generations in result.generations] == [2, 2]
    for prompt, generations in zip(prompts, result.generations, strict=True):
        assert all(generation.text.startswith(prompt) for generation in generations)
        assert generations[0].text != generations[1].text


def test_best_of(server: dict[str, Any]) -> None:
    """The n texts have the highest mean log-probability of best_of texts."""
    llm = OpenAI(**{**server, "temperature": 1}, max_tokens=4, n=1, best_of=3, seed=1)
    result = llm.generate([PROMPT])

    assert len(result.generations[0]) == 1
    assert result.llm_output["token_usage"]["completion_tokens"] > 4


def test_stream(server: dict[str, Any]) -> None:
    """The pieces join to the same text."""
    llm = OpenAI(**server, max_tokens=8)
    pieces = list(llm.stream(PROMPT))

    assert "".join(pieces) == llm.invoke(PROMPT)
    assert len([piece for piece in pieces if piece]) == 8


def test_stop(server: dict[str, Any]) -> None:
    """The text ends before a stop string."""
    assert OpenAI(**server, max_tokens=24).invoke("One, two, three, four,", stop=[" seven"]) == " five, six,"


def test_log_probabilities(server: dict[str, Any]) -> None:
    """Each token of the text has one."""
    result = OpenAI(**server, max_tokens=4, logprobs=2).generate([PROMPT])

    assert len(result.generations[0][0].generation_info["logprobs"]["token_logprobs"]) == 4


def test_sparsity_of_a_text(server: dict[str, Any], url: str) -> None:
    """extra_body reaches the server, streamed or not: all tokens but the first are pruned by half."""
    llm = OpenAI(**server, max_tokens=8, extra_body={**HALF, "ignore_eos": True})
    before = tokens_at(url, 0.5)
    llm.invoke(PROMPT)
    whole = tokens_at(url, 0.5) - before
    list(llm.stream(PROMPT))

    assert whole in (7, 8)
    assert tokens_at(url, 0.5) - before == 2 * whole


# The class ChatOpenAI: messages


def test_chat(server: dict[str, Any]) -> None:
    """Messages give a message with its usage."""
    answer = ChatOpenAI(**server, max_tokens=24).invoke([SystemMessage("You know the world."), HumanMessage(QUESTION)])

    assert isinstance(answer, AIMessage)
    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.usage_metadata["total_tokens"] == (
        answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]
    )


def test_chat_stream(server: dict[str, Any]) -> None:
    """The chunks add up to the message and, if requested, to its usage."""
    llm = ChatOpenAI(**server, max_tokens=24, stream_usage=True)
    whole = llm.invoke(QUESTION)
    first, *chunks = llm.stream(QUESTION)
    total = first
    for chunk in chunks:
        total += chunk

    assert total.content == whole.content
    assert total.usage_metadata == whole.usage_metadata
    assert total.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]


def test_chat_log_probabilities_and_several_answers(server: dict[str, Any]) -> None:
    """There are n generations, each with the log-probabilities of its tokens."""
    llm = ChatOpenAI(**{**server, "temperature": 1}, max_tokens=4, n=2, seed=1, logprobs=True, top_logprobs=2)
    generations = llm.generate([[HumanMessage(QUESTION)]]).generations[0]

    assert len(generations) == 2
    for generation in generations:
        entries = generation.message.response_metadata["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries).startswith(generation.message.content)


def test_sparsity_of_a_chat(server: dict[str, Any], url: str) -> None:
    """extra_body and the model's name both reach the server, streamed or not."""
    extra, alias = {**HALF, "ignore_eos": True}, {**server, "model": f"{MODEL}@sparsity=0.5"}
    by_field = ChatOpenAI(**server, max_tokens=8, extra_body=extra)
    by_name = ChatOpenAI(**alias, max_tokens=8, extra_body={"ignore_eos": True})
    counts = [tokens_at(url, 0.5)]
    for llm in (by_field, by_name):
        llm.invoke(QUESTION)
        counts.append(tokens_at(url, 0.5))
        list(llm.stream(QUESTION))
        counts.append(tokens_at(url, 0.5))
    steps = {after - before for before, after in itertools.pairwise(counts)}

    assert steps in ({7.0}, {8.0})


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"] = Field(description="where")


def test_tools(server: dict[str, Any]) -> None:
    """With bind_tools, a stream adds up to the same call, and the call's result can be sent back."""
    llm = ChatOpenAI(**server, max_tokens=200).bind_tools([Weather], tool_choice="any", parallel_tool_calls=False)
    answer = llm.invoke(QUESTION)
    first, *chunks = llm.stream(QUESTION)
    total = first
    for chunk in chunks:
        total += chunk

    assert isinstance(answer, AIMessage)
    [call] = answer.tool_calls
    assert call["name"] == "Weather"
    assert Weather(**call["args"])
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert [(each["name"], each["args"]) for each in total.tool_calls] == [(call["name"], call["args"])]
    again = llm.invoke([HumanMessage(QUESTION), answer, ToolMessage("sunny", tool_call_id=call["id"])])
    assert again.tool_calls


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output(server: dict[str, Any], method: Any) -> None:
    """A named tool works, and so does a response format."""
    llm = ChatOpenAI(**server, max_tokens=60).with_structured_output(Weather, method=method)

    assert isinstance(llm.invoke(QUESTION), Weather)


# LangChain serializes an object whose type the SDK's class leaves open.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_in_a_stream(server: dict[str, Any], method: Any) -> None:
    """The stream ends with the object that invoke gives, beside the raw message."""
    llm = ChatOpenAI(**server, max_tokens=60).with_structured_output(Weather, method=method, include_raw=True)
    whole = llm.invoke(QUESTION)
    *_, last = (part["parsed"] for part in llm.stream(QUESTION) if "parsed" in part)

    assert isinstance(whole["raw"], AIMessage)
    assert whole["parsing_error"] is None
    assert last == whole["parsed"] == Weather(city=last.city)


def test_any_object(server: dict[str, Any]) -> None:
    """OpenAI's older JSON mode sends no schema, so the model may miss it, and LangChain reports this."""
    llm = ChatOpenAI(**server, max_tokens=40).with_structured_output(Weather, method="json_mode", include_raw=True)
    answer = llm.invoke(QUESTION)

    assert answer["raw"].content.startswith("{")
    assert (answer["parsed"] is None) == (answer["parsing_error"] is not None)


def test_a_chain(server: dict[str, Any]) -> None:
    """A template, the model and batch: requests run in parallel, answers keep their order."""
    prompt = ChatPromptTemplate.from_messages([("user", "What is the capital of {country}? Answer in one sentence.")])
    chain = prompt | ChatOpenAI(**server, max_tokens=16)
    answers = chain.batch([{"country": "France"}, {"country": "Italy"}])

    assert [word in answer.content for word, answer in zip(("Paris", "Rome"), answers, strict=True)] == [True, True]


def test_asyncio(server: dict[str, Any]) -> None:
    """ainvoke and astream work."""

    async def ask() -> tuple[str, str, str]:
        # Use our own connections, because LangChain never closes its own.
        async with openai.DefaultAsyncHttpxClient() as connections:
            text = OpenAI(**server, max_tokens=4, http_async_client=connections)
            chat = ChatOpenAI(**server, max_tokens=4, http_async_client=connections)
            streamed = "".join([str(chunk.content) async for chunk in chat.astream(QUESTION)])
            return await text.ainvoke(PROMPT), str((await chat.ainvoke(QUESTION)).content), streamed

    text, chat, streamed = asyncio.run(ask())

    assert text
    assert chat == streamed != ""


def test_errors_are_openais(server: dict[str, Any]) -> None:
    """Errors have the classes of OpenAI's SDK and name the field."""
    with pytest.raises(openai.BadRequestError) as refusal:
        OpenAI(**server, extra_body={"sparsity": 2}).invoke(PROMPT)
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(**{**server, "model": "gpt-4"}).invoke(QUESTION)

    assert refusal.value.param == "sparsity"
