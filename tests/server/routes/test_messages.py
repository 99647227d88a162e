"""POST /v1/messages and count_tokens: blocks, events in Anthropic's order, errors in Anthropic's form."""

import json
import threading
from typing import Any

import httpx
import pytest

from tests.server.client import events_of, metric, post
from tests.server.routes.test_tools import BROKEN, CALL, OTHER, Told
from tests.server.scripted import ScriptedEngine, served, wait_until

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
OTHER_TOOL = {"name": "g", "input_schema": {"type": "object"}}
TOOLS = [TOOL, OTHER_TOOL]


def ask(url: str, **body: Any) -> dict[str, Any]:
    answer = post(url, PATH, {"anthropic-version": "2023-06-01"}, **{"messages": HI, "max_tokens": 900, **body})
    assert answer.status_code == 200, answer.text
    assert "x-griffin-ignored" not in answer.headers
    found: dict[str, Any] = answer.json()
    return found


def ask_events(url: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream. The name of each must be its type."""
    named = events_of(post(url, PATH, **{"messages": HI, "max_tokens": 900, **body, "stream": True}))
    assert [name for name, _ in named] == [event["type"] for _, event in named]
    return [event for _, event in named]


def put_together(events: list[dict[str, Any]]) -> list[Any]:
    """The blocks that SDKs build from a stream's deltas: a text, or name and arguments of a call."""
    blocks: list[Any] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append([event["content_block"].get("name"), ""])
        elif event["type"] == "content_block_delta":
            blocks[event["index"]][1] += event["delta"].get("text") or event["delta"].get("partial_json")
    return [text if name is None else (name, text) for name, text in blocks]


def test_an_answer_of_text() -> None:
    """The message has usage, the reason of its end, griffin and metrics."""
    with served(ScriptedEngine("Hello.", once=True)) as url:
        answer = ask(url, system=[{"type": "text", "text": "Be short."}], sparsity=0.5, metadata={"user_id": "me"})

    assert answer["content"] == [{"type": "text", "text": "Hello.", "citations": None}]
    assert (answer["id"][:4], answer["type"], answer["role"]) == ("msg_", "message", "assistant")
    assert (answer["model"], answer["stop_reason"], answer["stop_sequence"]) == ("scripted", "end_turn", None)
    assert answer["usage"] == {
        "input_tokens": len("system:Be short.;user:hi;assistant:"),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 7,
    }
    assert answer["griffin"]["sparsity"] == 0.5
    assert answer["metrics"]["time_to_first_token_ms"] > 0


def test_the_events_of_text_and_calls() -> None:
    """Events come in Anthropic's order and add up to the whole answer."""
    with served(ScriptedEngine(f"Hm.\n{CALL}\n{OTHER}", once=True)) as url:
        whole, events = ask(url, tools=TOOLS), ask_events(url, tools=TOOLS)

    names = [event["type"] for event in events]
    assert names[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 3
    assert (events[0]["message"]["content"], events[0]["message"]["stop_reason"]) == ([], None)
    assert put_together(events) == ["Hm.", ("f", '{"a": 1}'), ("g", '{"a": 1}')]
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use", "tool_use"]
    assert [block["input"] for block in whole["content"][1:]] == [{"a": 1}, {"a": 1}]
    assert len({block["id"] for block in whole["content"][1:]}) == 2
    assert whole["stop_reason"] == events[-2]["delta"]["stop_reason"] == "tool_use"
    assert whole["usage"] == events[-2]["usage"]
    assert {"griffin", "metrics"} <= set(events[-2])


@pytest.mark.parametrize(
    ("text", "body", "said", "reason", "stop"),
    [
        ("Hi", {}, ["Hi"], "end_turn", None),
        ("Hi", {"max_tokens": 1}, ["H"], "max_tokens", None),
        ("Hi there", {"stop_sequences": ["zz", " th"]}, ["Hi"], "stop_sequence", " th"),
        ("Hi there", {"stop": "e"}, ["Hi th"], "stop_sequence", "e"),
        ("Hi", {"stop_sequences": ["H"]}, [], "stop_sequence", "H"),
        (CALL, {"tools": TOOLS, "tool_choice": {"type": "none"}}, [CALL], "end_turn", None),
        (f"{CALL}\n{OTHER}", {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
         [("f", '{"a": 1}')], "tool_use", None),
        (CALL, {"tools": TOOLS, "max_tokens": CALL.index(" 1}")}, [("f", '{"a":')], "max_tokens", None),
    ],
)  # fmt: skip
def test_why_an_answer_ends(text: str, body: dict[str, Any], said: list[Any], reason: str, stop: str | None) -> None:
    """The reason is the same streamed or not."""
    with served(ScriptedEngine(text, once=True)) as url:
        whole, events = ask(url, **body), ask_events(url, **body)

    assert put_together(events) == said
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, stop)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": stop}
    assert len(whole["content"]) == len(said)


def test_arguments_that_are_cut_off_are_an_empty_input() -> None:
    """The input is empty, and the reason says why. Text that is not a call stays text."""
    with served(ScriptedEngine(CALL)) as url:
        cut = ask(url, tools=TOOLS, max_tokens=CALL.index(" 1}"))
    with served(ScriptedEngine(BROKEN, once=True)) as url:
        broken = ask(url, tools=TOOLS)

    assert [(block["name"], block["input"]) for block in cut["content"]] == [("f", {})]
    assert ([block["text"] for block in broken["content"]], broken["stop_reason"]) == ([BROKEN], "end_turn")


def test_a_number_that_no_float_holds() -> None:
    """JSON has no infinity, so the input has the largest float."""
    with served(ScriptedEngine(CALL.replace("1}", "1e999}"), once=True)) as url:
        answer = ask(url, tools=TOOLS)

    assert answer["content"][0]["input"]["a"] > 1e308


def test_blocks_become_messages() -> None:
    """Tool results come before the user's text of the same turn; a failed one begins with "Error"."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "h", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Wait."},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "2", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "43"}]},
            {"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True},
            {"type": "text", "text": "Well?"}]},
    ]  # fmt: skip
    told = json.dumps([
        [
            {"role": "system", "content": "A\n\nB"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "2", "type": "function", "function": {"name": "f", "arguments": {}}},
            ]},
            {"role": "tool", "content": "43", "tool_call_id": "2"},
            {"role": "tool", "content": "Error: no", "tool_call_id": "1"},
            {"role": "user", "content": "Well?"},
        ],
        [{"type": "function", "function": {"name": "f", "parameters": TOOL["input_schema"]}}],
    ])  # fmt: skip
    system = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    with served(engine := ScriptedEngine(), tokenizer=Told()) as url:
        answer = ask(url, messages=messages, system=system, tools=[TOOL], max_tokens=1)
        counted = post(url, f"{PATH}/count_tokens", messages=messages, system=system, tools=[TOOL]).json()

    assert engine.prompts == [told]
    assert counted == {"input_tokens": answer["usage"]["input_tokens"]} == {"input_tokens": len(told)}


def test_instructions_in_the_conversation() -> None:
    """They keep their place. At the beginning they go on with the field ``system``."""
    blocks = [{"type": "text", "text": "B"}, {"type": "text", "text": "C"}]
    messages = [{"role": "system", "content": blocks}, *HI, {"role": "system", "content": "D"}]
    with served(engine := ScriptedEngine()) as url:
        ask(url, messages=messages, system="A", max_tokens=1)
        ask(url, messages=messages, max_tokens=1)

    assert engine.prompts == [
        "system:A\n\nB\n\nC;user:hi;system:D;assistant:", "system:B\n\nC;user:hi;system:D;assistant:",
    ]  # fmt: skip


def test_a_line_for_accounting_is_left_out_and_named() -> None:
    """It differs from request to request. Beside other text it is text."""
    line = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=d1d48;"}
    asked = {
        "system": [line, {"type": "text", "text": "A"}],
        "messages": [*HI, {"role": "system", "content": line["text"]}],
        "max_tokens": 1,
    }
    with served(engine := ScriptedEngine()) as url:
        answer = post(url, PATH, **asked)
        counted = post(url, f"{PATH}/count_tokens", system=asked["system"], messages=asked["messages"])
        ask(url, system=f"{line['text']}\nA", max_tokens=1)

    assert (
        answer.headers["x-griffin-ignored"] == counted.headers["x-griffin-ignored"] == "system[0],messages[1].content"
    )
    assert engine.prompts[0] == "system:A;user:hi;assistant:"
    assert counted.json() == {"input_tokens": len(engine.prompts[0])}
    assert engine.prompts[1] == f"system:{line['text']}\nA;user:hi;assistant:"


def test_a_begun_answer_is_continued() -> None:
    """If the last message is the assistant's, the model continues it."""
    with served(engine := ScriptedEngine()) as url:
        ask(url, messages=[*HI, {"role": "assistant", "content": "Well"}], max_tokens=1)

    assert engine.prompts == ["user:hi;assistant:Well;"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [*HI, {"role": "system", "content": [{"type": "image"}]}]}, "messages[1].content[0]"),
    ({"messages": [*HI, {"role": "system"}]}, "messages[1].content"),
    ({"messages": [{"role": "system", "content": "x-anthropic-billing-header: a"}]}, "messages"),
    ({"system": 7}, "system"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
     "messages[0].content[0].tool_use_id"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}, *HI]},
     "messages[0].content[0].id"),
    ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
    ({"system": [{"type": "image"}]}, "system[0]"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
    ({"tools": [{"name": "f", "input_schema": {"properties": {"a": {"type": "x"}}}}], "tool_choice": {"type": "any"}},
     "tools[0].input_schema"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"stop": "a", "stop_sequences": ["b"]}, "stop_sequences"),
    ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_refusals(body: dict[str, Any], param: str) -> None:
    """Each error has Anthropic's form and names its field."""
    with served(ScriptedEngine()) as url:
        answer = post(url, PATH, **{"messages": HI, "max_tokens": 9, **body})

    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"type", "error"}
    assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", "invalid_request_error")
    assert answer.json()["error"]["message"].startswith((param, "too long"))


