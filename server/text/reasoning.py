"""Splits a model's thought from the answer after it, piece by piece."""

from collections.abc import Iterable
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

    def __init__(self, marks: Marks, *, begun: bool) -> None:
        """
        Args:
            begun: see ``is_begun``.
        """
        self._marks = marks
        self._state = "thought" if begun else "beginning"
        self._held, self._told = "", False

    @property
    def thinking(self) -> bool:
        return self._state == "thought"

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

    def end(self) -> tuple[str, str]:
        """The text that was held back, when the answer has ended."""
        held = self._take(len(self._held))
        if self._state == "beginning":
            return "", held
        return (held.rstrip(), "") if self._state == "thought" else ("", "")

    def _begin(self) -> None:
        text = self._held.lstrip()
        if text.startswith(self._marks.open):
            self._held, self._state = text[len(self._marks.open) :], "thought"
        elif not self._marks.open.startswith(text):
            self._state = "text"

    def _think(self) -> str:
        if not self._told:
            self._held = self._held.lstrip()
        before, closed, after = self._held.partition(self._marks.close)
        if closed:
            self._held, self._state = after, "space"
            return before.rstrip()
        # The end of the text may begin the mark; space before the mark is left out.
        close = self._marks.close
        undecided = next((n for n in range(len(close) - 1, 0, -1) if self._held.endswith(close[:n])), 0)
        ready = self._held[: len(self._held) - undecided].rstrip()
        self._told = self._told or bool(ready)
        return self._take(len(ready))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken
