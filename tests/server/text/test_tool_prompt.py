"""How conversations with tools are given to templates that take tools, and to those that do not."""

import json
from typing import Any

import pytest
from jinja2 import TemplateError

from server.text.tool_calls import HERMES, PLAIN
from server.text.tool_prompt import ToolSupport
from tests.server.scripted import CharacterTokenizer

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"role": "user", "content": "Hi"}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
HISTORY = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALLED, {**CALLED, "id": "call_2"}]},
    {"role": "tool", "content": "41", "tool_call_id": "call_1"},
    {"role": "tool", "content": "42", "tool_call_id": "call_2", "name": "f"},
    {"role": "assistant", "content": "Done."},
]
SPELLED = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'


class Template(CharacterTokenizer):
    """Shows the tools, if it takes them, and each message as it is."""

    def __init__(self, text: str = "", *, tools: bool = True, system: bool = True, late: bool = True) -> None:
        self.chat_template, self._tools, self._system, self._late = text or "some", tools, system, late

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        if not self._system and conversation[0]["role"] == "system":
            raise TemplateError("System role not supported")
        if not self._late and any(message["role"] == "system" for message in conversation[1:]):
            raise TemplateError("System message must be at the beginning.")
        return json.dumps([conversation, options.get("tools") if self._tools else None])


def test_what_a_template_does_is_tried_out() -> None:
    """The text of the template does not decide."""
    takes_all = ToolSupport.of(Template())
    takes_no_tools = ToolSupport.of(Template("{{ tools }}", tools=False))
    takes_no_system = ToolSupport.of(Template("{{ tools }}", system=False))
    none = ToolSupport.of(CharacterTokenizer())

    assert (takes_all.takes_tools, takes_all.takes_system, takes_all.form) == (True, True, PLAIN)
    assert (takes_no_tools.takes_tools, takes_no_tools.takes_system, takes_no_tools.form) == (False, True, HERMES)
    assert (takes_no_system.takes_tools, takes_no_system.takes_system) == (True, False)
    assert (none.takes_tools, none.form) == (False, HERMES)


def test_a_template_that_takes_tools_is_left_alone() -> None:
    """It gets conversations as they are."""
    support = ToolSupport.of(Template())

    assert support.prepared(HISTORY, [TOOL]) == HISTORY


def test_a_template_that_takes_none_is_told_in_a_text() -> None:
    """A system message describes the tools, calls and results become text, and no two user turns follow each other."""
    support = ToolSupport.of(Template(tools=False))

    system, *rest = support.prepared([*HISTORY[:4], ASKED, HISTORY[4]], [TOOL])
    assert system["role"] == "system"
    assert json.dumps(TOOL) in system["content"]
    assert "<tool_call>\n{" in system["content"]
    answers = "<tool_response>\n41\n</tool_response>\n<tool_response>\n42\n</tool_response>\nHi"
    assert rest == [
        ASKED,
        {"role": "assistant", "content": f"{SPELLED}\n{SPELLED}"},
        {"role": "user", "content": answers},
        HISTORY[4],
    ]


@pytest.mark.parametrize("system", [True, False])
def test_instructions_join_those_that_are_there(system: bool) -> None:
    """They join the system message, or the first user message if the template takes no system message."""
    support = ToolSupport.of(Template(tools=False, system=system))

    [first] = support.prepared([{"role": "system" if system else "user", "content": "Be kind."}], [TOOL])
    assert first["content"].startswith("Be kind." if system else "# Tools")
    assert first["content"].endswith("</tool_call>" if system else "Be kind.")


def test_without_tools_only_the_history_is_spelled() -> None:
    """A chat that once used tools can go on."""
    support = ToolSupport.of(Template(tools=False))

    assert support.prepared([ASKED], []) == [ASKED]
    assert support.prepared(HISTORY, [])[1]["content"] == f"{SPELLED}\n{SPELLED}"


def test_ids_are_shortened_where_a_template_wants_it() -> None:
    """Mistral's template takes only ids of nine characters. A call and its result keep the same id."""
    support = ToolSupport.of(Template('{% if tool_call.id|length != 9 %}{{ raise_exception("") }}{% endif %}'))

    _, called, *answers, _ = support.prepared(HISTORY, [TOOL])
    ids = [call["id"] for call in called["tool_calls"]]
    assert [len(id) for id in ids] == [9, 9]
    assert ids == [answer["tool_call_id"] for answer in answers]
    assert len(set(ids)) == 2


SYSTEM = {"role": "system", "content": "S"}
SAID = {"role": "assistant", "content": "Yes."}
NEXT = {"role": "user", "content": "And?"}


def with_text(message: dict[str, Any], *texts: str) -> dict[str, Any]:
    return {**message, "content": "\n\n".join(texts)}


@pytest.mark.parametrize(
    ("conversation", "wanted"),
    [
        ([SYSTEM, ASKED, SAID, NEXT], [SYSTEM, ASKED, SAID, NEXT]),
        ([SYSTEM, SYSTEM, ASKED], [with_text(SYSTEM, "S", "S"), ASKED]),
        ([ASKED, SYSTEM], [with_text(ASKED, "Hi", "S")]),
        ([ASKED, SYSTEM, SAID, NEXT], [with_text(ASKED, "Hi", "S"), SAID, NEXT]),
        ([ASKED, SAID, SYSTEM, NEXT], [ASKED, SAID, with_text(NEXT, "S", "And?")]),
        ([ASKED, SAID, SYSTEM, SYSTEM, NEXT], [ASKED, SAID, with_text(NEXT, "S", "S", "And?")]),
        ([ASKED, SYSTEM, NEXT, SAID], [with_text(ASKED, "Hi", "S", "And?"), SAID]),
        ([ASKED, SAID, SYSTEM], [ASKED, SAID, with_text(ASKED, "S")]),
        ([*HISTORY[:4], SYSTEM], [*HISTORY[:4], with_text(ASKED, "S")]),
        ([ASKED, NEXT], [ASKED, NEXT]),
    ],
)
def test_instructions_after_the_beginning(conversation: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """A template that shows them gets them; for another they are part of the user's turn."""
    before = json.dumps(conversation)

    assert ToolSupport.of(Template()).prepared(conversation, []) == conversation
    assert ToolSupport.of(Template(late=False)).prepared(conversation, []) == wanted
    assert json.dumps(conversation) == before


def test_a_template_that_leaves_late_instructions_out() -> None:
    """It is told by what it shows, not by an error."""

    class Forgetful(Template):
        def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
            shown = [one for place, one in enumerate(conversation) if not place or one["role"] != "system"]
            return super().apply_chat_template(shown, tokenize=tokenize, **options)

    assert ToolSupport.of(Forgetful()).prepared([ASKED, SYSTEM], []) == [with_text(ASKED, "Hi", "S")]
