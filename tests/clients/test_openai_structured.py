"""OpenAI's SDK for Python parses answers into pydantic models and refuses those that do not fit."""

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.common import MODEL

ASKED: dict[str, Any] = {
    "model": MODEL, "temperature": 0, "max_tokens": 200,
    "messages": [{"role": "user", "content": "Ann (31) lives in Rome, likes two colors: red, blue. Answer in JSON."}],
}  # fmt: skip


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Home(BaseModel):
    """A person's home."""

    city: str = Field(max_length=20)
    country: str | None = Field(max_length=20)


class Person(BaseModel):
    name: str = Field(description="given name", max_length=20)
    age: int = Field(ge=0, le=130)
    kind: Literal["adult", "child"]
    home: Home
    colors: list[Color] = Field(max_length=3)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_parse(client: openai.OpenAI, sparsity: float) -> None:
    """The SDK sends a strict schema and returns an instance of the model."""
    answer = client.chat.completions.parse(**ASKED, response_format=Person, extra_body={"sparsity": sparsity})
    (choice,) = answer.choices

    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Person)
    assert list(json.loads(choice.message.content)) == list(Person.model_fields)
    if sparsity == 0:
        assert (choice.message.parsed.name, choice.message.parsed.age) == ("Ann", 31)


def test_parsed_while_it_streams(client: openai.OpenAI) -> None:
    """The SDK's helper parses the text so far."""
    with client.chat.completions.stream(**ASKED, response_format=Person) as stream:
        begun = [event.parsed for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0].message.parsed

    assert final == client.chat.completions.parse(**ASKED, response_format=Person).choices[0].message.parsed
    assert begun[-1] == final.model_dump(mode="json")


def test_an_answer_that_was_cut_off_is_not_parsed(client: openai.OpenAI) -> None:
    """The SDK raises because of the finish reason."""
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**ASKED, "max_tokens": 5}, response_format=Person)


def test_a_schema_that_strict_mode_refuses(client: openai.OpenAI) -> None:
    """The error is OpenAI's: it names the field and the place in the schema."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "loose", "schema": schema, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="'required' is required") as caught:
        client.chat.completions.create(**ASKED, response_format=form)

    assert caught.value.param == "response_format"


def test_any_object(client: openai.OpenAI) -> None:
    """OpenAI's older JSON mode works."""
    answer = client.chat.completions.create(**ASKED, response_format={"type": "json_object"})
    (choice,) = answer.choices

    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
