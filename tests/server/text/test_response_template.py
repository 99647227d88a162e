"""Answers are read by response templates as tokenizers ship them, cut into pieces at every position."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from transformers.utils.chat_parsing import ResponseParser

from server.text.reasoning import Marks, Thought
from server.text.response_template import ResponseTemplate, TemplateReading
from server.text.tool_call import CallPart
from server.text.tool_calls import FORMS, HERMES, PLAIN, Content, Part, joined
from tests.server.scripted import CharacterTokenizer

F = {"name": "f", "arguments": {"a": 1}}
CALL = ("f", '{"a": 1}')
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}},
    },
}
# In Qwen 3's shape.
TAGGED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "assistant:",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<end>|<eos>)"},
    },
}
# In Qwen 3.5's shape: a call is no JSON.
MARKUP: dict[str, Any] = {
    "start_anchor": "assistant:",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {},
    },
}
# In the shape of models that write into channels. Text outside of them has no field.
CHANNELS: dict[str, Any] = {
    "start_anchor": "assistant:",
    "fields": {
        "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
        "content": {"open": "<|channel|>final<|message|>", "close": ["<|end|>", "<|return|>"]},
        "tool_calls": {
            "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+)<\|message\|>",
            "close": "<|call|>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}
# All calls in one list, as Mistral and Granite write them; no thoughts.
LISTED: dict[str, Any] = {
    "start_anchor": "assistant:",
    "fields": {
        "content": {"content_args": {"strip": False}},
        "tool_calls": {
            "open": "[TOOL_CALLS]",
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            "transform_each": True,
        },
    },
}
# What a client puts together: thoughts in a tuple of one, calls in a tuple of two, texts.
Wanted = Sequence[str | tuple[str] | tuple[str, str]]


class Shipping(CharacterTokenizer):
    """A tokenizer with a response template."""

    def __init__(self, response_template: Any) -> None:
        self.response_template = response_template

    def get_response_parser(
        self, response_template: Any, *, prefix: str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ResponseParser:
        return ResponseParser(response_template, prefix=prefix, tools=tools)


def template_of(spec: Any) -> ResponseTemplate:
    template = ResponseTemplate.of(Shipping(spec))
    assert template is not None
    return template


def read(
    spec: Mapping[str, Any], pieces: Sequence[str], prompt: str = "user:Hi;assistant:", *, single: bool = False
) -> list[Part]:
    reader = TemplateReading(template_of(spec), prompt, [TOOL], frozenset({"f"}), single).reader()
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return joined([*parts, *reader.end(cut=False)])


def said(parts: Sequence[Part]) -> Wanted:
    whole: list[Any] = []
    for part in parts:
        if isinstance(part, CallPart) and part.name is not None:
            assert (part.arguments, part.index) == ("", sum(isinstance(one, tuple) and len(one) == 2 for one in whole))
            whole.append((part.name, ""))
        elif isinstance(part, CallPart):
            whole[-1] = (whole[-1][0], whole[-1][1] + part.arguments)
        elif isinstance(part, Thought):
            whole.append((part.text,))
        else:
            assert isinstance(part, Content)
            whole.append(part.text)
    return whole


def tagged(call: Any) -> str:
    return f"<tool_call>\n{call if isinstance(call, str) else json.dumps(call)}\n</tool_call>"


MARKED = (
    "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n"
    "<parameter=s>\n7\n</parameter>\n</function>\n</tool_call>"
)
SURROGATE = tagged(r'{"name": "f", "arguments": {"s": "\ud800"}}')
CHANNEL = "<|channel|>commentary to=functions.f<|message|>"
ANSWERS: list[tuple[Mapping[str, Any], str, Wanted]] = [
    (TAGGED, "Hello.", ["Hello."]),
    (TAGGED, " Hello, \n you.\n", ["Hello, \n you."]),
    (TAGGED, "<think>\nHm, so.\n</think>\n\nYes.", [("Hm, so.",), "Yes."]),
    (TAGGED, f"<think>Hm.</think>\n{tagged(F)}\n{tagged(F)}\n", [("Hm.",), CALL, CALL]),
    (TAGGED, f"Let me see.\n{tagged(F)}\nSo.", ["Let me see.", CALL, "So."]),
    (TAGGED, "a < b <tool", ["a < b <tool"]),
    (TAGGED, "Hello.\n<end>", ["Hello."]),
    (TAGGED, "<think>Hm", [("Hm",)]),
    (TAGGED, f"<think>{tagged(F)}</think>Yes.", [(tagged(F),), "Yes."]),
    # What is no call is content, with its marks, and reading goes on after it.
    (TAGGED, tagged("{"), [tagged("{")]),
    (TAGGED, f"Hm.\n{tagged('{')}\nSo {tagged(F)}", [f"Hm.\n{tagged('{')}\nSo", CALL]),
    (TAGGED, f"{tagged(F)}\n{tagged({'name': 'g'})}", [CALL, "\n" + tagged({"name": "g"})]),
    (TAGGED, tagged({"name": "f", "arguments": [1]}), [tagged({"name": "f", "arguments": [1]})]),
    (TAGGED, tagged('{"name": "f", "arguments": {"a": NaN}}'), [tagged('{"name": "f", "arguments": {"a": NaN}}')]),
    (TAGGED, SURROGATE, [SURROGATE]),
    (TAGGED, tagged("[" * 9000), [tagged("[" * 9000)]),
    (TAGGED, tagged("[]"), [tagged("[]")]),
    (TAGGED, '<tool_call>\n{"name": "f", "argu', ['<tool_call>\n{"name": "f", "argu']),
    (TAGGED, '<tool_call>{"name": "f", "arguments": {"a": 1}}', [CALL]),
    (TAGGED, tagged({"name": "f"}), [("f", "{}")]),
    (TAGGED, tagged({"name": "f", "arguments": '{"a": 1}'}), [CALL]),
    (MARKUP, f"<think>\nHm.\n</think>\n\n{MARKED}", [("Hm.",), ("f", '{"a": 1, "s": "7"}')]),
    (MARKUP, f"Now:\n\n{MARKED}\n{MARKED}", ["Now:", *[("f", '{"a": 1, "s": "7"}')] * 2]),
    (MARKUP, MARKED.replace("=f>", "=g>") + "x", [MARKED.replace("=f>", "=g>") + "x"]),
    (MARKUP, tagged(F), [tagged(F)]),
    (
        CHANNELS,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        [("Hm.",), "Yes."],
    ),
    (CHANNELS, CHANNEL + '{"a": 1}<|call|>', [CALL]),
    (CHANNELS, CHANNEL + "{", [CHANNEL + "{"]),
    (CHANNELS, "No channel at all.", ["No channel at all."]),
    (LISTED, f" Hm.\n[TOOL_CALLS]{json.dumps([F, F])}", [" Hm.\n", CALL, CALL]),
    (LISTED, f"[TOOL_CALLS]{json.dumps(F)}", [f"[TOOL_CALLS]{json.dumps(F)}"]),
    (LISTED, "", []),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "answer", "wanted"), ANSWERS)
def test_answers(spec: Mapping[str, Any], answer: str, wanted: Wanted) -> None:
    """Wherever the pieces end, together they say the same."""
    assert said(read(spec, [answer])) == wanted
    for size in (1, 2, 3, 7):
        assert said(read(spec, [answer[i : i + size] for i in range(0, len(answer), size)])) == wanted


def test_text_comes_as_it_is_written() -> None:
    """Only what may be a mark, or space at the end of a field, is held back."""
    reader = TemplateReading(template_of(TAGGED), "assistant:").reader()

    told = [joined(reader.feed(piece)) for piece in ("<think>", "Hm", ". ", "So</", "think>", "\n", "Yes", " <", "no")]
    assert told == [
        [], [Thought("Hm")], [Thought(".")], [Thought(" So")], [], [], [Content("Yes")], [], [Content(" <no")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "answer", "wanted"),
    [
        ("assistant:<think>\n", "Hm.</think>Yes.", [("Hm.",), "Yes."]),
        ("assistant:<think>\n\n</think>\n\n", "\nYes.", ["Yes."]),
        ("assistant:Sure, ", " here it is.", [" here it is."]),
        ("assistant:Sure\n", "\nhere", ["\nhere"]),
        (f"assistant:Hm {tagged('{')} ", "Yes.", ["Yes."]),
        (f"user:{tagged('{')}", "Yes.", ["Yes."]),
        (f"assistant:{tagged(F)}", tagged(F), [CALL]),
        ("user:<think>;assistant:", "Yes.", ["Yes."]),
    ],
)
def test_the_prompt_may_begin_the_answer(prompt: str, answer: str, wanted: Wanted) -> None:
    """A thought may be open already, or text be there. Nothing of the prompt is told, and no prompt is an error."""
    for pieces in ([answer], list(answer)):
        assert said(read(TAGGED, pieces, prompt)) == wanted


def test_one_call_ends_the_answer() -> None:
    """With ``single`` no text follows; a list is cut after its first call."""
    assert said(read(TAGGED, [f"Hm.{tagged(F)}{tagged(F)} So."], single=True)) == ["Hm.", CALL]
    assert said(read(LISTED, [f"[TOOL_CALLS]{json.dumps([F, F])}"], single=True)) == [CALL]


def test_values_that_are_made_at_the_end() -> None:
    """Fields that are no plain text are told when they end; others than OpenAI's are content as the model wrote it."""
    fields = {
        "content": {"open": "<say>", "close": "</say>", "content": "json", "transform": "{content.text}"},
        "mood": {"open": "<mood>", "close": "</mood>"},
    }
    spec = {"start_anchor": "assistant:", "fields": fields}

    assert said(read(spec, ['<say>{"text": "Hi"}</say><mood>good</mood>'])) == ["Hi<mood>good</mood>"]
    assert said(read(spec, ['<say>{"text": 1}</say>'])) == ['<say>{"text": 1}</say>']


