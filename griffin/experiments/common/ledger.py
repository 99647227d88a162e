"""Ledger: a file of computed answers. Each answer is kept at once, so that a stopped run continues where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from griffin.errors import GriffinError

# Part of every key. Raise it when a change of the code changes the answer to an old question.
EDITION = 1

Json = Any


class Ledger:
    """Answers by their questions, one JSON line each. Processes can share the file: a line is written in one piece."""

    def __init__(self, path: Path, subject: Mapping[str, Json]) -> None:
        """
        Args:
            path: the file; it need not exist.
            subject: what all questions are about (a model, its weights, a dtype). It is part of every key.

        Raises:
            GriffinError: the file cannot be read.
        """
        self._path, self._subject = path, dict(subject)
        self._answers: dict[str, Json] = {}
        self._torn = False
        try:
            text = path.read_text(errors="replace") if path.exists() else ""
        except OSError as error:
            raise GriffinError(f"cannot read '{path}': {error.strerror}") from error
        for line in text.splitlines():
            # If a process was killed, its last line may be incomplete.
            try:
                record = json.loads(line)
                self._answers[record["key"]] = record["answer"]
            except (ValueError, KeyError, TypeError):
                continue
        self._torn = bool(text) and not text.endswith("\n")

    def get(self, question: Mapping[str, Json]) -> Json | None:
        """The answer, or None if it is unknown."""
        return self._answers.get(self._key(question))

    def put(self, question: Mapping[str, Json], answer: Json) -> None:
        """Keep an answer that JSON can hold. It must not be None.

        Raises:
            GriffinError: the file cannot be written.
        """
        key = self._key(question)
        self._answers[key] = answer
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write("\n" + line if self._torn else line)
        except OSError as error:
            raise GriffinError(f"cannot write '{self._path}': {error.strerror}") from error
        self._torn = False

    def once(self, question: Mapping[str, Json], compute: Callable[[], Json]) -> Json:
        """The answer, computed only if it is unknown. It has always passed through JSON: tuples come back as lists."""
        known = self.get(question)
        if known is None:
            known = json.loads(json.dumps(compute()))
            self.put(question, known)
        return known

    def _key(self, question: Mapping[str, Json]) -> str:
        whole = {"edition": EDITION, "subject": self._subject, "question": dict(question)}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
