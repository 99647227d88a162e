"""Thoughts over HTTP: beside the content, whole and in a stream, and counted."""

from typing import Any

import pytest

from tests.server.client import post, stream
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


class Thinking(CharacterTokenizer):
    """Its template speaks of thoughts, and opens one if it is told to."""

    chat_template = "<think></think>"

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        prompt = super().apply_chat_template(conversation, tokenize=tokenize, **options)
        return f"{prompt}<think>\n" if options.get("enable_thinking") else prompt


@pytest.mark.parametrize(
    ("text", "body", "thought", "content", "counted"),
    [
        ("<think>Hm.</think>\nYes.", {}, "Hm.", "Yes.", len("Hm.</think>") + 1),
        ("Hm.</think>\nYes.", {"chat_template_kwargs": {"enable_thinking": True}}, "Hm.", "Yes.", len("Hm.</think>")),
        ("Yes.", {}, None, "Yes.", 0),
        ("<think>Hm. Well, so", {"max_tokens": 10}, "Hm.", "", 4),
        (f"<think>{CALL}</think>{CALL}", {"tools": TOOLS}, CALL, None, len(f"{CALL}</think>") + 1),
    ],
)
def test_a_thought_stands_beside_the_content(
    text: str, body: dict[str, Any], thought: str | None, content: str | None, counted: int
) -> None:
    """The same in a stream; usage says how many tokens it took."""
    with served(ScriptedEngine(text, once=True), tokenizer=Thinking()) as url:
        whole = post(url, CHAT, messages=HI, **body).json()
        *events, last = stream(url, CHAT, messages=HI, stream_options={"include_usage": True}, **body)
    message, deltas = whole["choices"][0]["message"], [event["choices"][0]["delta"] for event in events]

    assert (message.get("reasoning_content"), message["content"]) == (thought, content)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (thought or "")
    assert "".join(delta.get("content", "") for delta in deltas) == (content or "")
    for usage in (whole["usage"], last["usage"]):
        assert usage.get("completion_tokens_details") == ({"reasoning_tokens": counted} if counted else None)
