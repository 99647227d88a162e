"""Checksums of the files in a cached folder, so that damage is found before any number is used."""

import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from griffin.errors import LoadError

FILE = "checksums.json"
# Bytes that a thread reads at once.
PIECE = 2**24


def write(folder: Path) -> None:
    """Add the checksums of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): sums for path, sums in zip(files, _sums(files), strict=True)}
    (folder / FILE).write_text(json.dumps(found))


def require(folder: Path) -> None:
    """
    Raises:
        LoadError: a file has changed since it was written; names it.
        OSError: a file is missing.
    """
    try:
        expected = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, ValueError):
        raise LoadError(f"it has no {FILE}") from None
    for name, sums in zip(expected, _sums([folder / name for name in expected]), strict=True):
        if sums != expected[name]:
            raise LoadError(f"{name} is damaged")


def _sums(files: list[Path]) -> Iterator[list[int]]:
    """The checksums of each file, one for every piece."""
    with ThreadPoolExecutor() as pool:
        # Submit all pieces first, so that the threads work on all files.
        pieces = [[pool.submit(_sum, file, at) for at in range(0, file.stat().st_size, PIECE)] for file in files]
        for own in pieces:
            yield [piece.result() for piece in own]


def _sum(file: Path, start: int) -> int:
    with file.open("rb") as content:
        content.seek(start)
        return zlib.crc32(content.read(PIECE))
