"""Thoughts, and calls after them, in answers that are cut into pieces anywhere."""

import pytest

from server.text.reading import Reading
from server.text.reasoning import MARKS, Thought, Thoughts, is_begun, marks_of
from server.text.tool_call import CallPart
from server.text.tool_calls import HERMES, CallReading, Content, Part, joined

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
    ],
)
def test_a_thought_is_split_off(text: str, begun: bool, wanted: list[Part]) -> None:
    """A thought stands only at the beginning, and a call inside it is not read as a call."""
    reading = Reading(Thoughts(THINK, begun), CALLS)

    cuts = [[text[:place], text[place:]] for place in range(len(text) + 1)]
    for pieces in (*cuts, list(text)):
        assert read(pieces, reading) == wanted


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
