"""What an experiment leaves behind: tables for a terminal and for Markdown, and files that are never half-written."""

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
    """Cells as text. The first columns are words, the others are figures.

    caption: one line above it; may be empty.
    words: how many columns are words.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1

    def text(self) -> str:
        """For a terminal."""
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
        """As GitHub takes it."""
        rule = ["---" if column < self.words else "---:" for column in range(len(self.heads))]
        lines = ["| " + " | ".join(map(escaped, line)) + " |" for line in (self.heads, *self.rows)]
        lines.insert(1, "| " + " | ".join(rule) + " |")
        return "\n".join([*([escaped(self.caption), ""] if self.caption else []), *lines])


@dataclass(frozen=True, slots=True)
class Claim:
    """What the paper found, and whether it is so here.

    paper: as a sentence.
    holds: None where this run cannot tell.
    here: the figures that say so, as a sentence.
    """

    paper: str
    holds: bool | None
    here: str


def percent(fraction: float, digits: int = 0) -> str:
    """As the rest of the project writes it: 50 %."""
    return f"{fraction * 100:.{digits}f} %"


def escaped(text: str) -> str:
    """For Markdown: of a model's name, a path or a prompt nothing is taken for markup."""
    for mark in "\\`*_[]<>|#&~":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ").replace("\r", " ")


def write_whole(path: Path, content: str | bytes) -> None:
    """All of a file, or nothing.

    Raises:
        GriffinError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
            # Private otherwise, as temporary files are.
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise GriffinError(f"cannot write '{path}': {error.strerror}") from error


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Figures as a file, as ``write_whole``."""
    write_whole(path, json.dumps(found, indent=1) + "\n")
