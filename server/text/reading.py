"""How an answer is read: its thought, its calls, its content."""

from dataclasses import dataclass

from server.text.reasoning import Thought, ThoughtReader, Thoughts
from server.text.tool_calls import CallReading, Content, Part, joined


@dataclass(frozen=True, slots=True)
class Reading:
    """For the answers to a request.

    thoughts, calls: None where there are none.
    """

    thoughts: Thoughts | None = None
    calls: CallReading | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that must be seen."""
        marks = (self.thoughts.marks.open, self.thoughts.marks.close) if self.thoughts else ()
        return marks + (self.calls.form.marks if self.calls else ())

    def reader(self) -> "AnswerReader":
        """For one answer."""
        return AnswerReader(self)


class AnswerReader:
    """Text in, parts out. A call can only come after the thought.

    thinking: the answer has not got beyond its thought. done: nothing more is wanted.
    """

    def __init__(self, reading: Reading) -> None:
        thoughts = reading.thoughts
        self._thoughts = ThoughtReader(thoughts.marks, begun=thoughts.begun) if thoughts else None
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
        """What is left when the answer has ended; see ``ToolCallReader.end``."""
        thought, text = self._thoughts.end() if self._thoughts else ("", "")
        said = self._said(text)
        return joined([Thought(thought), *said, *(self._calls.end(cut=cut) if self._calls else ())])

    def _said(self, text: str) -> list[Part]:
        if self._calls:
            return self._calls.feed(text)
        return [Content(text)]
