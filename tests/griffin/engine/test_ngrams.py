"""Drafts looked up in the sequence itself."""

import pytest

from griffin.engine.ngrams import NGrams


@pytest.mark.parametrize(
    ("ids", "most", "expected"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], 3, [4, 9, 1]),
        ([1, 2, 3, 4, 9, 2, 3], 1, [4]),
        # The latest occurrence, not the first.
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1, [5]),
        # Three tokens in common before two, though two occurred later.
        ([1, 2, 3, 4, 7, 2, 3, 5, 1, 2, 3], 1, [4]),
        # One token in common is chance.
        ([1, 2, 3, 4, 3], 2, []),
        # What runs into the present goes round.
        ([7, 8, 9, 7, 8], 7, [9, 7, 8, 9, 7, 8, 9]),
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 1, 2], 0, []),
        ([1], 3, []),
        ([], 3, []),
    ],
)
def test_what_followed_last_time_is_drafted(ids: list[int], most: int, expected: list[int]) -> None:
    """Whether the sequence comes at once or token by token."""
    whole, grown = NGrams(ids), NGrams([])
    for id in ids:
        grown.extend([id])

    assert whole.draft(most) == grown.draft(most) == expected


def test_an_n_gram_does_not_find_itself() -> None:
    """The last tokens have no continuation yet, and nothing else is like them."""
    assert NGrams([1, 2, 3, 4, 5]).draft(4) == []
