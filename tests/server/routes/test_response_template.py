"""Response templates over HTTP: every API splits answers by them, streamed or not, and no answer is an error."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from griffin import Checkpoint
from tests.server import tiny_checkpoint
from tests.server.client import events_of, post, stream
from tests.server.process import ServerProcess, running
from tests.server.routes.test_forced_tools import PARAMETERS
from tests.server.routes.test_tools import put_together
from tests.server.scripted import ScriptedEngine, served
from tests.server.text.test_response_template import CHANNELS, MARKED, MARKUP, TAGGED, Shipping

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
F = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
BROKEN = '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"
# A template, text, further fields, and the expected thought, content, calls and reason.
Case = tuple[Mapping[str, Any], str, dict[str, Any], str, str, list[tuple[str, str]], str]
CASES: list[Case] = [
    (TAGGED, f"{THOUGHT}Yes.", {"tools": None}, "Hm.", "Yes.", [], "stop"),
    (TAGGED, f"{THOUGHT}So:\n{F}\n{F}", {}, "Hm.", "So:", [("f", '{"a": 1}')] * 2, "tool_calls"),
    (TAGGED, f"{F}{F}", {"parallel_tool_calls": False}, "", "", [("f", '{"a": 1}')], "tool_calls"),
    (TAGGED, F.replace('"f"', '"g"'), {}, "", F.replace('"f"', '"g"'), [], "stop"),
    (TAGGED, F, {"tool_choice": "none"}, "", F, [], "stop"),
    (TAGGED, f"So {BROKEN}.", {}, "", f"So {BROKEN}.", [], "stop"),
    (TAGGED, f"So {F}", {"max_tokens": 20}, "", f"So {F}"[:20], [], "length"),
    (TAGGED, f"So {F} end", {"stop": " end"}, "", "So", [("f", '{"a": 1}')], "tool_calls"),
    (MARKUP, f"{THOUGHT}{MARKED}", {}, "Hm.", "", [("f", '{"a": 1, "s": "7"}')], "tool_calls"),
    (CHANNELS, "Nothing of that.", {}, "", "Nothing of that.", [], "stop"),
    # A template that knows no calls leaves answers with tools to the server's own forms.
    ({"start_anchor": "assistant:", "fields": {"content": {}}}, F, {}, "", "", [("f", '{"a": 1}')], "tool_calls"),
    ({"start_anchor": "assistant:", "fields": {"content": {}}}, " Hi ", {"tools": None}, "", "Hi", [], "stop"),
]  # fmt: skip


class Describing(Shipping):
    """Its chat template describes the tools."""

    chat_template = "<tool_call>"

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        tools = json.dumps(options["tools"]) if options.get("tools") else ""
        return tools + super().apply_chat_template(conversation, tokenize=tokenize, **options)


@pytest.mark.parametrize(("spec", "text", "body", "thought", "content", "calls", "reason"), CASES)
def test_answers(
    spec: Mapping[str, Any],
    text: str,
    body: dict[str, Any],
    thought: str,
    content: str,
    calls: list[tuple[str, str]],
    reason: str,
) -> None:
    """A stream gives the same."""
    asked = {"messages": HI, "tools": TOOLS, **body}
    with served(ScriptedEngine(text, once=True), tokenizer=Describing(spec)) as url:
        [whole] = post(url, CHAT, **asked).raise_for_status().json()["choices"]
        events = stream(url, CHAT, **asked)

    message = whole["message"]
    made = [call["function"] for call in message.get("tool_calls", ())]
    told, streamed, why = put_together(events)
    assert (message.get("reasoning_content", ""), message["content"] or "") == (thought, content)
    assert [(call["name"], call["arguments"]) for call in made] == calls
    assert whole["finish_reason"] == reason
    assert "".join(event["choices"][0]["delta"].get("reasoning_content", "") for event in events) == thought
    assert (told, [(call["name"], call["arguments"]) for call in streamed], why) == (content, calls, reason)


def test_newer_apis() -> None:
    """Thought, text and call are items and blocks, whole and in events; a thought's tokens are counted."""
    flat = {"type": "function", "name": "f", "parameters": SCHEMA}
    theirs = {"name": "f", "input_schema": SCHEMA}
    with served(ScriptedEngine(f"{THOUGHT}So:{MARKED}", once=True), tokenizer=Describing(MARKUP)) as url:
        response = {"input": "hi", "tools": [flat]}
        message = {"messages": HI, "max_tokens": 500, "tools": [theirs]}
        output = post(url, "/v1/responses", **response).raise_for_status().json()
        events = [event for _, event in events_of(post(url, "/v1/responses", **response, stream=True))]
        blocks = post(url, "/v1/messages", **message).raise_for_status().json()["content"]
        pieces = [event for _, event in events_of(post(url, "/v1/messages", **message, stream=True))]

    reasoning, said, call = output["output"]
    assert (reasoning["content"][0]["text"], said["content"][0]["text"]) == ("Hm.", "So:")
    assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"a": 1, "s": "7"})
    assert output["usage"]["output_tokens_details"]["reasoning_tokens"] > 3
    completed = events[-1]["response"]["output"]
    assert [item["type"] for item in completed] == ["reasoning", "message", "function_call"]
    assert completed[2]["arguments"] == call["arguments"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
    assert (blocks[0]["thinking"], blocks[1]["text"], blocks[2]["input"]) == ("Hm.", "So:", {"a": 1, "s": "7"})
    given = [event["delta"] for event in pieces if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in given) == "Hm."
    assert "".join(delta.get("text", "") for delta in given) == "So:"
    assert json.loads("".join(delta.get("partial_json", "") for delta in given)) == {"a": 1, "s": "7"}


MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{ message.role }}:{{ message.content }}"
    "{% if not loop.last %};{% endif %}{% endfor %}{% if add_generation_prompt %};assistant:{% endif %}"
    "{# <tool_call> <think> </think> #}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
