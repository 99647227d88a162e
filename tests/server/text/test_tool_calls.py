"""Calls are read from answers in every form, cut into pieces at every position."""

import itertools
import json
from collections.abc import Sequence

import pytest

from server.text.json_value import JsonValue, NoJson
from server.text.tool_call import ARGUMENTS, CallPart
from server.text.tool_calls import FORMS, HERMES, PLAIN, Content, Form, NoCall, Part, ToolCallReader, form_of, joined

MISTRAL, GRANITE, LLAMA = FORMS[1:4]
TOOLS = frozenset({"f", "get_weather"})
# The expected parts of an answer: texts, and calls as (name, arguments).
Wanted = Sequence[str | tuple[str, str]]


def read(pieces: Sequence[str], form: Form = HERMES, *, cut: bool = False, single: bool = False) -> list[Part]:
    reader = ToolCallReader(form, TOOLS, single=single)
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return joined([*parts, *reader.end(cut=cut)])


def said(parts: Sequence[Part]) -> Wanted:
    """The parts as a client puts them together."""
    whole: list[str | tuple[str, str]] = []
    for part in parts:
        if isinstance(part, CallPart) and part.name is not None:
            assert part.arguments == ""
            whole.append((part.name, ""))
        elif isinstance(part, CallPart):
            name, arguments = whole[-1]
            whole[-1] = (name, arguments + part.arguments)
        else:
            assert isinstance(part, Content)
            whole.append(part.text)
    return whole


