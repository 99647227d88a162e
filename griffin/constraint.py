"""Constraint: which tokens may follow, by a grammar. Here are its two interfaces, in token ids alone.

Whoever knows texts implements them. A ``Grammar`` is what a request asks for. A ``Constraint`` follows one sequence.
"""

from collections.abc import Sequence
from typing import Protocol


class Constraint(Protocol):
    """One sequence within its grammar.

    Everything depends on the tokens so far alone, so a sequence that is made in another way is the same sequence.

    ended: whether no token may follow. A grammar that could go on has not ended.
    free: whether any token may follow here, so that no mask is needed.
    done: whether any token may follow from here on. Then tokens need not be told, until ``back``.
    """

    @property
    def ended(self) -> bool: ...

    @property
    def free(self) -> bool: ...

    @property
    def done(self) -> bool: ...

    def forced(self) -> Sequence[int]:
        """The tokens that must follow next, whatever the model predicts; maybe none.

        A grammar forces text, and text could be spelled by other tokens: this is the one spelling that counts.
        """

    def taken(self, ids: Sequence[int]) -> int:
        """How many of the first of these tokens may follow, one after the other."""

    def mask(self) -> bytes:
        """A bit for each token, the lowest bit of a byte first: whether it may follow next.

        End tokens may follow where the grammar may end. It may be called in another thread, if nothing else is called
        meanwhile.

        Raises:
            InvalidRequest: the grammar takes too much time or memory here.
        """

    def advance(self, id: int) -> None:
        """This token follows. It may be an end token.

        Raises:
            InvalidRequest: see ``mask``.
        """

    def mark(self) -> None:
        """Remember this place for ``back``. An earlier mark is forgotten."""

    def back(self) -> None:
        """Forget the tokens since the mark. Tokens may follow, and be forgotten, again."""


class Grammar(Protocol):
    """What an answer must look like. It does not change, and several threads may use it.

    ends: whether it may end the answer. A grammar that never does goes with fields that keep an answer from its end.
    """

    @property
    def ends(self) -> bool: ...

    def begin(self) -> Constraint:
        """A constraint for a new sequence, before its first token."""
