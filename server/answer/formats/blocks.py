"""An answer as blocks, for newer APIs: each block is a thought, a stretch of text or a call."""

import json
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

    text: the text; of a call, its arguments.
    name: the tool's name, for a call.
    tokens: the text's tokens with log-probabilities, if they were requested.
    complete: False while the block grows, and if the answer was cut inside it.
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
    """A block grew by a text, or by a piece of a call's arguments. ``tokens``: the tokens of this text."""

    block: Block
    text: str
    tokens: list[ScoredToken]


@dataclass(frozen=True, slots=True)
class Ended:
    block: Block


Step: TypeAlias = Began | Grew | Ended


class Blocks:
    """The blocks of one answer, built from its pieces. ``all``: the blocks that have begun."""

    def __init__(self, none: Set[int] = frozenset(), *, some: bool = False) -> None:
        """
        Args:
            none: indices of calls that are known to be text.
            some: add an empty text block to an answer that has nothing but a thought, or nothing at all.
        """
        self.all: list[Block] = []
        self._none, self._some = none, some
        self._open: Block | None = None
        # Tokens whose text is still held back.
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
        """What a piece changes. The last piece ends the last block.

        The block is incomplete if a token limit ended it, or a call if a stop string cut its arguments.
        """
        self._tokens += piece.tokens
        for part in piece.parts or ([Content(piece.text)] if piece.text else []):
            yield from self._part(part)
        if piece.finish_reason:
            if self._some and all(block.kind == "thought" for block in self.all):
                yield from self._begin("text")
            yield from self._end(complete=piece.finish_reason != "length" and not (piece.stop and self._cut_call()))

    def _cut_call(self) -> bool:
        """Whether the last block is a call whose arguments are no JSON yet."""
        if self._open is None or self._open.kind != "call":
            return False
        try:
            json.loads(self._open.text)
        except ValueError:
            return True
        return False

    def _part(self, part: Part) -> Iterator[Step]:
        if isinstance(part, Thought):
            yield from self._say("thought", part.text)
        elif isinstance(part, Content):
            yield from self._say("text", part.text)
        elif isinstance(part, NoCall):
            if part.index in self._none:
                yield from self._say("text", part.text)
            else:
                # The call was announced already; the rest of it follows as text.
                yield from self._end(complete=False)
        elif part.index not in self._none:
            # Tokens of calls and thoughts are not reported.
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