ROME = '<think>Hm.</think>So: <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}'


def checkpoint(folder: Path, smollm2: Checkpoint, template: Any) -> Path:
    """A checkpoint whose tokenizer_config.json has the template; the marks are tokens."""
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.add_tokens(MARKS, special_tokens=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = template
    tiny_checkpoint.write(folder, tokenizer, context=2048)
    assert "response_template" in json.loads((folder / "tokenizer_config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: Checkpoint) -> Iterator[ServerProcess]:
    """Random weights, which need a bias to write a mark; three models, the last with a template that is broken."""
    folder = tmp_path_factory.mktemp("templates")
    templates = {"tagged": TAGGED, "markup": MARKUP, "broken": {**TAGGED, "fields": {}}}
    models = [checkpoint(folder / name, smollm2, template) for name, template in templates.items()]
    named = [word for model in models for word in ("--model", str(model))]
    with running(*named, "--dtype", "float32", OMP_NUM_THREADS="1") as process:
        yield process


def bias(smollm2: Checkpoint, mark: str) -> dict[str, int]:
    """Makes the model write a mark wherever it may."""
    return {str(len(smollm2.tokenizer) + MARKS.index(mark)): 100}


def begun(text: str) -> Sequence[dict[str, str]]:
    return [*HI, {"role": "assistant", "content": text}]


def test_a_model_closes_what_the_prompt_began(server: ServerProcess, smollm2: Checkpoint) -> None:
    """The call is the template's: another tool's is content."""
    close = {"logit_bias": bias(smollm2, "</tool_call>"), "max_tokens": 1, "continue_final_message": True}
    asked = {"model": "tagged", "messages": begun(ROME), "tools": [WEATHER], **close}
    [whole] = post(server.url, CHAT, **asked).raise_for_status().json()["choices"]
    _, [streamed], _ = put_together(stream(server.url, CHAT, **asked))
    other = post(server.url, CHAT, **{**asked, "messages": begun(ROME.replace("weather", "wind"))})

    [call] = whole["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == json.loads(streamed["arguments"]) == {"city": "Rome"}
    assert other.raise_for_status().json()["choices"][0]["message"]["content"] == "</tool_call>"


@pytest.mark.parametrize("model", ["tagged", "markup", "broken"])
def test_thoughts_and_their_budget(server: ServerProcess, smollm2: Checkpoint, model: str) -> None:
    """A random text goes on as a thought until its budget ends; streams have the same text."""
    asked = {"model": model, "messages": HI, "seed": 3, "max_tokens": 24, "max_reasoning_tokens": 5}
    asked["logit_bias"] = {str(smollm2.tokenizer.eos_token_id): -100}
    asked |= {"messages": begun("<think>"), "continue_final_message": True}
    [whole] = post(server.url, CHAT, **asked).raise_for_status().json()["choices"]
    events = stream(server.url, CHAT, **asked, stream_options={"include_usage": True})
    content, _, _ = put_together(events)

    thought = "".join(choice["delta"].get("reasoning_content", "") for event in events for choice in event["choices"])
    assert (thought, content) == (whole["message"]["reasoning_content"], whole["message"]["content"])
    assert thought.strip()
    assert content.strip()
    assert "</think>" not in thought + content


@pytest.mark.parametrize("model", ["tagged", "markup", "broken"])
def test_calls_that_must_come(server: ServerProcess, model: str) -> None:
    """The grammar writes them in the server's form, whatever the template reads."""
    asked = {"model": model, "messages": HI, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 300}
    [whole] = post(server.url, CHAT, **asked, parallel_tool_calls=False).raise_for_status().json()["choices"]

    [call] = whole["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)


def test_strict_calls_under_auto(server: ServerProcess, smollm2: Checkpoint) -> None:
    """They are held to the schema only if the template can read what the grammar writes."""
    asked = {"messages": HI, "tools": [WEATHER], "max_tokens": 120, "logit_bias": bias(smollm2, "<tool_call>")}
    held, free = (
        post(server.url, CHAT, model=model, **asked).raise_for_status().json()["choices"][0]["message"]
        for model in ("tagged", "markup")
    )

    assert held["tool_calls"]
    for call in held["tool_calls"]:
        jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
    assert free["content"] == "<tool_call>" * 120


def test_a_broken_template_is_a_warning(server: ServerProcess) -> None:
    post(server.url, CHAT, model="broken", messages=HI, max_tokens=1).raise_for_status()

    why = "response_template.fields must be a non-empty dict; answers are read without it"
    assert f"the tokenizer's response_template is not used: {why}" in server.log
