"""Results of an experiment: tables, claims, and files that are never half-written."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from griffin.errors import GriffinError


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text. The first columns hold words, the others hold figures.

    caption: a text above the table; may be empty.
    words: the number of columns that hold words.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1

    def text(self) -> str:
        """The table for a terminal."""
        lines = [self.heads, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.heads))]
        found = [self.caption] if self.caption else []
        for line in lines:
            cells = [
                f"{cell:<{width}}" if column < self.words else f"{cell:>{width}}"
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            found.append("  ".join(cells).rstrip())
        return "\n".join(found)

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        rule = ["---" if column < self.words else "---:" for column in range(len(self.heads))]
        lines = ["| " + " | ".join(map(escaped, line)) + " |" for line in (self.heads, *self.rows)]
        lines.insert(1, "| " + " | ".join(rule) + " |")
        return "\n".join([*([escaped(self.caption), ""] if self.caption else []), *lines])


@dataclass(frozen=True, slots=True)
class Claim:
    """A finding of the paper, and whether it holds here.

    paper: the finding, in a sentence.
    holds: None if this run cannot tell.
    here: the figures of this run that show it, in sentences.
    """

    paper: str
    holds: bool | None
    here: str


def percent(fraction: float, digits: int = 0) -> str:
    """A fraction in the project's form: 50 %."""
    return f"{fraction * 100:.{digits}f} %"


def escaped(text: str) -> str:
    """Text for Markdown, with its marks escaped, because a name, a path or a prompt may contain them."""
    for mark in "\\`*_[]<>|#&~":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ").replace("\r", " ")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Its directory is made if it is missing.

    Raises:
        GriffinError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
            # Temporary files are private, and this one should not be.
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise GriffinError(f"cannot write '{path}': {error.strerror}") from error


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write figures as JSON, with ``write_whole``."""
    write_whole(path, json.dumps(found, indent=1) + "\n")