@pytest.mark.parametrize("path", [PATH, f"{PATH}/count_tokens"])
def test_every_failure_has_anthropics_form(path: str) -> None:
    """A wrong key, an unknown model, invalid JSON, a body that is too large, a wrong method."""
    with served(ScriptedEngine(), api_keys="key", max_body_bytes=10_000) as url:
        key = {"x-api-key": "key"}
        body = {"messages": HI, "max_tokens": 3}
        answers = [
            post(url, path, **body),
            post(url, path, key, **body, model="other"),
            httpx.post(f"{url}{path}", content=b"{", headers={**key, "content-type": "application/json"}),
            post(url, path, key, **body, system="x" * 20_000),
            httpx.get(f"{url}{path}", headers=key),
            post(url, path, key, **body),
        ]

    *failures, last = answers
    assert [answer.status_code for answer in answers] == [401, 404, 400, 413, 405, 200], last.text
    assert [answer.json()["error"]["type"] for answer in failures] == [
        "authentication_error", "not_found_error", "invalid_request_error", "request_too_large",
        "invalid_request_error",
    ]  # fmt: skip
    assert all(set(answer.json()) == {"type", "error"} for answer in failures)


def test_a_fault_and_a_full_queue() -> None:
    """A fault ends a stream with an error event; a full queue gives a rate limit error."""
    with served(ScriptedEngine(fail_after=2)) as url:
        *events, error = ask_events(url)
        whole = post(url, PATH, messages=HI, max_tokens=5)
    with served(ScriptedEngine(gate=(gate := threading.Event())), queue_size=0) as url:
        first = threading.Thread(target=ask, args=(url,), kwargs={"max_tokens": 1})
        first.start()
        wait_until(lambda: metric(url, "griffin_num_requests_running") == 1)
        full = post(url, PATH, messages=HI, max_tokens=1)
        gate.set()
        first.join()

    assert events[-1]["delta"] == {"type": "text_delta", "text": "b"}
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "api_error")
    assert (full.json()["error"]["type"], "retry-after" in full.headers) == ("rate_limit_error", True)


def test_keys_without_a_meaning_are_named() -> None:
    """Unknown keys of the body, of messages, blocks and tools are listed; cache_control is known."""
    messages = [{"role": "user", "mood": 1, "content": [{"type": "text", "text": "hi", "hue": 1}]}]
    mark = {"type": "ephemeral"}
    asked = {"messages": messages, "tools": [{**TOOL, "size": 1, "cache_control": mark}], "sparisty": 1}
    with served(ScriptedEngine()) as url:
        answer = post(url, PATH, max_tokens=1, cache_control=mark, **asked)
        counted = post(url, f"{PATH}/count_tokens", cache_control=mark, **asked)

    named = "sparisty,messages[0].mood,messages[0].content[0].hue,tools[0].size"
    assert answer.headers["x-griffin-ignored"] == counted.headers["x-griffin-ignored"] == named
