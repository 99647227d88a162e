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

    echo: the opening, if there was one; its tokens are the prompt's.
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
        """Generated ones, if log-probabilities were wanted."""
        return [token for piece in self.pieces if not piece.opening for token in piece.tokens]

    @property
    def ids(self) -> list[int]:
        return [id for piece in self.pieces for id in piece.ids]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.pieces[-1].finish_reason if self.pieces else None

    @property
    def no_calls(self) -> frozenset[int]:
        """Which of the calls that began are none."""
        return frozenset(part.index for part in self.parts if isinstance(part, NoCall))

    @property
    def thought(self) -> str:
        """What the model thought before."""
        return "".join(part.text for part in self.parts if isinstance(part, Thought))

    def said(self) -> tuple[str, list[Call]]:
        """Content and calls. What began like a call and is none is content."""
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
        """Of the generated tokens; 0 where no log-probabilities were wanted."""
        return sum(token.logprobs.chosen for token in self.tokens if token.logprobs) / max(1, len(self.ids))


class Collected:
    """The answers to all prompts."""

    def __init__(self) -> None:
        self._answers: dict[tuple[int, int], Answer] = {}

    def add(self, piece: Piece) -> None:
        self._answers.setdefault(piece.answer, Answer(piece.prompt)).add(piece)

    def best(self, choices: int) -> list[Answer]:
        """For each prompt, so many answers of the highest mean log-probability. All of them stay in their order."""
        ordered = [self._answers[key] for key in sorted(self._answers)]
        chosen: list[Answer] = []
        for prompt in sorted({answer.prompt for answer in ordered}):
            chosen += _best([answer for answer in ordered if answer.prompt == prompt], choices)
        return chosen


def _best(answers: Sequence[Answer], choices: int) -> Sequence[Answer]:
    return answers if len(answers) <= choices else sorted(answers, key=lambda one: -one.mean_logprob)[:choices]
