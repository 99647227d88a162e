"""Writes folders into the user's cache: each is complete or missing, and its name identifies its source."""

import os
import shutil
from collections.abc import Callable
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from griffin.model.checkpoint.gguf_file import parts
from griffin.model.checkpoint.whole import weight_files
from griffin.model.guard import state

# Files up to this size are identified by their content, larger ones by place and times.
HASHED_UP_TO_BYTES = 2**29


def folder_identity(folder: Path) -> str:
    """A name for a checkpoint's folder by place and times: hashing all weights takes as long as reading them."""
    files = sorted([*weight_files(folder), folder / "config.json"])
    states = [(file.name, state(file.stat())) for file in files]
    return blake2b(f"{folder.resolve()} {states}".encode(), digest_size=6).hexdigest()


def source_identity(path: Path) -> str:
    """A name for a checkpoint: a folder, or a GGUF file with its parts."""
    if path.is_dir():
        return folder_identity(path)
    return blake2b(f"{[file_identity(part) for part in parts(path)]}".encode(), digest_size=6).hexdigest()


def file_identity(path: Path) -> str:
    """A name for a file: by its content, so that copies share it; for large files by place and times."""
    found = path.stat()
    if found.st_size > HASHED_UP_TO_BYTES:
        return f"{path} {state(found)}"
    with path.open("rb") as file:
        return file_digest(file, "blake2b").hexdigest()


def write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """Fill a folder, then rename it to ``target``, so that no reader finds half of it. The caller holds the lock."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as written:
                # The rename must not reach the disk before the contents do.
                os.fsync(written.fileno())
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
