"""The requests of test_instructor.py, in instructor's own environment. It prints JSON."""

import json
import sys
from collections.abc import Callable
from typing import Any

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import field_validator

from tests.clients.person import SENTENCE, Person


class Grown(Person):
    """An adult person."""

    @field_validator("age")
    @classmethod
    def grown(cls, age: int) -> int:
        if age < 18:
            raise ValueError("must be of full age")
        return age


MESSAGES: Any = [{"role": "user", "content": SENTENCE}]


def small(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Results that the grammar alone ensures, whatever the model predicts."""
    ask: dict[str, Any] = {"model": model, "messages": MESSAGES, "response_model": Person, "temperature": 0}
    modes = {}
    for mode in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"):
        patched = instructor.from_openai(client, mode=instructor.Mode[mode])
        modes[mode] = patched.chat.completions.create(**ask, max_retries=0).model_dump()
    tools = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions
    partial = [piece.model_dump() for piece in tools.create_partial(**ask)]
    person, completion = tools.create_with_completion(**ask, extra_body={"sparsity": 0.5})
    return {
        "modes": modes,
        "partial": partial,
        "pruned": {"person": person.model_dump(), "sparsity": completion.griffin["sparsity"]},
        "refused": refused(lambda: tools.create(**{**ask, "response_model": Grown}, max_retries=1)),
        "bad_model": refused(lambda: tools.create(**{**ask, "model": "other"}, max_retries=0)),
    }


def coder(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Results that need a model that understands the question."""
    ask: dict[str, Any] = {"model": model, "temperature": 0, "max_retries": 1, "max_tokens": 200}
    modes = {}
    for mode in ("TOOLS", "JSON", "MD_JSON"):
        patched = instructor.from_openai(client, mode=instructor.Mode[mode])
        modes[mode] = patched.chat.completions.create(**ask, messages=MESSAGES, response_model=Person).model_dump()
    return {"modes": modes}


def refused(ask: Callable[[], object]) -> dict[str, Any]:
    """The error of a request that must fail."""
    try:
        ask()
    except InstructorRetryException as error:
        return {"attempts": error.n_attempts, "message": str(error)}
    raise AssertionError("it was not refused")


if __name__ == "__main__":
    kind, url, name = sys.argv[1:]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as own:
        print(json.dumps({"small": small, "coder": coder}[kind](own, name)))
