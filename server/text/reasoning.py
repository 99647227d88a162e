"""Splits a model's thought from the answer after it, piece by piece."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts before and after a thought."""

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The thoughts that answers to a request may begin with.

    begun: the prompt has already opened the thought.
    """

    marks: Marks
    begun: bool


# What may follow the mark of a call: JSON, a fence around it, or a tool's name.
FOLLOWING_MARK = re.compile(r"\s*[\w.-]*\s*(?:[\[{]|```|`{0,2}\Z)")
MARKS = (Marks("<think>", "</think>"), Marks("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of a thought; it is not part of the answer."""

    text: str


def marks_of(template: str, special: Iterable[str]) -> Marks | None:
    """A model's marks, found in its template or among its special tokens; None if it does not think."""
    known = set(special)
    return next((marks for marks in MARKS if marks.close in template or marks.close in known), None)


def is_begun(marks: Marks, prompt: str) -> bool:
    """Whether the prompt itself opens a thought, so that the answer continues it."""
    return prompt.rstrip().endswith(marks.open)


class ThoughtReader:
    """Takes a thought off the beginning of an answer. Space around the thought is left out.

    thinking: the answer is still inside its thought.
    """

    def __init__(self, marks: Marks, *, begun: bool, calls: Sequence[str] = ()) -> None:
        """
        Args:
            begun: see ``is_begun``. A model may write the opening mark again, and may close a thought that it has not
                opened.
            calls: marks of calls. Text of the thought is held back from such a mark on, where a call may follow it.
        """
        self._marks, self._calls = marks, calls
        self._begun, self._state = begun, "beginning"
        self._held, self._told = "", False

    @property
    def thinking(self) -> bool:
        return self._state == "thought" or (self._begun and self._state == "beginning")

    def feed(self, text: str) -> tuple[str, str]:
        """The new text of the thought, and the new text after it."""
        if self._state == "text":
            return "", text
        self._held += text
        thought = ""
        if self._state == "beginning":
            self._begin()
        if self._state == "thought":
            thought = self._think()
        if self._state == "space":
            self._held = self._held.lstrip()
            self._state = "text" if self._held else "space"
        return thought, self._take(len(self._held)) if self._state == "text" else ""

    @property
    def call(self) -> str:
        """The text that is held back because a call may begin with it, in a thought that is not closed so far."""
        return self._held[self._call(self._held) :] if self._state == "thought" else ""

    def end(self, *, without: str = "") -> tuple[str, str]:
        """The text that was held back, when the answer has ended.

        Args:
            without: the end of that text that is no part of the thought; see ``call``.
        """
        if self.thinking:
            thought = self._take(len(self._held)).removesuffix(without).rstrip()
            return thought if self._told else thought.lstrip(), ""
        return "", self._take(len(self._held)) if self._state == "beginning" else ""

    def _begin(self) -> None:
        text, marks = self._held.lstrip(), self._marks
        if text.startswith(marks.open):
            self._held, self._state = text[len(marks.open) :], "thought"
        elif text.startswith(marks.close):
            self._state = "thought"
        elif not any(mark.startswith(text) for mark in (marks.open, marks.close)):
            self._state = "thought" if self._begun else "text"

    def _think(self) -> str:
        if not self._told:
            self._held = self._held.lstrip()
        before, closed, after = self._held.partition(self._marks.close)
        if closed:
            self._held, self._state = after, "space"
            return before.rstrip()
        # The end of the text may begin a mark; space before the mark is left out.
        end = min(self._call(self._held), len(self._held) - self._undecided())
        ready = self._held[:end].rstrip()
        self._told = self._told or bool(ready)
        return self._take(len(ready))

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a mark."""
        marks = (self._marks.close, *self._calls)
        longest = min(len(self._held), max(map(len, marks)) - 1)
        return next((n for n in range(longest, 0, -1) if any(mark.startswith(self._held[-n:]) for mark in marks)), 0)

    def _call(self, text: str) -> int:
        """Where a call may begin; the text's length if it has none."""
        marks = re.finditer("|".join(map(re.escape, self._calls)), text) if self._calls else ()
        return next((mark.start() for mark in marks if FOLLOWING_MARK.match(text, mark.end())), len(text))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken
