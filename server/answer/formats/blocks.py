"""What newer APIs make of an answer: blocks, each a thought, a stretch of text or a call, one after the other."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from server.answer.collected import Answer
from server.answer.texts import Piece
from server.text.logprobs import ScoredToken
from server.text.reasoning import Thought
from server.text.tool_calls import Content, NoCall, Part

BlockKind = Literal["thought", "text", "call"]


@dataclass(slots=True)
class Block:
    """A block so far.

    text: of a call, its arguments.
    name: of a call, the tool's.
    tokens: of a text, with log-probabilities, if they are wanted.
    complete: nothing of it is missing. False while it grows, and where the answer was cut in it.
    """

    kind: BlockKind
    index: int
    name: str = ""
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Began:
    block: Block


@dataclass(frozen=True, slots=True)
class Grew:
    """By a text, or a piece of arguments. ``tokens``: that the text stands for."""

    block: Block
    text: str
    tokens: list[ScoredToken]


@dataclass(frozen=True, slots=True)
class Ended:
    block: Block


Step: TypeAlias = Began | Grew | Ended


class Blocks:
    """The blocks of one answer, as its pieces come. ``all``: those that have begun."""

    def __init__(self, none: Set[int] = frozenset(), *, some: bool = False) -> None:
        """
        Args:
            none: calls that are known to be none; they are text.
            some: an answer of nothing, or of a thought, has a block of text as well, which is empty.
        """
        self.all: list[Block] = []
        self._none, self._some = none, some
        self._open: Block | None = None
        # Tokens whose text has not come yet.
        self._tokens: list[ScoredToken] = []

    @classmethod
    def of(cls, answer: Answer, *, some: bool = False) -> list[Block]:
        """All blocks of an answer that has ended."""
        blocks = cls(answer.no_calls, some=some)
        for piece in answer.pieces:
            for _ in blocks.add(piece):
                pass
        return blocks.all

    def add(self, piece: Piece) -> Iterator[Step]:
        """What a piece changes. The last one ends the last block, which a limit of tokens leaves incomplete."""
        self._tokens += piece.tokens
        for part in piece.parts or ([Content(piece.text)] if piece.text else []):
            yield from self._part(part)
        if piece.finish_reason:
            if self._some and all(block.kind == "thought" for block in self.all):
                yield from self._begin("text")
            yield from self._end(complete=piece.finish_reason != "length")

    def _part(self, part: Part) -> Iterator[Step]:
        if isinstance(part, Thought):
            yield from self._say("thought", part.text)
        elif isinstance(part, Content):
            yield from self._say("text", part.text)
        elif isinstance(part, NoCall):
            if part.index in self._none:
                yield from self._say("text", part.text)
            else:
                # It has been told, and the rest of it follows as text.
                yield from self._end(complete=False)
        elif part.index not in self._none:
            # A call's tokens are not reported, and neither are a thought's.
            self._tokens = []
            if part.name is not None:
                yield from self._begin("call", part.name)
            yield from self._grow(part.arguments, [])

    def _say(self, kind: Literal["thought", "text"], text: str) -> Iterator[Step]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        tokens, self._tokens = self._tokens, []
        yield from self._grow(text, tokens if kind == "text" else [])

    def _begin(self, kind: BlockKind, name: str = "") -> Iterator[Step]:
        yield from self._end(complete=True)
        self._open = Block(kind, len(self.all), name)
        self.all.append(self._open)
        yield Began(self._open)

    def _grow(self, text: str, tokens: list[ScoredToken]) -> Iterator[Step]:
        block = self._open
        if block is None or not text:
            return
        block.text += text
        block.tokens += tokens
        yield Grew(block, text, tokens)

    def _end(self, *, complete: bool) -> Iterator[Step]:
        if self._open is not None:
            block, self._open = self._open, None
            block.complete = complete
            yield Ended(block)
