"""POST /v1/responses: items, events in OpenAI's order, errors that name the field."""

import json
from typing import Any

import httpx
import pytest

from tests.server.client import events_of, post
from tests.server.routes.test_tools import BROKEN, CALL, OTHER, Told
from tests.server.scripted import ScriptedEngine, served

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "f"}
OTHER_TOOL = {"type": "function", "name": "g"}


def ask(url: str, **body: Any) -> dict[str, Any]:
    answer = post(url, PATH, **{"input": "hi", **body})
    assert answer.status_code == 200, answer.text
    assert "x-griffin-ignored" not in answer.headers
    found: dict[str, Any] = answer.json()
    return found


def ask_events(url: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream. The name of each must be its type, and they must be numbered."""
    named = events_of(post(url, PATH, **{"input": "hi", **body, "stream": True}))
    assert [name for name, _ in named] == [event["type"] for _, event in named]
    assert [event["sequence_number"] for _, event in named] == [*range(len(named))]
    return [event for _, event in named]


def plain(value: Any) -> Any:
    """A value without ids and times, which differ between any two answers."""
    if isinstance(value, dict):
        own = ("id", "call_id", "item_id", "created_at", "completed_at", "metrics")
        return {name: plain(item) for name, item in value.items() if name not in own}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_an_answer_of_text() -> None:
    """The response has all of OpenAI's fields, usage, the request's own fields, griffin and metrics."""
    with served(ScriptedEngine("Hello.", once=True)) as url:
        answer = ask(url, metadata={"a": "b"}, temperature=0, instructions="Be short.", sparsity=0.5, user="me")

    [item] = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}]
    assert (answer["id"][:5], answer["object"], answer["status"]) == ("resp_", "response", "completed")
    assert (answer["error"], answer["incomplete_details"], answer["store"]) == (None, None, False)
    assert (answer["metadata"], answer["temperature"], answer["user"]) == ({"a": "b"}, 0, "me")
    assert (answer["instructions"], answer["tools"], answer["tool_choice"]) == ("Be short.", [], "auto")
    prompt = len("system:Be short.;user:hi;assistant:")
    assert answer["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + 7,
    }
    assert answer["griffin"]["sparsity"] == 0.5
    assert answer["metrics"]["time_to_first_token_ms"] > 0


def test_the_events_of_a_text() -> None:
    """Events come in OpenAI's order; the last one has the whole response."""
    with served(ScriptedEngine("Hi", once=True)) as url:
        whole, events = ask(url), ask_events(url)

    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    added, last = events[2], events[-1]["response"]
    assert (added["item"]["content"], added["item"]["status"], added["output_index"]) == ([], "in_progress", 0)
    assert {event["item_id"] for event in events[3:8]} == {added["item"]["id"]} == {last["output"][0]["id"]}
    assert [event["delta"] for event in events[4:6]] == ["H", "i"]
    assert events[6]["text"] == events[7]["part"]["text"] == "Hi"
    assert events[0]["response"]["id"] == last["id"]
    assert (events[0]["response"]["status"], events[0]["response"]["usage"]) == ("in_progress", None)
    assert plain(last) == plain(whole)


def test_the_events_of_calls() -> None:
    """The text comes first, then an item for each call; the whole answer is the same."""
    text = f"Let me see.\n{CALL}\n{OTHER}"
    with served(ScriptedEngine(text, once=True)) as url:
        whole = ask(url, tools=[TOOL, OTHER_TOOL])
        events = ask_events(url, tools=[TOOL, OTHER_TOOL])

    calls = [event for event in events if event.get("output_index") == 1]
    names = [event["type"].removeprefix("response.") for event in calls]
    assert (names[0], *names[-2:]) == ("output_item.added", "function_call_arguments.done", "output_item.done")
    assert set(names[1:-2]) == {"function_call_arguments.delta"}
    assert "".join(event["delta"] for event in calls[1:-2]) == calls[-2]["arguments"] == '{"a": 1}'
    assert calls[0]["item"]["arguments"] == ""
    assert [item["type"] for item in whole["output"]] == ["message", "function_call", "function_call"]
    assert [item.get("name") for item in whole["output"]] == [None, "f", "g"]
    assert len({item["call_id"] for item in whole["output"][1:]}) == 2
    assert plain(events[-1]["response"]) == plain(whole)
    assert events[-1]["type"] == "response.completed"


def test_a_limit_leaves_an_answer_incomplete() -> None:
    """The response and the item that the limit cut are incomplete."""
    with served(ScriptedEngine(CALL)) as url:
        whole = ask(url, tools=[TOOL], max_output_tokens=CALL.index(" 1}"))
        events = ask_events(url, max_output_tokens=3)

    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [(item["arguments"], item["status"]) for item in whole["output"]] == [('{"a":', "incomplete")]
    assert events[-1]["type"] == "response.incomplete"
    assert [event["item"]["status"] for event in events if "item" in event] == ["in_progress", "incomplete"]


def test_an_empty_answer_is_a_message_without_text() -> None:
    """SDKs expect an output in every response."""
    with served(ScriptedEngine("x", once=True)) as url:
        whole, events = ask(url, stop="x"), ask_events(url, stop="x")

    assert [part["text"] for part in whole["output"][0]["content"]] == [""]
    assert plain(events[-1]["response"]) == plain(whole)
    assert "response.output_text.delta" not in {event["type"] for event in events}


def test_a_malformed_call() -> None:
    """A whole answer has it as text. In a stream, where it has begun, the call ends as incomplete and text follows."""
    with served(ScriptedEngine(BROKEN, once=True)) as url:
        whole, events = ask(url, tools=[TOOL]), ask_events(url, tools=[TOOL])

    assert [item["content"][0]["text"] for item in whole["output"]] == [BROKEN]
    call, message = events[-1]["response"]["output"]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"a": tru')
    assert message["content"][0]["text"] == "}}\n</tool_call>"


def test_logprobs_of_the_text() -> None:
    """Tokens of calls have none."""
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "tools": [TOOL]}
    with served(ScriptedEngine(f"Hm.\n{CALL}", once=True)) as url:
        whole, events = ask(url, **asked), ask_events(url, **asked)

    logprobs = whole["output"][0]["content"][0]["logprobs"]
    assert "".join(each["token"] for each in logprobs) == "Hm."
    assert [len(each["top_logprobs"]) for each in logprobs] == [2, 2, 2]
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [each for delta in deltas for each in delta] == logprobs
    assert plain(events[-1]["response"]) == plain(whole)


