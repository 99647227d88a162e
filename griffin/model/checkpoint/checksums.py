"""Checksums of the files in a cached folder: damage is found before a number is used, and not laid to the model."""

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
    """Add the checksums of all files that a folder holds now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): sums for path, sums in zip(files, _sums(files), strict=True)}
    (folder / FILE).write_text(json.dumps(found))


def require(folder: Path) -> None:
    """
    Raises:
        LoadError: a file is not as it was written; names it.
        OSError: one is not there.
    """
    try:
        expected = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, ValueError):
        raise LoadError(f"it has no {FILE}") from None
    for name, sums in zip(expected, _sums([folder / name for name in expected]), strict=True):
        if sums != expected[name]:
            raise LoadError(f"{name} is damaged")


def _sums(files: list[Path]) -> Iterator[list[int]]:
    """Each file's checksums, one for every piece."""
    with ThreadPoolExecutor() as pool:
        # All pieces first, so that the threads have work of every file.
        pieces = [[pool.submit(_sum, file, at) for at in range(0, file.stat().st_size, PIECE)] for file in files]
        for own in pieces:
            yield [piece.result() for piece in own]


def _sum(file: Path, start: int) -> int:
    with file.open("rb") as content:
        content.seek(start)
        return zlib.crc32(content.read(PIECE))
