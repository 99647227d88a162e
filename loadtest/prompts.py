"""Prompts: built with a given length, or read from a file. Tags make each one unique."""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError

# A text, or the messages of a conversation.
Prompt = str | list[dict[str, Any]]

# A meaningful text, because the prompt decides which neurons are kept.
PASSAGE = (
    "Rain falls when warm, moist air rises and cools. The water vapour in it condenses on tiny grains of dust and "
    "forms drops. The drops drift together and grow, and when they are too heavy for the air to hold they fall."
)
# One token in nearly every vocabulary.
FILLER = " so"
# For English text, if the server does not count tokens.
WORDS_PER_TOKEN = 0.75
DIGITS = 8


class Tags:
    """Numbers to begin prompts with. All have the same length, and a number rarely comes twice."""

    def __init__(self, nonce: int) -> None:
        self._numbers = random.Random(nonce)

    def next(self) -> str:
        return f"{self._numbers.randrange(10**DIGITS):0{DIGITS}d} "


def tagged(prompt: Prompt, tag: str) -> Prompt:
    """The prompt with the tag before it, so that no request finds its prompt in a server's prefix cache."""
    if isinstance(prompt, str):
        return tag + prompt
    first, *others = prompt
    content = first.get("content")
    if not isinstance(content, str):
        # The content has parts: add the tag as one more.
        return [{**first, "content": [{"type": "text", "text": tag}, *(content or [])]}, *others]
    return [{**first, "content": tag + content}, *others]


def words(count: int) -> str:
    return " ".join(islice(cycle(PASSAGE.split()), count))


@dataclass(frozen=True, slots=True)
class Sized:
    """A text and its number of tokens by the server's count. None: it does not count, and the length is an estimate."""

    text: str
    tokens: int | None


async def sized(target: int, start: str, count: Callable[[str], Awaitable[int | None]]) -> Sized:
    """A text that gives ``target`` tokens together with ``start`` before it.

    Args:
        count: the server's count of a text's tokens, or None.

    Raises:
        LoadTestError: even a prompt of one word is longer.
    """
    shortest = await count(start + words(1))
    if shortest is None:
        return _about(target)
    if shortest > target:
        raise LoadTestError(f"--prompt-tokens: {target} is too short; the shortest prompt here has {shortest} tokens")
    fits, too_many, tokens = 1, target + 1, shortest
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        found = await count(start + words(middle))
        if found is None:
            return _about(target)
        if found <= target:
            fits, tokens = middle, found
        else:
            too_many = middle
    text = words(fits) + FILLER * (target - tokens)
    return Sized(text, await count(start + text))


def _about(target: int) -> Sized:
    return Sized(words(max(1, round(target * WORDS_PER_TOKEN))), None)


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a .jsonl or .txt file.

    Raises:
        LoadTestError: the file cannot be read or has no prompts, or a line is not a prompt; names the line.
    """
    if path.suffix not in (".jsonl", ".txt"):
        raise LoadTestError(f"'{path}' ends neither in .jsonl nor in .txt")
    try:
        # Split at newlines only, as editors do. utf-8-sig: editors on Windows put a mark at the beginning.
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise LoadTestError(f"cannot read '{path}': {reason}") from None
    full = [(f"'{path}', line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    found: list[Prompt] = [line if path.suffix == ".txt" else _from_json(where, line) for where, line in full]
    if not found:
        raise LoadTestError(f"'{path}' holds no prompts; write one a line")
    return found


def sendable(value: object) -> bool:
    """Whether a request can hold this value. Python's JSON allows NaN and half a character; a request does not."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def require_endpoint(prompts: Sequence[Prompt], endpoint: str) -> None:
    """
    Raises:
        LoadTestError: a prompt is a conversation, but the endpoint takes texts.
    """
    if endpoint != "chat" and any(not isinstance(prompt, str) for prompt in prompts):
        raise LoadTestError("the file holds messages; add --endpoint chat")


def _from_json(where: str, line: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise LoadTestError(f'{where}: write an object with either "prompt" or "messages"')
    if not sendable(record):
        raise LoadTestError(f"{where}: holds half a character (a lone surrogate) or a value that is not a number")
    if "prompt" in record:
        if not isinstance(record["prompt"], str) or not record["prompt"]:
            raise LoadTestError(f'{where}: "prompt" is not a text')
        return str(record["prompt"])
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise LoadTestError(f'{where}: "messages" is not a list of objects')
    if not all(isinstance(message.get("content"), str | list | None) for message in messages):
        raise LoadTestError(f'{where}: the "content" of a message is a text, a list of parts, or null')
    # A logged conversation ends with the answer, which the server must write here.
    if messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    if not messages:
        raise LoadTestError(f'{where}: "messages" holds nothing to answer')
    return messages
