"""Tools over HTTP: how calls are answered, streamed or not, with any other fields."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from tests.server.client import post, stream
from tests.server.scripted import END, CharacterTokenizer, ScriptedEngine, served

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
OTHER = CALL.replace('"f"', '"g"')
BROKEN = '<tool_call>\n{"name": "f", "arguments": {"a": tru}}\n</tool_call>'
# Text, further fields, and the expected content, calls and reason.
CASES: list[tuple[str, dict[str, Any], str | None, list[tuple[str, str]], str]] = [
    (CALL, {}, None, [("f", '{"a": 1}')], "tool_calls"),
    (f"Let me see.\n{CALL}\n{OTHER}", {}, "Let me see.", [("f", '{"a": 1}'), ("g", '{"a": 1}')], "tool_calls"),
    (f"{CALL}\n{OTHER}", {"parallel_tool_calls": False}, None, [("f", '{"a": 1}')], "tool_calls"),
    (CALL, {"tool_choice": "none"}, CALL, [], "stop"),
    (CALL, {"tools": None}, CALL, [], "stop"),
    ("Hello.\n", {}, "Hello.\n", [], "stop"),
    (f"{CALL}", {"max_tokens": CALL.index(" 1}")}, None, [("f", '{"a":')], "length"),
    (f"Hm {CALL}", {"max_tokens": 20}, "Hm", [], "length"),
    (f"Hm {CALL} so", {"stop": " so"}, "Hm", [("f", '{"a": 1}')], "tool_calls"),
    (f"Hm {CALL}", {"stop": "Hm"}, "", [], "stop"),
    (CALL.replace('"f"', '"h"'), {}, CALL.replace('"f"', '"h"'), [], "stop"),
    (CALL, {"tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}}}, CALL, [], "stop"),
]  # fmt: skip


def put_together(events: Sequence[Any], index: int = 0) -> tuple[str, list[dict[str, str]], str | None]:
    """The content, calls and reason of one choice, which SDKs build from the deltas."""
    content, calls, reason = "", list[dict[str, str]](), None
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        assert reason is None
        delta, reason = choice["delta"], choice["finish_reason"]
        content += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                assert call["id"].startswith("call_")
                assert (call["type"], call["function"]["arguments"]) == ("function", "")
                calls.append({"id": call["id"], **call["function"]})
            else:
                assert set(call) == {"index", "function"}
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return content, calls, reason


@pytest.mark.parametrize(("text", "body", "content", "calls", "reason"), CASES)
def test_calls_in_an_answer(
    text: str, body: dict[str, Any], content: str | None, calls: list[tuple[str, str]], reason: str
) -> None:
    """A stream gives the same; each call has an id of its own."""
    asked = {"messages": HI, "tools": TOOLS, "n": 2, **body}
    with served(ScriptedEngine(text, once=True)) as url:
        whole = post(url, CHAT, **asked).json()["choices"]
        events = stream(url, CHAT, **asked)

    ids = []
    for index, choice in enumerate(whole):
        message = choice["message"]
        assert (message["content"], choice["finish_reason"]) == (content, reason)
        made = message.get("tool_calls", [])
        assert [(call["function"]["name"], call["function"]["arguments"]) for call in made] == calls
        assert ("tool_calls" in message) == bool(calls)
        ids += [call["id"] for call in made]
        told, parts, why = put_together(events, index)
        assert (told, why) == (content or "", reason)
        assert [(call["name"], call["arguments"]) for call in parts] == calls
        ids += [call["id"] for call in parts]
    assert len(set(ids)) == len(ids) == 4 * len(calls)


def test_a_malformed_call_is_content() -> None:
    """A stream has already sent its beginning as a call, but the reason is not "tool_calls"."""
    with served(ScriptedEngine(BROKEN, once=True)) as url:
        [whole] = post(url, CHAT, messages=HI, tools=TOOLS).json()["choices"]
        content, [call], reason = put_together(stream(url, CHAT, messages=HI, tools=TOOLS))

    assert (whole["message"]["content"], whole["finish_reason"]) == (BROKEN, "stop")
    assert "tool_calls" not in whole["message"]
    assert (content, call["arguments"], reason) == ("}}\n</tool_call>", '{"a": tru', "stop")


def test_every_token_is_listed_beside_calls() -> None:
    """Each token has one log-probability and one id, although no delta has the marks of a call."""
    asked = {"messages": HI, "tools": TOOLS, "logprobs": True, "return_token_ids": True}
    with served(ScriptedEngine(CALL)) as url:
        usage = {"stream_options": {"include_usage": True}}
        *events, last = stream(url, CHAT, **asked, **usage, max_tokens=len(CALL), sparsity=0.5)
    choices = [event["choices"][0] for event in events]

    scored = [token["token"] for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    assert "".join(scored) == CALL
    assert [id for choice in choices for id in choice.get("token_ids", ())] == list(map(ord, CALL))
    assert last["usage"]["completion_tokens"] == len(CALL)


@pytest.mark.parametrize("griffin", [{"mode": "guarded"}, {"mode": "lossless"}, {"draft": "ngram"}, {"compare": True}])
def test_calls_in_every_mode(griffin: dict[str, Any]) -> None:
    """The mode of generation does not change how calls are read."""
    with served(ScriptedEngine(CALL, once=True, drafts=True)) as url:
        [choice] = post(url, CHAT, messages=HI, tools=TOOLS, sparsity=0.5, griffin=griffin).json()["choices"]

    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


# Each API's path and input, and its ways to say: some tools by name.
NAMED = {"type": "function", "function": {"name": "f"}}
FLAT = {"type": "function", "name": "f"}
APIS: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    (CHAT, {"messages": HI}, ["none", "auto"], [
        "required", NAMED, *({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}
                             for mode in ("auto", "required"))]),
    ("/v1/responses", {"input": "hi"}, ["none", "auto"], [
        "required", FLAT, *({"type": "allowed_tools", "mode": mode, "tools": [FLAT]}
                            for mode in ("auto", "required"))]),
    ("/v1/messages", {"messages": HI, "max_tokens": 900},
     [{"type": "none"}, {"type": "auto"}, {"type": "auto", "disable_parallel_tool_use": True}],
     [{"type": "any"}, {"type": "tool", "name": "f"}]),
    ("/v1/messages/count_tokens", {"messages": HI}, [{"type": "none"}, {"type": "auto"}],
     [{"type": "any"}, {"type": "tool", "name": "f"}]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked", "nothing", "impossible"), APIS)
def test_fields_about_tools_without_tools(
    path: str, asked: dict[str, Any], nothing: list[Any], impossible: list[Any]
) -> None:
    """Many clients send such fields with every request: only what cannot happen is refused, by the field's name."""
    without: list[dict[str, Any]] = [{}, {"tools": None}, {"tools": []}]
    parallel = [{"parallel_tool_calls": value} for value in (True, False, None) if "/v1/messages" not in path]
    with served(ScriptedEngine(CALL, once=True)) as url:
        for tools in without:
            for more in [{}, {"tool_choice": None}, *({"tool_choice": choice} for choice in nothing), *parallel]:
                answer = post(url, path, **asked, **tools, **more)
                assert answer.status_code == 200, (more, answer.text)
                assert "tool_use" not in answer.text
                assert "x-griffin-ignored" not in answer.headers
            for choice in impossible:
                answer = post(url, path, **asked, **tools, tool_choice=choice)
                error = answer.json()["error"]
                assert (answer.status_code, error.get("param", "tool_choice")) == (400, "tool_choice")
                assert error["message"].startswith("tool_choice: only with tools")


