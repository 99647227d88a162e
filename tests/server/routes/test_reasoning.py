"""Thoughts over HTTP: they stand beside the content, streamed or not, and their tokens are counted."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from griffin import Checkpoint
from tests.server import tiny_checkpoint
from tests.server.client import events_of, post, stream
from tests.server.process import running
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


class Thinking(CharacterTokenizer):
    """Its template has the marks of thoughts, and opens a thought if ``enable_thinking`` is set."""

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
    """A stream gives the same thought and content; usage counts the thought's tokens."""
    with served(ScriptedEngine(text, once=True), tokenizer=Thinking()) as url:
        whole = post(url, CHAT, messages=HI, **body).json()
        *events, last = stream(url, CHAT, messages=HI, stream_options={"include_usage": True}, **body)
    message, deltas = whole["choices"][0]["message"], [event["choices"][0]["delta"] for event in events]

    assert (message.get("reasoning_content"), message["content"]) == (thought, content)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (thought or "")
    assert "".join(delta.get("content", "") for delta in deltas) == (content or "")
    for usage in (whole["usage"], last["usage"]):
        assert usage.get("completion_tokens_details") == ({"reasoning_tokens": counted} if counted else None)


def test_a_call_that_ends_a_thought() -> None:
    """A model that calls without closing its thought has called, in all APIs, streamed or not."""
    text = f"<think>Hm.\n{CALL}"
    flat, client = {"type": "function", "name": "f"}, {"name": "f", "input_schema": {"type": "object"}}
    with served(ScriptedEngine(text, once=True), tokenizer=Thinking()) as url:
        [choice] = post(url, CHAT, messages=HI, tools=TOOLS).json()["choices"]
        *_, last = chunks = stream(url, CHAT, messages=HI, tools=TOOLS)
        output = post(url, "/v1/responses", input="hi", tools=[flat]).json()["output"]
        told = events_of(post(url, "/v1/responses", input="hi", tools=[flat], stream=True))[-1][1]["response"]["output"]
        message = post(url, "/v1/messages", messages=HI, tools=[client], max_tokens=900).json()

    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["finish_reason"] == last["choices"][0]["finish_reason"] == "tool_calls"
    assert "".join(chunk["choices"][0]["delta"].get("reasoning_content", "") for chunk in chunks) == "Hm."
    assert [item["type"] for item in output] == [item["type"] for item in told] == ["reasoning", "function_call"]
    assert [block["type"] for block in message["content"]] == ["thinking", "tool_use"]
    assert message["stop_reason"] == "tool_use"


def test_a_thought_is_an_item_of_a_response() -> None:
    """It comes before the message. The template gets the effort; a model that does not think refuses it."""
    thought = "<think>Hm.</think>\nYes."
    with served(engine := ScriptedEngine(thought, once=True), tokenizer=Thinking()) as url:
        whole = post(url, "/v1/responses", input="hi", reasoning={"effort": "low", "summary": "auto"})
        events = events_of(post(url, "/v1/responses", input="hi", stream=True))
        [reasoning, message] = whole.json()["output"]
        again = [reasoning, message, {"role": "user", "content": "Why?"}]
        assert post(url, "/v1/responses", input=again, max_output_tokens=1).status_code == 200
    with served(ScriptedEngine()) as url:
        plain = post(url, "/v1/responses", input="hi", reasoning={"effort": "low"})
        none = post(url, "/v1/responses", input="hi", reasoning={"effort": "none"}, max_output_tokens=1)

    assert (reasoning["type"], reasoning["id"][:3], reasoning["summary"]) == ("reasoning", "rs_", [])
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert message["content"][0]["text"] == "Yes."
    assert whole.json()["usage"]["output_tokens_details"] == {"reasoning_tokens": len("Hm.</think>") + 1}
    assert whole.json()["reasoning"]["effort"] == "low"
    assert whole.headers["x-griffin-ignored"] == "reasoning.summary"
    assert engine.prompts[-1] == "assistant:Yes.;user:Why?;assistant:"
    names = [name.removeprefix("response.") for name, _ in events]
    assert names[2:4] == ["output_item.added", "content_part.added"]
    ended = names.index("reasoning_text.done")
    assert set(names[4:ended]) == {"reasoning_text.delta"}
    assert names[ended : ended + 4] == [
        "reasoning_text.done", "content_part.done", "output_item.done", "output_item.added",
    ]  # fmt: skip
    assert (plain.json()["error"]["param"], none.status_code) == ("reasoning.effort", 200)