F = '{"name": "f", "arguments": {"a": 1}}'
L = F.replace("arguments", "parameters")
CALL = ("f", '{"a": 1}')
ANSWERS: list[tuple[str, Form, Wanted]] = [
    (f"<tool_call>\n{F}\n</tool_call>", HERMES, [CALL]),
    (f"Hm.\n\n<tool_call>\n{F}\n</tool_call>\n<tool_call>{F}</tool_call>\n", HERMES, ["Hm.", CALL, CALL]),
    (f"a <tool_call>{F}</tool_call> b", HERMES, ["a", CALL, "b"]),
    ('<tool_call>{"name": "f"}</tool_call>', HERMES, [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": null}</tool_call>', HERMES, [("f", "{}")]),
    ('<tool_call>{"why": [1, {"name": "x"}], "arguments": {"a": 1}, "name": "f"}</tool_call>', HERMES, [CALL]),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', HERMES, [CALL]),
    ('<tool_call>{"name": "f", "arguments": " "}</tool_call>', HERMES, [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1e999}"}</tool_call>', HERMES, [("f", '{"a": 1e999}')]),
    (f"<tool_call>\n```json\n{F}\n```\n</tool_call>", HERMES, [CALL]),
    (f"<tool_call>\n{F}\n{F}\n</tool_call>", HERMES, [CALL, CALL]),
    (f"<tool_call>[{F}, {F}]</tool_call>", HERMES, [CALL, CALL]),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}', HERMES, [CALL]),
    (f"```json\n{F}\n```", HERMES, [CALL]),
    (f"Sure:\n```\n{F}\n{F}\n```\nDone.", HERMES, ["Sure:", CALL, CALL, "Done."]),
    (f"<tools>\n{F}\n</tools>", HERMES, [CALL]),
    (F, PLAIN, [CALL]),
    (f"[{F}, {F}]", PLAIN, [CALL, CALL]),
    (f'{{"type": "function", "function": {F}}}', PLAIN, [CALL]),
    (L, LLAMA, [CALL]),
    (f"<|python_tag|>{F}; {F}", LLAMA, [CALL, CALL]),
    (f"I call: {L} Shall I?", LLAMA, ["I call:", CALL, "Shall I?"]),
    (f"Here: {L}; {L} ; {L};\n{L} So {{f}} it is.", LLAMA, ["Here:", CALL, CALL, CALL, CALL, "So {f} it is."]),
    (f"{{a}} {{\"b\": 1}} {L}", LLAMA, ['{a} {"b": 1}', CALL]),
    (f'It is {{"calls": [{L}, {L}]}}.', LLAMA, [f'It is {{"calls": [{L}, {L}]}}.']),
    (f'It is {{"call": {L}}}. {L}', LLAMA, [f'It is {{"call": {L}}}.', CALL]),
    (f"[TOOL_CALLS][{F},{F}]", MISTRAL, [CALL, CALL]),
    (f"[TOOL_CALLS] [{F}]", MISTRAL, [CALL]),
    ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}', MISTRAL, [CALL, CALL]),
    ('Hm.[TOOL_CALLS]f{"a": 1}', MISTRAL, ["Hm.", CALL]),
    (f"<|tool_call|>[{F}]<|/tool_call|>", GRANITE, [CALL]),
    ('{"name": "f", "arguments": {"a": "x\ny\t"}}', PLAIN, [("f", '{"a": "x\\ny\\t"}')]),
    ('{"name": "f", "arguments": {"a": "\\u00e9\\\\\\"}<tool_call>"}}', HERMES,
     [("f", '{"a": "\\u00e9\\\\\\"}<tool_call>"}')]),
]  # fmt: skip
TEXTS = [
    "", " ", "\n", "Hello.\n", "  indented\n\n", "a < b <c> [1](x) `d` {e}", "```python\nprint({})\n```\n", "<tool",
    '{"city": "Paris"}', '{"name": "Anna", "arguments": {}}', '[{"name": "Anna"}]', "[]", "{}", "[", "{", "```",
    "```json", '{"name": "f"}', '{"name": "f", "description": "a", "parameters": {}}',
    '{"name": "f", "arguments": [1]}',
    '<tool_call>\n{"name": "nope", "arguments": {}}\n</tool_call>', "<tool_call>\nf(1)\n</tool_call>", "<tool_call>",
    '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"name": "f", "arguments": 7}</tool_call>', "<tool_call>[]",
    '{"name": "f", "arguments": ', '{"type": "function"', "1. one\n2. two", "```json\n[1]\n```",
    '<tool_call>{"name": "f", "arguments": "no"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "{} {}"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "{\\"a\\": NaN}"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "' + 200 * '{\\"a\\": ' + "1" + 200 * "}" + '"}</tool_call>',
    '{"arguments": {}, "parameters": {"a": 1}, "name": "f"}',
    '<tool_call>{"arguments": null, "arguments": {"a": 1}, "name": "f"}</tool_call>',
]  # fmt: skip


@pytest.mark.parametrize(("text", "form", "wanted"), ANSWERS)
def test_calls_are_found_however_the_text_is_cut(text: str, form: Form, wanted: Wanted) -> None:
    """Two pieces, cut anywhere, and single characters; no mark becomes content."""
    cuts = [[text[:place], text[place:]] for place in range(len(text))]

    for pieces in (*cuts, list(text)):
        assert said(read(pieces, form)) == wanted
    for _, arguments in (part for part in wanted if isinstance(part, tuple)):
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", TEXTS)
def test_all_else_is_text(text: str, form: Form) -> None:
    """Each character comes as content, however the text is cut."""
    wanted = [text] if text else []
    cuts = [[text[:place], text[place:]] for place in range(len(text))]

    for pieces in (*cuts, list(text)):
        assert said(read(pieces, form)) == wanted


@pytest.mark.parametrize("form", [form for form in FORMS if form is not LLAMA])
def test_bare_json_within_a_line_is_text(form: Form) -> None:
    """Such families have marks, or write about calls."""
    for pieces in ([f"in a line: {F}"], list(f"in a line: {F}")):
        assert said(read(pieces, form)) == [f"in a line: {F}"]


def test_content_is_given_at_once() -> None:
    """Only a possible beginning of a call, and space before it, is held back."""
    reader = ToolCallReader(HERMES, TOOLS)

    given = ["".join(part.text for part in reader.feed(character)) for character in "Hi, <b>\n<tool_x {"]  # type: ignore[union-attr]
    assert given == ["H", "i", ",", "", "", " <b", ">", "", *[""] * 6, "\n<tool_x", "", " {"]


def test_arguments_are_given_as_they_come() -> None:
    """The name comes when the arguments begin, then every character."""
    reader = ToolCallReader(HERMES, TOOLS)

    assert reader.feed('<tool_call>{"name": "f", "arguments": ') == []
    assert reader.feed("{") == [CallPart(0, "f", ""), CallPart(0, None, "{")]
    assert reader.feed('"a"') == [CallPart(0, None, '"a"')]
    assert reader.feed(": 1}}</tool") == [CallPart(0, None, ": 1}")]
    assert reader.calls == 1
    assert reader.feed("_call>") == reader.end(cut=False) == []


@pytest.mark.parametrize("end", ["", "}}</tool_call>", "</tool_call> and more"])
def test_a_call_whose_json_breaks_is_taken_back(end: str) -> None:
    """A stream keeps what it has sent; ``NoCall`` has all of the text for a whole answer."""
    text = '<tool_call>{"name": "f", "arguments": {"a": tru' + end

    for pieces in ([text], list(text)):
        *_, broken = parts = [part for part in read(pieces) if not isinstance(part, Content)]
        assert isinstance(broken, NoCall)
        assert parts[0] == CallPart(0, "f", "")
        rest = "".join(part.text for part in read(pieces) if isinstance(part, Content))
        assert broken.text + rest == text


GIVEN = ["{}", '{"b": [2]}', "null", '"{}"', '" "']


@pytest.mark.parametrize("keys", [(a, b) for a in ARGUMENTS for b in ARGUMENTS])
@pytest.mark.parametrize("form", [HERMES, PLAIN, LLAMA])
def test_arguments_twice_are_not_a_call(keys: tuple[str, str], form: Form) -> None:
    """This holds for any arguments, any place of the name, and a ``function`` around it."""
    for first, second in itertools.product(GIVEN, GIVEN):
        pairs = [f'"{key}": {value}' for key, value in zip(keys, (first, second), strict=True)]
        for place in range(3):
            call = "{" + ", ".join([*pairs[:place], '"name": "f"', *pairs[place:]]) + "}"
            for text in (call, f'{{"type": "function", "function": {call}}}'):
                for pieces in ([text], list(text)):
                    reader = ToolCallReader(form, TOOLS)
                    parts = [part for piece in pieces for part in reader.feed(piece)] + reader.end(cut=False)
                    assert reader.calls == 0
                    assert isinstance(parts[-1], Content)


def test_a_call_may_come_after_one_that_breaks() -> None:
    """It gets the next index."""
    parts = read([f'<tool_call>{{"name": "f", "arguments": {{]}}}}</tool_call>\n<tool_call>{F}</tool_call>'])

    assert parts[-2:] == [CallPart(1, "f", ""), CallPart(1, None, '{"a": 1}')]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('a<tool_call>{"name": "f", "arguments": {"a": "x', ["a", ("f", '{"a": "x')]),
        ('a<tool_call>\n{"na', ["a"]),
        (f"<tool_call>{F}</tool_", [CALL]),
        (f"<tool_call>{F}", [CALL]),
        ('{"na', ['{"na']),
        ("a <tool_c", ["a <tool_c"]),
    ],
)
def test_an_answer_that_was_cut_off(text: str, wanted: Wanted) -> None:
    """The arguments so far are kept, and marks do not become content."""
    assert said(read([text], cut=True)) == said(read(list(text), cut=True)) == wanted


