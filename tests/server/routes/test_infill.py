"""``suffix`` in /v1/completions: the model writes the text between two others, as editors ask for it."""

from typing import Any, ClassVar

import pytest
from openai import OpenAI

from server.text.infill import FORMS
from tests import models
from tests.server.client import post
from tests.server.process import running
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

PREFIX, SUFFIX, MIDDLE = 0x110001, 0x110002, 0x110003
CHAT = "/v1/chat/completions"


class Coder(CharacterTokenizer):
    """Has the marks of Qwen's models."""

    vocabulary: ClassVar = dict(zip(FORMS[0][:3], (PREFIX, SUFFIX, MIDDLE), strict=True))

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_the_prompt_is_both_texts_and_the_marks() -> None:
    """Each prompt stands before the same suffix; an empty prompt means the beginning of a file."""
    with served(ScriptedEngine(), tokenizer=Coder()) as url:
        body = post(url, prompt=["ab", ""], suffix="cd", max_tokens=2, return_token_ids=True).json()

    ids = [choice["prompt_token_ids"] for choice in body["choices"]]
    assert ids == [[PREFIX, 97, 98, SUFFIX, 99, 100, MIDDLE], [PREFIX, SUFFIX, 99, 100, MIDDLE]]
    assert [choice["text"] for choice in body["choices"]] == ["ab", "ab"]
    assert body["usage"]["prompt_tokens"] == 12


@pytest.mark.parametrize("suffix", ["", None])
def test_no_suffix_is_an_ordinary_completion(suffix: str | None) -> None:
    """A model needs no marks for it."""
    with served(ScriptedEngine()) as url:
        body = post(url, prompt="ab", suffix=suffix, max_tokens=2, return_token_ids=True).json()

    assert body["choices"][0]["prompt_token_ids"] == [97, 98]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 2]}, "suffix"),
        ({"prompt": [[1], [2]]}, "suffix"),
        ({"echo": True}, "echo"),
        ({"truncate_prompt_tokens": 4}, "truncate_prompt_tokens"),
        ({"suffix": ["a"]}, "suffix"),
        ({"prompt": "a" * 70_000, "suffix": "b" * 70_000}, "prompt"),
        ({"prompt": "", "suffix": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
    ],
)
def test_fields_that_suffix_excludes_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    """The status is 400 although the model has the marks."""
    with served(ScriptedEngine(), tokenizer=Coder()) as url:
        response = post(url, **{"prompt": "a", "suffix": "b", **body})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_model_without_marks_says_so() -> None:
    """The error names the field and the reason. Chats have no suffix."""
    with served(ScriptedEngine()) as url:
        response = post(url, suffix="b")
        chat = post(url, CHAT, messages=[{"role": "user", "content": "hi"}], suffix="b")

    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "suffix", "unsupported_parameter")
    assert "its tokenizer has no marks" in error["message"]
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "suffix")


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_a_coder_fills_the_middle(size: str) -> None:
    """Qwen2.5-Coder writes what belongs between the texts and ends by itself, streamed or not.

    The smaller model repeats a part of the suffix.
    """
    model = models.coder(size)
    prompt, suffix = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
    with running("--model", str(model)) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        asked: dict[str, Any] = {"prompt": prompt, "suffix": suffix, "max_tokens": 24, "temperature": 0}
        answer = client.completions.create(model="", **asked)
        chunks = list(client.completions.create(model="", stream=True, **asked))
        longer = post(server.url, **asked, ignore_eos=True, skip_special_tokens=False).json()

    text = answer.choices[0].text
    assert text == "a + b" if size == "1.5b" else text.startswith("a + b\n")
    assert answer.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert longer["choices"][0]["text"].startswith(f"{text}<|")
    assert longer["choices"][0]["finish_reason"] == "length"
