"""A thought's budget: after so many tokens its end is forced. Implements both interfaces of ``griffin.constraint``."""

from collections.abc import Sequence

from server.text.reasoning import Marks
from server.text.tokenizer import Tokenizer, encode

BLANKS = (" ", "\n", "\n\n", " \n", "\r\n", "\t")


class NoBudget(ValueError):
    """The model's marks are not single tokens; the text says why."""


class ThoughtBudget:
    """``Grammar``: an answer whose thought has at most so many tokens. The text after the thought is free."""

    ends = False

    def __init__(self, tokenizer: Tokenizer, marks: Marks, tokens: int, vocabulary_size: int, *, begun: bool) -> None:
        """
        Args:
            tokens: most tokens between the marks.
            vocabulary_size: the model's, which may exceed the tokenizer's.
            begun: the prompt has opened the thought.

        Raises:
            NoBudget: a mark is more than one token.
        """
        self.open_id, self.close_id = (_only(tokenizer, mark) for mark in (marks.open, marks.close))
        # In the way that models write it.
        self.closing = tuple(encode(tokenizer, f"\n{marks.close}\n\n", add_special_tokens=False))
        if self.close_id not in self.closing:
            raise NoBudget(f"its tokenizer does not keep {marks.close} apart")
        self.tokens, self.begun = tokens, begun
        # Space may stand before a thought.
        self.blanks = {ids[0] for blank in BLANKS if len(ids := encode(tokenizer, blank, False)) == 1}
        self.mask_bytes = -(-vocabulary_size // 8)

    def begin(self) -> "_Thought":
        return _Thought(self)


def _only(tokenizer: Tokenizer, mark: str) -> int:
    ids = encode(tokenizer, mark, add_special_tokens=False)
    if len(ids) != 1:
        raise NoBudget(f"{mark} is {len(ids)} tokens of its tokenizer")
    return ids[0]


class _Thought:
    """``Constraint``. left: tokens that the thought may still have; None: it has not begun; below 0: it is over."""

    ended = False

    def __init__(self, budget: ThoughtBudget) -> None:
        self._budget = budget
        self._left = budget.tokens if budget.begun else None
        # The closing tokens that are still to be forced.
        self._closing = budget.closing
        self._marked = self._state()

    @property
    def free(self) -> bool:
        return self._left != 0

    @property
    def done(self) -> bool:
        return self._left is not None and self._left < 0

    def forced(self) -> Sequence[int]:
        return self._closing if self._left == 0 else ()

    def taken(self, ids: Sequence[int]) -> int:
        before, count = self._state(), 0
        for id in ids:
            if (forced := self.forced()) and id != forced[0]:
                break
            self.advance(id)
            count += 1
        self._left, self._closing = before
        return count

    def mask(self) -> bytes:
        if not (forced := self.forced()):
            return b"\xff" * self._budget.mask_bytes
        bits = bytearray(self._budget.mask_bytes)
        bits[forced[0] // 8] |= 1 << forced[0] % 8
        return bytes(bits)

    def advance(self, id: int) -> None:
        if self._left is None:
            # A thought stands at the beginning, or there is none.
            if id not in self._budget.blanks:
                self._left = self._budget.tokens if id == self._budget.open_id else -1
        elif self._left == 0:
            self._closing = self._closing[1:]
            self._left = 0 if self._closing else -1
        elif self._left > 0:
            self._left = -1 if id == self._budget.close_id else self._left - 1

    def mark(self) -> None:
        self._marked = self._state()

    def back(self) -> None:
        self._left, self._closing = self._marked

    def _state(self) -> tuple[int | None, tuple[int, ...]]:
        return self._left, self._closing
