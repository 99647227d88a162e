"""Thoughts, and calls after them, in answers that are cut into pieces anywhere."""

import pytest

from server.text.reading import Reading
from server.text.reasoning import MARKS, Thought, Thoughts, is_begun, marks_of
from server.text.tool_call import CallPart
from server.text.tool_calls import FORMS, HERMES, NAMED_FORM, CallReading, Content, Form, Part, joined

THINK = MARKS[0]
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
CALLED = [CallPart(0, "f", ""), CallPart(0, None, "{}")]
CALLS = CallReading(HERMES, frozenset({"f"}), single=False)


def read(pieces: list[str], reading: Reading, *, cut: bool = False) -> list[Part]:
    reader = reading.reader()
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return joined([*parts, *reader.end(cut=cut)])


@pytest.mark.parametrize(
    ("text", "begun", "wanted"),
    [
        ("<think>\nHm. a < b\n\nSo.\n</think>\n\nYes.\n", False, [Thought("Hm. a < b\n\nSo."), Content("Yes.\n")]),
        ("\nHm.\n</think>\n\nYes.", True, [Thought("Hm."), Content("Yes.")]),
        (" <think></think>Yes.", False, [Content("Yes.")]),
        ("Yes. <think>No.</think>", False, [Content("Yes. <think>No.</think>")]),
        ("<thin", False, [Content("<thin")]),
        ("  Yes", False, [Content("  Yes")]),
        ("<think>Hm.</thi", False, [Thought("Hm.</thi")]),
        ("Hm. ", True, [Thought("Hm.")]),
        (f"<think>\n{CALL}\n</think>\n{CALL}", False, [Thought(CALL), *CALLED]),
        (f"<think>Hm.</think>\nSo:\n{CALL}", False, [Thought("Hm."), Content("So:"), *CALLED]),
        (CALL, False, CALLED),
        ("", False, []),
        ("", True, []),
        ("</think>\nYes.", False, [Content("Yes.")]),
        ("</think>Yes.", True, [Content("Yes.")]),
        ("</th", False, [Content("</th")]),
        ("Hm.</think>Yes.", False, [Content("Hm.</think>Yes.")]),
        ("\n<think>\nHm.</think>Yes.", True, [Thought("Hm."), Content("Yes.")]),
        ("\n<thi", True, [Thought("<thi")]),
        ("<think>a<think>b</think>c</think>d", True, [Thought("a<think>b"), Content("c</think>d")]),
    ],
)
def test_a_thought_is_split_off(text: str, begun: bool, wanted: list[Part]) -> None:
    """A thought stands only at the beginning, and a call inside it is not read as a call."""
    reading = Reading(Thoughts(THINK, begun), CALLS)

    cuts = [[text[:place], text[place:]] for place in range(len(text) + 1)]
    for pieces in (*cuts, list(text)):
        assert read(pieces, reading) == wanted


NONE = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("form", [HERMES, *FORMS[1:3], NAMED_FORM])
@pytest.mark.parametrize(("begun", "opened"), [(True, ""), (True, "<think>"), (False, "<think>\n")])
def test_a_call_may_end_a_thought_that_is_never_closed(form: Form, begun: bool, opened: str) -> None:
    """The calls after the thought's last word, and the text after them, are the answer."""
    reading = Reading(Thoughts(THINK, begun), CallReading(form, frozenset({"f"}), single=False))
    call = form.first + form.call.replace("NAME", "f").replace("ARGUMENTS", '{"a": "</thi"}') + form.last
    called = [CallPart(0, "f", ""), CallPart(0, None, '{"a": "</thi"}')]
    again = [CallPart(1, "f", ""), CallPart(1, None, '{"a": "</thi"}')]

    for text, wanted in [
        (f"Hm.\n\n{call}\n", [Thought("Hm."), *called]),
        (call, called),
        (f"Hm. {call}\n{call} So.", [Thought("Hm."), *called, *again, Content("So.")]),
        (f"Hm. {call}</think>Yes.", [Thought(f"Hm. {call}"), Content("Yes.")]),
    ]:
        whole = opened + text
        for pieces in ([whole], list(whole), *([whole[:place], whole[place:]] for place in range(len(whole)))):
            assert read(pieces, reading) == wanted


@pytest.mark.parametrize(
    "thought",
    [NONE, f"Hm. {NONE} So.", "Is it <tool_call>?", "`<tool_call>` and", "<tool_call>", "<tool_call>f", "<tool_call>{",
     '<tool_call>{"name": "f", "arguments": {"a": tru</tool_call>', "<tool"],
)  # fmt: skip
@pytest.mark.parametrize("cut", [False, True])
def test_all_else_in_a_thought_is_thought(thought: str, cut: bool) -> None:
    """A mark alone, a tool that is unknown, a call that breaks: nothing of it is lost."""
    for pieces in ([thought], list(thought)):
        assert read(pieces, Reading(Thoughts(THINK, begun=True), CALLS), cut=cut) == [Thought(thought)]


def test_a_call_that_is_cut_off_in_a_thought_is_thought() -> None:
    """The limit came before the call was whole; a whole one counts."""
    reading = Reading(Thoughts(THINK, begun=True), CALLS)

    assert read([f"Hm. {CALL[:-14]}"], reading, cut=True) == [Thought(f"Hm. {CALL[:-14]}")]
    assert read([f"Hm. {CALL}"], reading, cut=True) == [Thought("Hm."), *CALLED]


def test_a_thought_goes_on_after_a_mark_that_is_no_call() -> None:
    """Only what may be a call is held back until the thought is closed."""
    reader = Reading(Thoughts(THINK, begun=True), CALLS).reader()

    assert [reader.feed(piece) for piece in ("The", " <tool_call>", " mark", " is", " <tool_call>", "{}", " x")] == [
        [Thought("The")], [], [], [Thought(" <tool_call> mark is")], [], [], [],
    ]  # fmt: skip
    assert reader.feed("</think>Yes") == [Thought(" <tool_call>{} x"), Content("Yes")]


def test_a_thought_is_given_as_it_comes() -> None:
    """Only a possible beginning of the mark, and space before it, is held back."""
    reader = Reading(Thoughts(THINK, begun=False)).reader()

    assert [reader.feed(piece) for piece in ("<think>", "\nSo", " it", " is </", "b> ", "</think>", "\n", "Yes")] == [
        [], [Thought("So")], [Thought(" it")], [Thought(" is")], [Thought(" </b>")], [], [], [Content("Yes")],
    ]  # fmt: skip


def test_which_models_think() -> None:
    """The template or the special tokens show it. The prompt may have opened the thought."""
    assert marks_of("{{ content.split('</think>') }}", ()) is THINK
    assert marks_of("", ("[THINK]", "[/THINK]")) is MARKS[1]
    assert marks_of("{{ messages }}", ("</s>",)) is None
    assert is_begun(THINK, "<|im_start|>assistant\n<think>\n")
    assert not is_begun(THINK, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
