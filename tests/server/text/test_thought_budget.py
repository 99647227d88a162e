"""A thought's budget: which tokens are forced, and when."""

import pytest

from server.text.reasoning import MARKS
from server.text.thought_budget import NoBudget, ThoughtBudget
from tests.server.scripted import CharacterTokenizer

OPEN, CLOSE, LINE = 1, 2, ord("\n")
CLOSING = [LINE, CLOSE, LINE, LINE]


class Marked(CharacterTokenizer):
    """Each mark is one token."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        text = text.replace("<think>", chr(OPEN)).replace("</think>", chr(CLOSE))
        return super().__call__(text, add_special_tokens=add_special_tokens)


def budget(tokens: int, *, begun: bool) -> ThoughtBudget:
    return ThoughtBudget(Marked(), MARKS[0], tokens, 100, begun=begun)


def run(tokens: int, ids: list[int], *, begun: bool = False) -> list[int]:
    """The tokens of a model that would say ``ids``, under the constraint."""
    constraint, said, left = budget(tokens, begun=begun).begin(), list[int](), list(ids)
    while left or constraint.forced():
        id = next(iter(constraint.forced()), None)
        if id is None:
            id = left.pop(0)
        mask = constraint.mask()
        assert mask[id // 8] >> id % 8 & 1
        assert constraint.free == (not constraint.forced())
        constraint.advance(id)
        said.append(id)
    return said


def test_a_thought_is_ended_after_its_tokens() -> None:
    assert run(3, [70, 71, 72, 73, 74], begun=True) == [70, 71, 72, *CLOSING, 73, 74]
    assert run(2, [OPEN, 70, 71, 72]) == [OPEN, 70, 71, *CLOSING, 72]
    assert run(0, [70], begun=True) == [*CLOSING, 70]
    assert run(1, [LINE, OPEN, 70, 71]) == [LINE, OPEN, 70, *CLOSING, 71]


@pytest.mark.parametrize(
    ("begun", "ids", "places"), [(True, [70, CLOSE, 71], [1]), (False, [70, 71], [0]), (True, [70, 71, *CLOSING], [5])]
)
def test_the_constraint_is_done_after_the_thought(begun: bool, ids: list[int], places: list[int]) -> None:
    """The model ends the thought, has none, or the budget ends it; going back undoes this."""
    constraint = budget(2, begun=begun).begin()
    done = []
    for place, id in enumerate(ids):
        constraint.mark()
        constraint.advance(id)
        done += [place] if constraint.done else []

    assert done[:1] == places
    if done == [len(ids) - 1]:
        constraint.back()
        assert not constraint.done


def test_short_thoughts_and_text_are_left_alone() -> None:
    assert run(3, [70, CLOSE, 71, 72, 73], begun=True) == [70, CLOSE, 71, 72, 73]
    assert run(1, [70, 71, 72, OPEN, 73, 74]) == [70, 71, 72, OPEN, 73, 74]


def test_drafts_beyond_the_budget_do_not_fit() -> None:
    """Going back also works in the middle of forced tokens."""
    constraint = budget(2, begun=True).begin()
    assert constraint.taken([70, 71, 72]) == 2
    assert constraint.taken([70, 71, *CLOSING, 72]) == 7
    constraint.advance(70)
    constraint.mark()
    for id in (71, LINE):
        constraint.advance(id)
    assert list(constraint.forced()) == CLOSING[1:]
    constraint.back()
    assert list(constraint.forced()) == []
    constraint.advance(71)
    assert list(constraint.forced()) == CLOSING
    assert not constraint.ended


def test_marks_must_be_tokens() -> None:
    with pytest.raises(NoBudget, match="<think> is 7 tokens"):
        ThoughtBudget(CharacterTokenizer(), MARKS[0], 1, 100, begun=False)