def test_a_single_call() -> None:
    """Text after it is not read."""
    reader = ToolCallReader(HERMES, TOOLS, single=True)

    parts = reader.feed(f"<tool_call>{F}</tool_call>\n<tool_call>{F}</tool_call> more")
    assert reader.done
    assert said([*parts, *reader.end(cut=False)]) == [CALL]


@pytest.mark.parametrize(
    ("template", "special", "form"),
    [
        ("{{ '<tool_call>' }}", (), HERMES),
        ("{{ '[TOOL_CALLS]' }}", ("</s>",), MISTRAL),
        ("{{ tools }}", ("<|python_tag|>",), LLAMA),
        ("<|tool_call|>", (), GRANITE),
        ("{{ tools }}", ("</s>",), PLAIN),
    ],
)
def test_a_model_has_one_form(template: str, special: Sequence[str], form: Form) -> None:
    """The template or the special tokens show it."""
    assert form_of(template, special) is form


VALUES = [{"a": [1, -2.5e3, True, None, 'x"\\/\u00e9\n'], "b": {}, "c": []}, [], "", 0, -1.5, False, [[["x"]], {"": 1}]]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_value_ends_where_it_ends(value: object, indent: int | None) -> None:
    """Text after it does not matter."""
    text = json.dumps(value, indent=indent)
    reader = JsonValue()

    taken = [reader.take(character) for character in f" {text} ,rest"]
    assert "".join(filter(None, taken)) == reader.text == text
    assert reader.ended


@pytest.mark.parametrize(
    "text",
    ["x", "{1", "{a", '{"a" 1', '{"a": }', "[,", "[1 2", "01 ", "1. ", "tru ", "nul,", '"\\x', '"\\u12g', "[}", "{]",
     '{"a": 1,}', "[1,]", "-,", "[" * 101, "'a'", "--1,", "1" * 2000],
)  # fmt: skip
def test_invalid_json_is_noticed(text: str) -> None:
    """The first wrong character raises the error."""
    reader = JsonValue()

    with pytest.raises(NoJson):
        list(map(reader.take, text))
