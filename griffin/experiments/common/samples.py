"""Local data: JSONL files, one for each data set, each line an object with the fields that are wanted of it.

name            fields
hellaswag       ctx ("activity: context"), endings[4], label
piqa            goal, sol1, sol2, label
copa            premise, question (cause or effect), choice1, choice2, label
arc_easy        question, choices[], label (arc_challenge likewise)
boolq           passage, question, label (1 is yes)
xsum            document, summary (cnn_dm likewise)
coqa            story, questions[], answers[][] (for each question those accepted)
qasper          context, question, answers[]
wikitext        title, text: wikitext2_raw_test.jsonl
books           title, text
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, Literal

from griffin.errors import GriffinError

Sample = dict[str, Any]

FILES = {"wikitext": "wikitext2_raw_test", "books": "books"}
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
    "wikitext": {"title": str, "text": str},
    "books": {"title": str, "text": str},
}
KINDS = {str: "a text", list: "a list", int: "a whole number"}

Corpus = Literal["wikitext", "books"]


def read_samples(data: Path, name: str) -> list[Sample]:
    """All lines of a data set: ``NAME.jsonl``, or ``NAME.jsonl.gz``.

    Raises:
        GriffinError: the file is missing, empty or no JSONL, or a line lacks a field; names the line.
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
    """
    Raises:
        GriffinError: there is no such file.
    """
    stem = FILES.get(name, name)
    for path in (data / f"{stem}.jsonl", data / f"{stem}.jsonl.gz"):
        if path.is_file():
            return path
    fields = ", ".join(FIELDS[name])
    raise GriffinError(f"--data: '{data}' has no {stem}.jsonl (one JSON object a line with: {fields})")


def _lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    # Not splitlines: a text may hold other line breaks, which JSON leaves as they are.
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().split("\n")


def _checked(line: str, fields: dict[str, type], where: str) -> Sample:
    sample = json_object(line, where)
    for field, kind in fields.items():
        if field not in sample:
            raise GriffinError(f"{where}: the field '{field}' is missing; it needs {', '.join(fields)}")
        # JSON's true is an int to Python.
        if not isinstance(sample[field], kind) or isinstance(sample[field], bool):
            raise GriffinError(f"{where}: the field '{field}' is not {KINDS[kind]}")
    return sample


def json_object(line: str, where: str, example: str = "") -> Sample:
    """
    Raises:
        GriffinError: the line is none; says where, and what one looks like if there is an example.
    """
    wrong = f"{where}: no JSON object" + (f", as {example}" if example else "")
    try:
        found = json.loads(line)
    except ValueError as error:
        raise GriffinError(f"{wrong}: {error}") from None
    if not isinstance(found, dict):
        raise GriffinError(wrong)
    return found