def test_a_thought_is_a_block_of_a_message() -> None:
    """It comes before the text; the template is told whether to think."""
    asked = {"messages": HI, "max_tokens": 100, "thinking": {"type": "enabled", "display": "x"}}
    with served(ScriptedEngine("Hm.</think>\nYes.", once=True), tokenizer=Thinking()) as url:
        whole = post(url, "/v1/messages", **asked)
        events = [event for _, event in events_of(post(url, "/v1/messages", **asked, stream=True))]
    with served(ScriptedEngine()) as url:
        plain = post(url, "/v1/messages", **asked)

    thought, text = whole.json()["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text["text"] == "Yes."
    assert whole.headers["x-griffin-ignored"] == "thinking.display"
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Hm."
    assert plain.json()["error"]["message"].startswith("thinking: ")


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{{ reasoning_effort }}<think>\n"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, smollm2: Checkpoint) -> Iterator[str]:
    """A real server whose tokenizer has the marks of thoughts."""
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("thinker"), tokenizer)
    with running("--model", str(folder), "--dtype", "float32") as server:
        yield server.url


@pytest.mark.parametrize(
    "more", [{}, {"sparsity": 0.5}, {"griffin": {"mode": "lossless"}}, {"temperature": 1, "seed": 3}]
)
def test_a_thought_ends_with_its_budget(thinker: str, more: dict[str, Any]) -> None:
    """The budget does not change the tokens before it, and a large budget changes no token."""
    asked = {"messages": HI, "max_tokens": 24, "temperature": 0, "return_token_ids": True} | more
    free, held, wide = (
        post(thinker, CHAT, **asked, **budget).json()
        for budget in ({}, {"max_reasoning_tokens": 5}, {"max_reasoning_tokens": 24})
    )
    ids = [each["choices"][0]["token_ids"] for each in (free, held, wide)]

    assert ids[0] == ids[2]
    assert ids[0][:5] == ids[1][:5]
    assert len(ids[1]) == 24
    assert held["choices"][0]["message"]["content"]
    # Five tokens of the budget, a line end and the mark.
    assert held["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7
    assert free["usage"]["completion_tokens_details"]["reasoning_tokens"] == 24


def test_budgets_of_the_other_apis_and_efforts(thinker: str) -> None:
    message = post(
        thinker, "/v1/messages", messages=HI, max_tokens=24, temperature=0,
        thinking={"type": "enabled", "budget_tokens": 3},
    ).json()  # fmt: skip
    response = post(thinker, "/v1/responses", input="hi", max_output_tokens=24, max_reasoning_tokens=3).json()
    plain, low = (post(thinker, CHAT, messages=HI, max_tokens=1, **more).json() for more in ({}, EFFORT))

    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 5
    assert low["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


class Shown(CharacterTokenizer):
    """Its prompt is what a template is told of thinking."""

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        return ",".join(
            f"{name}={options[name]}" for name in ("enable_thinking", "reasoning_effort") if name in options
        )


HIGH = {"output_config": {"effort": "high"}}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, ""),
        ({"thinking": {"type": "adaptive"}}, "enable_thinking=True"),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}, **HIGH},
            "enable_thinking=True,reasoning_effort=high",
        ),
        ({"thinking": {"type": "disabled"}, **HIGH}, "enable_thinking=False"),
        ({"output_config": {"effort": "max"}}, "reasoning_effort=max"),
        ({"output_config": {"effort": None}}, ""),
    ],
)
def test_what_a_template_is_told_by_messages(body: dict[str, Any], told: str) -> None:
    """A model that does not think takes all of this: nothing of it must happen."""
    with served(engine := ScriptedEngine(), tokenizer=Shown()) as url:
        answer = post(url, "/v1/messages", messages=HI, max_tokens=1, **body)

    assert answer.status_code == 200, answer.text
    assert engine.prompts == [told]


EFFORT = {"reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_reasoning_tokens": -1}, "max_reasoning_tokens"),
        ({"max_reasoning_tokens": 3, "min_tokens": 2}, "max_reasoning_tokens"),
        ({"max_reasoning_tokens": 3, "ignore_eos": True}, "max_reasoning_tokens"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"thinking_token_budget": 3}, "thinking_token_budget"),
    ],
)
def test_invalid_budgets(thinker: str, body: dict[str, Any], param: str) -> None:
    answer = post(thinker, CHAT, messages=HI, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_model_that_does_not_think_has_no_budget() -> None:
    with served(ScriptedEngine()) as url:
        refused = [post(url, CHAT, messages=HI, **body) for body in ({"max_reasoning_tokens": 3}, EFFORT)]
        taken = post(url, CHAT, messages=HI, max_tokens=1, reasoning_effort="none")
    assert [answer.json()["error"]["param"] for answer in refused] == ["max_reasoning_tokens", "reasoning_effort"]
    assert taken.status_code == 200
