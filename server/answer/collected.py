"""All pieces of answers that are not streamed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.answer.texts import Piece
from server.protocol.report import FinishReason
from server.text.logprobs import ScoredToken
from server.text.reasoning import Thought
from server.text.tool_call import CallPart
from server.text.tool_calls import NoCall, Part


@dataclass(slots=True)
class Call:
    """A call of a tool, its arguments in JSON."""

    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """All pieces of one answer, in order.

    echo: the prompt, if the answer repeats it; its tokens are the prompt's.
    """

    prompt: int
    echo: Piece | None = None
    pieces: list[Piece] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        if piece.opening:
            self.echo = piece
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def parts(self) -> list[Part]:
        return [part for piece in self.pieces for part in piece.parts]

    @property
    def tokens(self) -> list[ScoredToken]:
        """The generated tokens; empty unless log-probabilities were requested."""
        return [token for piece in self.pieces if not piece.opening for token in piece.tokens]

    @property
    def ids(self) -> list[int]:
        return [id for piece in self.pieces for id in piece.ids]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.pieces[-1].finish_reason if self.pieces else None

    @property
    def no_calls(self) -> frozenset[int]:
        """Indices of calls that turned out to be text."""
        return frozenset(part.index for part in self.parts if isinstance(part, NoCall))

    @property
    def thought(self) -> str:
        """The model's thought before its answer."""
        return "".join(part.text for part in self.parts if isinstance(part, Thought))

    def said(self) -> tuple[str, list[Call]]:
        """Content and calls. Text that began like a call but is not one belongs to the content."""
        if not (parts := self.parts):
            return self.text, []
        content: list[str] = []
        calls: dict[int, Call] = {}
        for part in parts:
            if isinstance(part, CallPart):
                call = calls.setdefault(part.index, Call(part.name or ""))
                call.arguments += part.arguments
            elif not isinstance(part, Thought):
                content.append(part.text)
            if isinstance(part, NoCall):
                del calls[part.index]
        return "".join(content), list(calls.values())

    @property
    def mean_logprob(self) -> float:
        """Mean over the generated tokens; 0 unless log-probabilities were requested."""
        return sum(token.logprobs.chosen for token in self.tokens if token.logprobs) / max(1, len(self.ids))


class Collected:
    """The answers to all prompts."""

    def __init__(self) -> None:
        self._answers: dict[tuple[int, int], Answer] = {}

    def add(self, piece: Piece) -> None:
        self._answers.setdefault(piece.answer, Answer(piece.prompt)).add(piece)

    def best(self, choices: int) -> list[Answer]:
        """For each prompt, the ``choices`` answers of the highest mean log-probability, in their original order."""
        ordered = [self._answers[key] for key in sorted(self._answers)]
        chosen: list[Answer] = []
        for prompt in sorted({answer.prompt for answer in ordered}):
            chosen += _best([answer for answer in ordered if answer.prompt == prompt], choices)
        return chosen


def _best(answers: Sequence[Answer], choices: int) -> Sequence[Answer]:
    return answers if len(answers) <= choices else sorted(answers, key=lambda one: -one.mean_logprob)[:choices]
