"""Splits an answer into its thought, calls and content."""

from dataclasses import dataclass

from server.text.reasoning import Thought, ThoughtReader, Thoughts
from server.text.tool_calls import CallReading, Content, Part, joined


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to a request are read.

    thoughts, calls: None if answers cannot have any.
    """

    thoughts: Thoughts | None = None
    calls: CallReading | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that the text must show, because they are marks."""
        marks = (self.thoughts.marks.open, self.thoughts.marks.close) if self.thoughts else ()
        return marks + (self.calls.form.marks if self.calls else ())

    def reader(self) -> "AnswerReader":
        """A reader for one answer."""
        return AnswerReader(self)


class AnswerReader:
    """Text in, parts out. Calls can only follow the thought, or end a thought that is never closed.

    thinking: the answer is still inside its thought. done: nothing more is needed.
    """

    def __init__(self, reading: Reading) -> None:
        thoughts = reading.thoughts
        marks = reading.calls.form.opens if reading.calls else ()
        self._thoughts = ThoughtReader(thoughts.marks, begun=thoughts.begun, calls=marks) if thoughts else None
        self._calls = reading.calls.reader() if reading.calls else None

    @property
    def thinking(self) -> bool:
        return self._thoughts is not None and self._thoughts.thinking

    @property
    def done(self) -> bool:
        return self._calls is not None and self._calls.done

    def feed(self, text: str) -> list[Part]:
        thought, text = self._thoughts.feed(text) if self._thoughts else ("", text)
        return joined([Thought(thought), *self._said(text)])

    def end(self, *, cut: bool) -> list[Part]:
        """The rest when the answer has ended; see ``ToolCallReader.end``."""
        if self._thoughts and self._calls and (call := self._thoughts.call):
            parts = [*self._calls.feed(call), *self._calls.end(cut=cut)]
            called = self._calls.calls > 0
            thought, _ = self._thoughts.end(without=call if called else "")
            return joined([Thought(thought), *(parts if called else ())])
        thought, text = self._thoughts.end() if self._thoughts else ("", "")
        said = self._said(text)
        return joined([Thought(thought), *said, *(self._calls.end(cut=cut) if self._calls else ())])

    def _said(self, text: str) -> list[Part]:
        if self._calls:
            return self._calls.feed(text)
        return [Content(text)]