MARK = 1


class Told(CharacterTokenizer):
    """Has a template that takes tools, and a special token that marks calls."""

    chat_template = "[TOOL_CALLS]"
    all_special_ids: ClassVar[list[int]] = [END, MARK]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["[TOOL_CALLS]" if id == MARK else chr(id) if id < END else "<end>" for id in ids]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        left_out = {MARK} if skip_special_tokens else ()
        return super().decode([id for id in ids if id not in left_out], skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        return json.dumps([conversation, options.get("tools")])


def test_a_mark_that_is_a_special_token_is_seen() -> None:
    """It is seen although special tokens are left out of the text."""
    text = '[{"name": "f", "arguments": {}}]'
    with served(ScriptedEngine(f"Hm.{chr(MARK)}{text}", once=True), tokenizer=Told()) as url:
        [choice] = post(url, CHAT, messages=HI, tools=TOOLS).json()["choices"]
        [plain] = post(url, CHAT, messages=HI).json()["choices"]

    assert choice["message"]["content"] == "Hm."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert plain["message"]["content"] == f"Hm.{text}"


def test_the_template_gets_the_tools() -> None:
    """It gets OpenAI's objects, except with tool_choice none. /tokenize counts them, too."""
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
                                              "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
    ]  # fmt: skip
    with served(ScriptedEngine(), tokenizer=Told()) as url:
        told, silent = (
            "".join(map(chr, post(url, CHAT, messages=history, tools=TOOLS, tool_choice=choice, max_tokens=1,
                                  return_token_ids=True).json()["prompt_token_ids"]))
            for choice in ("auto", "none")
        )  # fmt: skip
        counted = post(url, "/tokenize", messages=history, tools=TOOLS).json()["count"]

    conversation, tools = json.loads(told)
    assert [tool["function"]["name"] for tool in tools] == ["f", "g"]
    assert conversation[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert conversation[2] == {"role": "tool", "content": "42", "tool_call_id": "1"}
    assert json.loads(silent) == [conversation, None]
    assert counted == len(told)
