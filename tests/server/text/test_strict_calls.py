"""Calls that a model opens by itself: text is free before and after them, and a grammar holds inside."""

import pytest

from griffin.constraint import Constraint
from server.text.reasoning import MARKS
from server.text.strict_calls import AfterThought, OpenedCalls
from server.text.thought_budget import ThoughtBudget
from tests.griffin.grammars import Slots
from tests.server.text.test_thought_budget import CLOSE, CLOSING, OPEN, Marked

CALL = 5
INSIDE = (frozenset({40}), frozenset({50, 51}))
CALLS = OpenedCalls(CALL, Slots(INSIDE))


def told(constraint: Constraint, ids: list[int]) -> Constraint:
    for id in ids:
        if not constraint.free:
            assert constraint.mask()[id // 8] >> id % 8 & 1
        constraint.advance(id)
    return constraint


def test_text_is_free_until_a_call_and_after_it() -> None:
    constraint = told(CALLS.begin(), [70, 71])
    assert constraint.free
    assert not constraint.forced()

    told(constraint, [CALL])
    assert not constraint.free
    assert list(constraint.forced()) == [40]
    told(constraint, [40, 51])
    assert constraint.free
    assert not constraint.done
    assert not constraint.ended
    assert not told(constraint, [70, CALL]).free


def test_drafts_that_open_a_call_are_cut_where_it_refuses_them() -> None:
    constraint = CALLS.begin()
    assert constraint.taken([70, 71, 72]) == 3
    assert constraint.taken([70, CALL, 40, 60]) == 3
    assert constraint.taken([70, CALL, 41]) == 2
    assert constraint.taken([70, CALL]) == 2
    assert told(constraint, [CALL]).taken([40, 50, 70]) == 2


@pytest.mark.parametrize("before", [[], [70], [CALL], [CALL, 40]])
@pytest.mark.parametrize("after", [[70], [70, CALL], [70, CALL, 40, 50, 70]])
def test_going_back_to_a_mark(before: list[int], after: list[int]) -> None:
    """Before a call, inside it, and over its end."""
    if before[:1] == [CALL]:
        after = [*[40, 50][len(before) - 1 :], *after]
    constraint = told(CALLS.begin(), before)
    there = constraint.free, list(constraint.forced())
    for _ in range(2):
        constraint.mark()
        told(constraint, after)
        constraint.back()
        assert (constraint.free, list(constraint.forced())) == there


def test_a_call_in_a_thought_does_not_count() -> None:
    """The thought may end by itself or by its budget; without a thought the first token may open a call."""
    budget = ThoughtBudget(Marked(), MARKS[0], 3, 100, begun=False)
    after = AfterThought(budget, CALLS)
    assert told(after.begin(), [OPEN, 70, CALL]).free
    assert not told(after.begin(), [OPEN, CALL, CLOSE, CALL]).free
    assert not told(after.begin(), [CALL]).free
    spent = told(after.begin(), [OPEN, 70, 71, CALL])
    assert list(spent.forced()) == CLOSING
    assert spent.taken([70]) == 0
    assert told(spent, CLOSING).free
    assert not told(spent, [CALL]).free


def test_going_back_inside_a_thought() -> None:
    constraint = told(AfterThought(ThoughtBudget(Marked(), MARKS[0], 3, 100, begun=True), CALLS).begin(), [70])
    for _ in range(2):
        constraint.mark()
        assert not told(constraint, [CLOSE, CALL]).free
        constraint.back()
        assert told(constraint, []).free
        assert constraint.taken([70, 71, 72]) == 2
        assert constraint.taken([CLOSE, CALL, 41]) == 2
