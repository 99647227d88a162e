"""Prompts of a user, from a file: texts or messages, each with or without a completion to judge on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from griffin.errors import GriffinError
from griffin.experiments.common.samples import json_object
from griffin.experiments.common.texts import start_of

EXAMPLE = '{"prompt": "..."}'
SEPARATOR = "---"


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt as its file has it.

    where: file and line, for errors.
    prompt: a text, or the messages of a conversation.
    completion: the continuation to judge on; None: the full model writes one.
    """

    where: str
    prompt: str | list[dict[str, Any]]
    completion: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt as token ids. Prompts of the same ids are equal, even from different lines.

    completion: ids of the continuation to judge on; empty: the full model writes one.
    start: the number of ids that the tokenizer puts before any text (the BOS token).
    bare: a text was given, not messages, to a model that has a chat template.
    """

    ids: tuple[int, ...]
    completion: tuple[int, ...] = ()
    where: str = field(default="", compare=False)
    start: int = field(default=0, compare=False)
    bare: bool = field(default=False, compare=False)

    def last(self, length: int | None) -> "Case | None":
        """The prompt cut to ``length`` tokens: its start, which every prompt of the server has, and its last ones.

        Args:
            length: None leaves it whole.

        Returns:
            None if the prompt is shorter.
        """
        if length is None:
            return self
        if length > len(self.ids):
            return None
        return replace(self, ids=self.ids[: self.start] + self.ids[len(self.ids) - length + self.start :])


def read_entries(path: Path) -> list[Entry]:
    """All prompts of a .jsonl or .txt file.

    Raises:
        GriffinError: the file cannot be read or has no prompts, or a line is not a prompt; names the line.
    """
    if path.suffix not in READERS:
        raise GriffinError(f"--prompts: '{path}' ends neither in .jsonl nor in .txt")
    try:
        # utf-8-sig: editors on Windows put a mark at the beginning.
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise GriffinError(f"--prompts: '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GriffinError(f"--prompts: cannot read '{path}': {error}") from error
    entries = READERS[path.suffix](str(path), text.split("\n"))
    if not entries:
        raise GriffinError(f"--prompts: '{path}' holds no prompts; write one a line")
    return entries


def encode(entry: Entry, tokenizer: PreTrainedTokenizerBase) -> Case:
    """A prompt as the server encodes it: a text with the special tokens, a conversation by the chat template.

    Raises:
        GriffinError: it has no tokens, or the template refuses it; names the line.
    """
    if isinstance(entry.prompt, str):
        ids = tokenizer(entry.prompt)["input_ids"]
    else:
        # The template has already written the special tokens.
        ids = tokenizer(_conversation(entry, tokenizer), add_special_tokens=False)["input_ids"]
    if not ids:
        raise GriffinError(f"{entry.where}: the prompt has no tokens; write one, or remove the line")
    bare = isinstance(entry.prompt, str) and bool(tokenizer.chat_template)
    case = Case(tuple(ids), where=entry.where, start=_length_of_start(ids, tokenizer), bare=bare)
    if entry.completion is None:
        return case
    completion = tokenizer(entry.completion, add_special_tokens=False)["input_ids"]
    if len(completion) < 2:
        raise GriffinError(
            f"{entry.where}: the completion has {len(completion)} tokens, and the first is the full model's in any "
            "case; write a longer one, or leave it out"
        )
    return replace(case, completion=tuple(completion))


def _length_of_start(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids come from the tokenizer's start. A chat template may leave it out."""
    start = start_of(tokenizer)
    return len(start) if ids[: len(start)] == start else 0


def _conversation(entry: Entry, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise GriffinError(f"{entry.where}: this model has no chat template; write {EXAMPLE} instead of messages")
    try:
        text: str = tokenizer.apply_chat_template(entry.prompt, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GriffinError(f"{entry.where}: the model's chat template refuses the messages: {reason}") from error
    return text


def _from_json_lines(path: str, lines: list[str]) -> list[Entry]:
    return [_from_json(f"'{path}', line {n}", line) for n, line in enumerate(lines, start=1) if line.strip()]


def _from_json(where: str, line: str) -> Entry:
    record = json_object(line, where, EXAMPLE)
    if ("prompt" in record) == ("messages" in record):
        found = "both 'prompt' and 'messages'; keep" if "prompt" in record else "neither 'prompt' nor 'messages'; write"
        raise GriffinError(f"{where}: the object has {found} one of them")
    completion = None if record.get("completion") is None else _text(record, "completion", where)
    if "prompt" in record:
        return Entry(where, _text(record, "prompt", where), completion)
    messages = _messages(record["messages"], where)
    if messages[-1]["role"] == "assistant" and completion is None:
        # In logs of conversations the answer is the last message.
        completion = messages.pop()["content"]
    if not messages:
        raise GriffinError(f"{where}: 'messages' has an answer, but nothing that it answers")
    return Entry(where, messages, completion)


def _messages(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise GriffinError(f'{where}: \'messages\' is no list such as [{{"role": "user", "content": "..."}}]')
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value, start=1)]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """The message with its content as one text. Parts are joined, as in the server."""
    parts = message.get("content")
    if isinstance(parts, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        message = {**message, "content": "".join(_text(part, "text", where) for part in parts)}
    for name in ("role", "content"):
        _text(message, name, where)
    return message


def _text(record: Mapping[str, object], name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise GriffinError(f"{where}: the field '{name}' is {'not a text' if name in record else 'missing'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise GriffinError(f"{where}: the field '{name}' holds half a character (a lone surrogate)") from None
    return value


def _from_plain_text(path: str, lines: list[str]) -> list[Entry]:
    """One prompt a line. If the file has lines of only ``---``, these separate prompts of any number of lines."""
    if all(line.strip() != SEPARATOR for line in lines):
        return [Entry(f"'{path}', line {n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
    entries, first = [], 1
    for number, line in enumerate([*lines, SEPARATOR], start=1):
        if line.strip() == SEPARATOR:
            text = "\n".join(lines[first - 1 : number - 1]).strip("\n")
            if text.strip():
                entries.append(Entry(f"'{path}', line {first}", text))
            first = number + 1
    return entries


READERS: dict[str, Callable[[str, list[str]], list[Entry]]] = {".jsonl": _from_json_lines, ".txt": _from_plain_text}
