"""What is sent and when: arrivals, prompts and bodies."""

import asyncio
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from loadtest.arrivals import poisson
from loadtest.errors import LoadTestError
from loadtest.jobs import jobs
from loadtest.prompts import DIGITS, Tags, read_prompts, sized, tagged


def test_arrivals_come_from_the_seed() -> None:
    """They are the same each time; the first is at 0, and the mean gap is 1 / rate."""
    first = list(islice(poisson(4.0, 1), 4001))

    assert first == list(islice(poisson(4.0, 1), 4001))
    assert first[0] == 0.0
    assert first == sorted(first)
    assert first[-1] == pytest.approx(1000, rel=0.1)
    assert first[1:9] != list(islice(poisson(4.0, 2), 9))[1:]


def test_sparsities_take_turns() -> None:
    """All sparsities get a prompt before the next one, and the order changes."""
    work = list(islice(jobs({"max_tokens": 1}, {}, ["a", "b"], [0.0, 0.5], None, chat=False), 6))

    assert [(job.sparsity, job.body["prompt"]) for job in work] == [
        (0.0, "a"), (0.5, "a"), (0.5, "b"), (0.0, "b"), (0.5, "a"), (0.0, "a"),
    ]  # fmt: skip
    assert all(job.body["sparsity"] == job.sparsity for job in work)


@pytest.mark.parametrize("prompts", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("sparsities", [[0.0, 0.5], [0.0, 0.25, 0.5]])
def test_each_sparsity_is_first_equally_often(prompts: int, sparsities: list[float | None]) -> None:
    """Each sparsity is first equally often, because the first one may find the machine in another state."""
    rounds, width = prompts * len(sparsities), len(sparsities)
    work = list(islice(jobs({}, {}, [str(n) for n in range(prompts)], sparsities, None, chat=False), rounds * width))
    openings = Counter((job.body["prompt"], job.sparsity) for job in work[::width])

    assert set(openings.values()) == {1}
    assert len(openings) == prompts * width


def test_prompts_begin_with_numbers_of_their_own() -> None:
    """So no prefix cache finds a prompt, and all have the same length."""
    work = list(islice(jobs({}, {}, ["rain"], [0.0, 0.5], Tags(7), chat=False), 50))
    prompts = {job.body["prompt"] for job in work}

    assert len(prompts) == 50
    assert all(prompt[:DIGITS].isdecimal() and prompt[DIGITS:] == " rain" for prompt in prompts)


def test_tags_in_messages() -> None:
    """The tag is in the first message's content, also if that is a list of parts."""
    parts = [{"type": "text", "text": "hi"}]

    assert tagged([{"role": "user", "content": "hi"}], "1 ") == [{"role": "user", "content": "1 hi"}]
    assert tagged([{"role": "user", "content": parts}], "1 ") == [
        {"role": "user", "content": [{"type": "text", "text": "1 "}, *parts]}
    ]


def test_fields_of_a_body() -> None:
    """Without a sparsity there is no such field; given fields win, and null removes one."""
    template = {"max_tokens": 4, "seed": 0}
    job = next(jobs(template, {"seed": None, "max_tokens": 8, "top_p": 0.5}, ["a"], [None], None, chat=True))

    assert job.body == {"max_tokens": 8, "top_p": 0.5, "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize("target", [5, 6, 7, 8, 50, 333])
def test_prompts_of_a_length(target: int) -> None:
    """The length is exact for a server that counts 1 for the start, 3 for a long word and 1 for others."""

    async def count(text: str) -> int | None:
        return 1 + sum(3 if len(word) > 5 else 1 for word in text.split())

    found = asyncio.run(sized(target, "12345678 ", count))

    assert found.tokens == target


def test_prompts_too_short_and_uncounted() -> None:
    """The error names the shortest length. Without a count, the number of words is estimated."""

    async def count(text: str) -> int | None:
        return 9 if text else None

    async def uncounted(text: str) -> int | None:
        return None

    with pytest.raises(LoadTestError, match="shortest prompt here has 9 tokens"):
        asyncio.run(sized(8, "1 ", count))
    found = asyncio.run(sized(100, "1 ", uncounted))
    assert found.tokens is None
    assert len(found.text.split()) == 75


def test_prompts_from_files(tmp_path: Path) -> None:
    """One prompt a line; a conversation loses its last answer, which the server must write."""
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo\u2028still two\n")
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "one"}\n{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    )

    assert read_prompts(tmp_path / "a.txt") == ["one", "two\u2028still two"]
    assert read_prompts(tmp_path / "a.jsonl") == ["one", [{"role": "user", "content": "q"}]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n", "holds no prompts"),
        ("a.csv", "a", "ends neither"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 1}', "line 2: \"prompt\" is not a text"),
        ("a.jsonl", '{"text": "a"}', "line 1: write an object with either"),
        ("a.jsonl", '{"messages": ["a"]}', "not a list of objects"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "half a character"),
        ("a.jsonl", '{"messages": []}', "nothing to answer"),
    ],
)  # fmt: skip
def test_invalid_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    """The error names the line."""
    (tmp_path / name).write_text(content)

    with pytest.raises(LoadTestError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(LoadTestError, match=r"missing\.txt': No such file"):
        read_prompts(tmp_path / "missing.txt")
