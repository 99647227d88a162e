"""A user's own prompts, from a file: texts or messages, each with or without the continuation to judge on."""

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
    completion: the continuation to judge on; None leaves it to the full model.
    """

    where: str
    prompt: str | list[dict[str, Any]]
    completion: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt as token ids. Two of the same ids are equal, wherever they stand.

    completion: ids of the continuation to judge on; empty leaves it to the full model.
    start: how many of the ids are what the tokenizer puts before any text (the BOS token).
    """

    ids: tuple[int, ...]
    completion: tuple[int, ...] = ()
    where: str = field(default="", compare=False)
    start: int = field(default=0, compare=False)

    def last(self, length: int | None) -> "Case | None":
        """So many of its tokens, or all (None): its start, as the server would send it too, and its last ones.

        None if it has fewer.
        """
        if length is None:
            return self
        if length > len(self.ids):
            return None
        return replace(self, ids=self.ids[: self.start] + self.ids[len(self.ids) - length + self.start :])


def read_entries(path: Path) -> list[Entry]:
    """All prompts of a .jsonl or .txt file.

    Raises:
        GriffinError: the file cannot be read or holds no prompts, or a line is none; names the line.
    """
    if path.suffix not in READERS:
        raise GriffinError(f"--prompts: '{path}' ends neither in .jsonl nor in .txt")
    try:
        # A mark at the beginning, as editors on Windows leave it, is none of the text.
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
    """As the server would: a text with the tokenizer's special tokens, a conversation by the chat template.

    Raises:
        GriffinError: nothing is left of it as tokens, or the template refuses it; names the line.
    """
    if isinstance(entry.prompt, str):
        ids = tokenizer(entry.prompt)["input_ids"]
    else:
        # The template has written the special tokens already.
        ids = tokenizer(_conversation(entry, tokenizer), add_special_tokens=False)["input_ids"]
    if not ids:
        raise GriffinError(f"{entry.where}: the prompt has no tokens; write one, or take the line out")
    case = Case(tuple(ids), where=entry.where, start=_length_of_start(ids, tokenizer))
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
    """A template may leave out what the tokenizer puts before other texts."""
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
        # As logs of conversations have it: the answer is the last message.
        completion = messages.pop()["content"]
    if not messages:
        raise GriffinError(f"{where}: 'messages' has an answer, but nothing that it answers")
    return Entry(where, messages, completion)


def _messages(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise GriffinError(f'{where}: \'messages\' is no list such as [{{"role": "user", "content": "..."}}]')
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value, start=1)]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Its content as one text, also where it comes in parts, as the server joins them."""
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
    """One a line, or, where lines that are just ``---`` stand between them, of as many lines as they have."""
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
