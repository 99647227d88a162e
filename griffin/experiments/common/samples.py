"""Samples: local data sets. Each is a JSONL file, whose lines are objects with these fields:

name            fields
hellaswag       ctx ("activity: context"), endings[4], label
piqa            goal, sol1, sol2, label
copa            premise, question (cause or effect), choice1, choice2, label
arc_easy        question, choices[], label (the same for arc_challenge)
boolq           passage, question, label (1 is yes)
xsum            document, summary (the same for cnn_dm)
coqa            story, questions[], answers[][] (the accepted answers to each question)
qasper          context, question, answers[]
humaneval       prompt, test, entry_point
functions       prompt, canonical_solution, entry_point (in humaneval.jsonl)
chats           category, turns[] (in chat_prompts.jsonl)
wikitext        title, text (in wikitext2_raw_test.jsonl)
books           title, text
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, Literal

from griffin.errors import GriffinError

Sample = dict[str, Any]

FILES = {"wikitext": "wikitext2_raw_test", "books": "books", "functions": "humaneval", "chats": "chat_prompts"}
FIELDS: dict[str, dict[str, type]] = {
    "hellaswag": {"ctx": str, "endings": list, "label": int},
    "piqa": {"goal": str, "sol1": str, "sol2": str, "label": int},
    "copa": {"premise": str, "question": str, "choice1": str, "choice2": str, "label": int},
    "arc_easy": {"question": str, "choices": list, "label": int},
    "arc_challenge": {"question": str, "choices": list, "label": int},
    "boolq": {"passage": str, "question": str, "label": int},
    "xsum": {"document": str, "summary": str},
    "cnn_dm": {"document": str, "summary": str},
    "coqa": {"story": str, "questions": list, "answers": list},
    "qasper": {"context": str, "question": str, "answers": list},
    "humaneval": {"prompt": str, "test": str, "entry_point": str},
    "functions": {"prompt": str, "canonical_solution": str, "entry_point": str},
    "chats": {"category": str, "turns": list},
    "wikitext": {"title": str, "text": str},
    "books": {"title": str, "text": str},
}
KINDS = {str: "a text", list: "a list", int: "a whole number"}

Corpus = Literal["wikitext", "books"]


def read_samples(data: Path, name: str) -> list[Sample]:
    """All samples of a data set, from ``NAME.jsonl`` or ``NAME.jsonl.gz``.

    Raises:
        GriffinError: the file is missing, empty or not JSONL, or a line lacks a field; names the line.
    """
    path = find(data, name)
    samples = []
    try:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                samples.append(_checked(line, FIELDS[name], f"'{path}', line {number}"))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise GriffinError(f"cannot read '{path}': {error}") from error
    if not samples:
        raise GriffinError(f"'{path}' holds no samples; it needs one JSON object a line")
    return samples


def find(data: Path, name: str) -> Path:
    """The file of a data set.

    Raises:
        GriffinError: there is none.
    """
    stem = FILES.get(name, name)
    for path in (data / f"{stem}.jsonl", data / f"{stem}.jsonl.gz"):
        if path.is_file():
            return path
    fields = ", ".join(FIELDS[name])
    raise GriffinError(f"--data: '{data}' has no {stem}.jsonl (one JSON object a line with: {fields})")


def _lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    # Not splitlines(): JSON allows other line breaks inside a text.
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().split("\n")


def _checked(line: str, fields: dict[str, type], where: str) -> Sample:
    sample = json_object(line, where)
    for field, kind in fields.items():
        if field not in sample:
            raise GriffinError(f"{where}: the field '{field}' is missing; it needs {', '.join(fields)}")
        # In Python true is an int too.
        if not isinstance(sample[field], kind) or isinstance(sample[field], bool):
            raise GriffinError(f"{where}: the field '{field}' is not {KINDS[kind]}")
    return sample


def json_object(line: str, where: str, example: str = "") -> Sample:
    """The JSON object in a line.

    Args:
        where: file and line, for the error.
        example: a right line, for the error.

    Raises:
        GriffinError: the line is not a JSON object.
    """
    wrong = f"{where}: no JSON object" + (f", as {example}" if example else "")
    try:
        found = json.loads(line)
    except ValueError as error:
        raise GriffinError(f"{wrong}: {error}") from None
    if not isinstance(found, dict):
        raise GriffinError(wrong)
    return found
