"""Drafts that n-grams find in the sequence itself."""

import random

import pytest

from griffin.engine.ngrams import LONGEST, NGrams, PromptNGrams, longest_next


def drafted(ngrams: NGrams, most: int) -> list[int]:
    match = ngrams.find()
    return ngrams.following(match, most) if match else []


@pytest.mark.parametrize(
    ("ids", "most", "expected"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], 3, [4, 9, 1]),
        ([1, 2, 3, 4, 9, 2, 3], 1, [4]),
        # The latest occurrence, not the first.
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1, [5]),
        # A match of three tokens is preferred to a later match of two.
        ([1, 2, 3, 4, 7, 2, 3, 5, 1, 2, 3], 1, [4]),
        # A match of one token is chance.
        ([1, 2, 3, 4, 3], 2, []),
        # The continuation reaches the end of the text and goes on into the draft itself.
        ([7, 8, 9, 7, 8], 7, [9, 7, 8, 9, 7, 8, 9]),
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 1, 2], 0, []),
        ([1], 3, []),
        ([], 3, []),
    ],
)
def test_what_followed_last_time_is_drafted(ids: list[int], most: int, expected: list[int]) -> None:
    """For ids of a prompt, ids that come token by token, and both."""
    for prompt in range(len(ids) + 1):
        ngrams = NGrams(PromptNGrams(ids[:prompt]))
        for id in ids[prompt:]:
            ngrams.extend(id)

        assert drafted(ngrams, most) == expected


def test_an_n_gram_does_not_find_itself() -> None:
    """The last tokens have no continuation yet, and no earlier tokens are the same."""
    assert NGrams(PromptNGrams([1, 2, 3, 4, 5])).find() is None


def test_length_of_a_match() -> None:
    """A match is followed backwards, up to a limit."""
    for length in (2, 3, 4, 7, 12, LONGEST, LONGEST + 5):
        repeated = list(range(10, 10 + length))
        match = NGrams(PromptNGrams([1, *repeated, 2, 3, *repeated])).find()

        assert match is not None
        assert (match.start, match.length) == (1 + length, min(length, LONGEST))


def test_answers_do_not_share_n_grams() -> None:
    """The tokens of one answer are no drafts for another answer to the prompt."""
    prompt = PromptNGrams([1, 2, 3])
    first, second = NGrams(prompt), NGrams(prompt)
    for id in (7, 8, 9, 7, 8):
        first.extend(id)
    for id in (7, 8):
        second.extend(id)

    assert drafted(first, 1) == [9]
    assert second.find() is None


def test_a_match_grows_at_most_as_predicted() -> None:
    """``longest_next`` is an upper bound. With few different tokens, matches of every length occur."""
    drawn = random.Random(3)
    reached = set()
    for alphabet in (2, 3, 5):
        ngrams = NGrams(PromptNGrams([drawn.randrange(alphabet) for _ in range(20)]))
        for _ in range(600):
            most = longest_next(ngrams.find())
            ngrams.extend(drawn.randrange(alphabet))
            match = ngrams.find()
            assert match is None or match.length <= most
            reached.add((match.length if match else 0, most))
    assert {(2, 2), (3, 3), (5, 5), (8, 8), (LONGEST, LONGEST)} <= reached