def test_items_become_messages() -> None:
    """Messages are in the order of the items; calls join the assistant's message before them."""
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "h"},
                                                        {"type": "input_text", "text": "i"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "43"}]},
        {"type": "function_call_output", "call_id": "1", "output": "42"},
    ]  # fmt: skip
    with served(engine := ScriptedEngine(), tokenizer=Told()) as url:
        answer = ask(url, input=items, instructions="Be short.", tools=[TOOL], max_output_tokens=1)
        told = json.dumps([
            [
                {"role": "system", "content": "Be short.\n\nBe kind."},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                    {"id": "2", "type": "function", "function": {"name": "f", "arguments": {}}},
                ]},
                {"role": "tool", "content": "43", "tool_call_id": "2"},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
            ],
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        ])  # fmt: skip

    assert engine.prompts == ["".join(told)]
    assert answer["usage"]["input_tokens"] == len(told)


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


USER, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}
EMPTY = {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([USER, thought("t"), SAID], [USER, {**SAID, "reasoning_content": "t"}]),
        ([USER, thought("t")], [USER, {**EMPTY, "reasoning_content": "t"}]),
        ([USER, thought("t"), USER, SAID], [USER, {**EMPTY, "reasoning_content": "t"}, USER, SAID]),
        ([USER, thought("t"), thought("u"), USER], [USER, {**EMPTY, "reasoning_content": "tu"}, USER]),
        ([USER, thought(""), USER], [USER, USER]),
        ([USER, SAID, thought("")], [USER, SAID]),
    ],
)
def test_a_thought_without_an_answer(items: list[Any], messages: list[Any]) -> None:
    """An answer that ended inside its thought is a turn of the assistant; its thought is not the next answer's."""
    with served(engine := ScriptedEngine(), tokenizer=Told()) as url:
        ask(url, input=items, max_output_tokens=1)

    assert json.loads(engine.prompts[0])[0] == messages


@pytest.mark.parametrize("tools", [[], [TOOL]])
def test_an_input_of_an_empty_thought(tools: list[Any]) -> None:
    """It has no message, and still is a prompt."""
    with served(ScriptedEngine()) as url:
        ask(url, input=[{"type": "reasoning", "summary": []}], tools=tools, max_output_tokens=1)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_parameter"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"include": ["file_search_call.results"]}, "include[0]", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "invalid_value"),
        ({"tools": [{**TOOL, "parameters": {"properties": {"a": {"type": "x"}}}}], "tool_choice": "required"},
         "tools[0].parameters", "invalid_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema",
         "missing_required_parameter"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "x"}}}}, "text.format",
         "invalid_value"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}, "structured_outputs",
         "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_tokens": 3}, "max_tokens", "unsupported_parameter"),
        ({"input": None}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": "x" * 2000}, "input", "context_length_exceeded"),
        ({"input": [{"id": "msg_1", "type": "item_reference"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]",
         "unsupported_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]",
         "unsupported_parameter"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]}, "input[0].call_id",
         "invalid_value"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input[0].call_id",
         "invalid_value"),
        ({"griffin": {"prompt_tokens": 3}}, "griffin.prompt_tokens", "invalid_value"),
    ],
)  # fmt: skip
def test_refusals(body: dict[str, Any], param: str, code: str) -> None:
    """Each error names its field."""
    with served(ScriptedEngine()) as url:
        answer = post(url, PATH, **{"input": "hi", **body})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["message"].startswith((param, "too long"))


def test_keys_without_a_meaning_are_named() -> None:
    """Unknown keys of the body, of items and of tools are listed."""
    items = [{"role": "user", "content": "hi", "mood": 1}, {"type": "reasoning", "encrypted_content": "abc"}]
    with served(ScriptedEngine()) as url:
        included = ["message.output_text.logprobs", "reasoning.encrypted_content"]
        more = {"include": included, "sparisty": 1, "max_output_tokens": 1}
        answer = post(url, PATH, input=items, tools=[{**TOOL, "hue": 1}], **more)

    named = "sparisty,input[0].mood,input[1].encrypted_content,include[1],tools[0].hue"
    assert answer.headers["x-griffin-ignored"] == named


def test_a_fault_in_a_stream() -> None:
    """An error event comes, then the failed response with the text so far."""
    with served(ScriptedEngine(fail_after=2)) as url:
        *events, error, failed = ask_events(url)
        whole = post(url, PATH, input="hi")

    assert events[-1]["delta"] == "b"
    assert (error["type"], error["code"]) == ("error", "internal_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["response"]["output"][0]["content"][0]["text"] == "ab"
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "internal_error")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_responses_are_not_stored(method: str) -> None:
    """Responses are not stored, and the error says so."""
    with served(ScriptedEngine()) as url:
        answer = httpx.request(method, f"{url}{PATH}/resp_1")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    assert "keeps no responses" in answer.json()["error"]["message"]
