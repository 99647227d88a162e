"""The page's modules alone: comparing words, decoding events, and sentences about figures."""

import pytest
from playwright.sync_api import Page

from tests.page.window import module


@pytest.mark.parametrize(
    ("left", "right", "said", "marked"),
    [
        ("the sun is up", "the sun is up", "Both answers are the same, word for word.", ([], [])),
        ("a b c d", "a x c d", "First difference at word 2; 75 % of the words agree.", (["b"], ["x"])),
        ("a b c d", "a c d e", "First difference at word 2; 75 % of the words agree.", (["b"], ["e"])),
        ("x a y b", "a b", "First difference at word 1; 67 % of the words agree.", (["x", "y"], [])),
        ("a b", "a  b three\nfour", "First difference at word 3; 67 % of the words agree.", ([], ["three\nfour"])),
        ("", "a", "First difference at word 1; 0 % of the words agree.", ([], ["a"])),
        ("", " ", "Both answers are empty.", ([], [])),
        ("我喝水", "我喝茶", "First difference at word 3; 67 % of the words agree.", (["水"], ["茶"])),
    ],
)  # fmt: skip
def test_words_are_compared(plain: Page, left: str, right: str, said: str, marked: tuple[list[str], list[str]]) -> None:
    """The longest common subsequence of words stays unmarked; a run of other words is one mark."""
    script = """
      const [left, right] = argument, found = m.compare(left, right);
      const cut = (text, words) => m.differing(words).map(([start, end]) => text.slice(start, end));
      return [m.summary(found), cut(left, found.left), cut(right, found.right)];"""

    assert module(plain, "words", script, [left, right]) == [said, *marked]


def test_very_long_answers_are_compared_in_part(plain: Page) -> None:
    """Time grows with the product of both lengths, so only the beginnings are compared, and the page says so."""
    script = "return m.summary(m.compare('a '.repeat(5000), 'b '.repeat(5000)))"

    assert module(plain, "words", script) == (
        "First difference at word 1; 0 % of the words agree. Only the first 3000 were compared."
    )


def test_events_cut_anywhere(plain: Page) -> None:
    """Chunks of any size give the same events, without comments and with whole characters."""
    text = ': keep-alive\n\ndata: {"text":"näh 水🌊"}\n\ndata: two\r\ndata:lines\r\n\r\nevent: x\ndata: [DONE]\n\n'
    script = """
      const bytes = new TextEncoder().encode(argument), found = [];
      for (let size = 1; size <= bytes.length; size++) {
        const decoder = new m.EventDecoder(), events = [];
        for (let at = 0; at < bytes.length; at += size) events.push(...decoder.feed(bytes.subarray(at, at + size)));
        found.push(JSON.stringify(events));
      }
      return [...new Set(found)].map(JSON.parse);"""

    assert module(plain, "api", script, text) == [['{"text":"näh 水🌊"}', "two\nlines", "[DONE]"]]


A = {"name": "A", "bytes": 1_005e6, "rate": 25.0, "tokens": 100, "drafted": 0, "agreement": None}
B = {**A, "name": "B", "bytes": 672e6, "rate": 31.0}


@pytest.mark.parametrize(
    ("a", "b", "timed", "said"),
    [
        (
            A,
            {**B, "agreement": 0.81},
            True,
            "B reads 672 MB a token instead of 1,005 MB, is 1.24 times as fast, and picks the same next token as the "
            "full model 81 times in 100.",
        ),
        (B, A, True, "B reads 672 MB a token instead of 1,005 MB and is 1.24 times as fast."),
        (A, B, False, "B reads 672 MB a token instead of 1,005 MB."),
        (A, {**B, "tokens": 15}, True, "B reads 672 MB a token instead of 1,005 MB."),
        (A, {**B, "bytes": A["bytes"]}, True, "B is 1.24 times as fast as A."),
        (A, {**A, "name": "B", "rate": None}, True, ""),
        (
            {**A, "agreement": 0.998, "drafted": 5},
            {**B, "rate": None, "agreement": 0.5, "drafted": 7},
            True,
            "B reads 672 MB a token instead of 1,005 MB and picks the same next token as the full model 50 times in "
            "100. A picks the full model\u2019s every time. Drafts brought 7 of B\u2019s 100 tokens sooner; choose "
            "none to compare without them.",
        ),
    ],
)  # fmt: skip
def test_a_verdict(plain: Page, a: dict[str, object], b: dict[str, object], timed: bool, said: str) -> None:
    """One sentence has bytes, speed and quality; figures that are missing or mean little are left out."""
    assert module(plain, "verdict", "return m.verdict(...argument)", [a, b, timed]) == said
