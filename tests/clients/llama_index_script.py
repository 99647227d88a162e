"""The requests of test_llama_index.py, in LlamaIndex's own environment. It prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients.person import SENTENCE, Person

PROMPT = "The capital of France is"
MESSAGES = [ChatMessage(role="user", content=SENTENCE)]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


WEATHER = FunctionTool.from_defaults(weather)


def like(url: str, model: str, **options: Any) -> OpenAILike:
    """A client in LlamaIndex's terms."""
    shared = {"model": model, "api_base": url, "api_key": "none", "temperature": 0, "max_retries": 0, "timeout": 600}
    return OpenAILike(**{**shared, **options})


def texts(url: str, model: str) -> dict[str, Any]:
    """Answers of /v1/completions."""
    llm = like(url, model, max_tokens=8)
    whole = llm.complete(PROMPT)
    return {
        "whole": whole.text,
        "usage": whole.additional_kwargs,
        "pieces": [piece.delta for piece in llm.stream_complete(PROMPT)],
        "later": asyncio.run(llm.acomplete(PROMPT)).text,
    }


def chats(url: str, model: str) -> dict[str, Any]:
    """Answers of /v1/chat/completions."""
    llm = like(url, model, max_tokens=16, is_chat_model=True, additional_kwargs={"extra_body": {"sparsity": 0.5}})
    whole = llm.chat(MESSAGES)
    return {
        "whole": whole.message.content,
        "sparsity": whole.raw.griffin["sparsity"],
        "pieces": [piece.delta for piece in llm.stream_chat(MESSAGES)],
        "later": asyncio.run(llm.achat(MESSAGES)).message.content,
    }


def structured(url: str, model: str) -> dict[str, Any]:
    """A pydantic model by a required tool, and by a schema."""
    by_tool = like(url, model, max_tokens=200, is_chat_model=True, is_function_calling_model=True)
    by_schema = like(url, model, max_tokens=200, is_chat_model=True, should_use_structured_outputs=True)
    return {
        "by_tool": by_tool.as_structured_llm(Person).chat(MESSAGES).raw.model_dump(),
        "by_schema": by_schema.as_structured_llm(Person).chat(MESSAGES).raw.model_dump(),
    }


def small(url: str, model: str) -> dict[str, Any]:
    """Results that the grammar alone ensures, whatever the model predicts."""
    llm = like(url, model, max_tokens=200, is_chat_model=True, is_function_calling_model=True)
    called = llm.predict_and_call([WEATHER], user_msg="The weather in Rome?", tool_required=True)
    [source] = called.sources
    return {
        "texts": texts(url, model),
        "chats": chats(url, model),
        "structured": structured(url, model),
        "called": {"input": source.raw_input["kwargs"], "output": called.response},
        "bad_model": refused(like(url, "other", is_chat_model=True)),
    }


def coder(url: str, model: str) -> dict[str, Any]:
    """Results that need a model that understands the question."""
    return {"text": like(url, model, max_tokens=4).complete(PROMPT).text, "structured": structured(url, model)}


def refused(llm: OpenAILike) -> dict[str, str]:
    """The error of a request that must fail."""
    try:
        llm.chat(MESSAGES)
    except Exception as error:
        return {"name": type(error).__name__, "message": str(error)}
    raise AssertionError("it was not refused")


if __name__ == "__main__":
    kind, address, name = sys.argv[1:]
    print(json.dumps({"small": small, "coder": coder}[kind](address, name)))
