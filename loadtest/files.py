"""Files that are written completely or not at all."""

import os
import tempfile
from pathlib import Path

from loadtest.errors import LoadTestError


def write_whole(path: Path, content: str) -> None:
    """Write a file completely or not at all.

    Raises:
        LoadTestError: the file cannot be written.
    """
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write(content)
            # Temporary files are private, and this one should not be.
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LoadTestError(f"cannot write '{path}': {error.strerror}") from error