def test_what_a_template_can_do() -> None:
    """Which of the server's forms it reads, its thoughts' marks, and the special tokens that it names."""
    kinds = [template_of(spec) for spec in (TAGGED, MARKUP, CHANNELS, LISTED)]
    mistral = FORMS[1]

    assert [kind.reads(HERMES) for kind in kinds] == [True, False, False, False]
    assert [kind.reads(mistral) for kind in kinds] == [False, False, False, True]
    assert not any(kind.reads(PLAIN) for kind in kinds)
    assert [kind.marks for kind in kinds] == [
        *[Marks("<think>", "</think>")] * 2, Marks("<|channel|>analysis<|message|>", "<|end|>"), None,
    ]  # fmt: skip
    assert [kind.shown for kind in kinds] == [("<end>",), (), (), ()]
    escaped = {**LISTED, "fields": {**LISTED["fields"], "mood": {"open_pattern": r"\<end\>", "close": "x"}}}
    assert template_of(escaped).shown == ("<end>",)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("{{ answer }}", "must be a dict"),
        ({}, "fields must be a non-empty dict"),
        ({**TAGGED, "version": 2}, "Unsupported response_template version: 2"),
        ({**TAGGED, "start_anchor": None}, "'start_anchor' must be a string"),
        ({**TAGGED, "fields": {"content": {"open_pattern": "("}}}, "invalid open_pattern regex"),
        ({**TAGGED, "fields": {"content": {"content": "yaml"}}}, "unknown content parser 'yaml'"),
        ({**TAGGED, "fields": {"content": {"open_pattern": "x*", "close_pattern": "y*"}}}, "matches an empty text"),
    ],
)
def test_a_broken_template_is_told_once(spec: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """The model is served without it."""
    with caplog.at_level(logging.WARNING, "griffin"):
        assert ResponseTemplate.of(Shipping(spec)) is None

    [record] = caplog.records
    assert "response_template is not used" in record.message
    assert why in record.message


def test_a_library_without_response_templates(caplog: pytest.LogCaptureFixture) -> None:
    """The tokenizer has one, which nothing can read; or it has none, and nothing is said."""
    tokenizer = CharacterTokenizer()
    with caplog.at_level(logging.WARNING, "griffin"):
        assert ResponseTemplate.of(tokenizer) is None
        assert not caplog.records
        tokenizer.response_template = TAGGED  # type: ignore[attr-defined]
        assert ResponseTemplate.of(tokenizer) is None

    assert "is not used: 'CharacterTokenizer' object has no attribute 'get_response_parser'" in caplog.text


def test_a_long_prompt_costs_little() -> None:
    """Its end decides, with the beginning of an answer and without one: transformers would search for minutes."""
    prompt = "user: hello " * 100_000
    for end, wanted in ((";assistant:<think>\n", [("Hm.",), "Yes."]), ("", ["Hm.</think>Yes."])):
        assert said(read(TAGGED, ["Hm.</think>Yes."], prompt + end)) == wanted


def test_a_field_that_comes_several_times() -> None:
    """Its texts follow each other, with what the template puts between them."""
    fields = {"content": {"open": "<say>", "close": "</say>", "repeats": True, "join": "\n"}}
    if ResponseTemplate.of(Shipping({"start_anchor": "assistant:", "fields": fields})) is None:
        pytest.skip("this transformers joins no fields")
    answer = "<say> a </say><say>b</say>"

    for pieces in ([answer], list(answer)):
        assert said(read({"start_anchor": "assistant:", "fields": fields}, pieces)) == ["a\nb"]
    fields["content"].pop("join")
    assert said(read({"start_anchor": "assistant:", "fields": fields}, [answer])) == ["ab"]
