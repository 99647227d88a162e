"""Progress on stderr: a bar on a terminal, or else a line every few seconds."""

import sys
import time
from types import TracebackType

from tqdm import tqdm  # type: ignore[import-untyped]

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts to ``total`` steps. It is a context manager; the bar disappears at its end."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._last_line = time.monotonic()
        self._bar = tqdm(total=total, leave=False, disable=not sys.stderr.isatty())

    def begin(self, what: str) -> None:
        """Name the next step."""
        self._bar.set_description(what)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{self._done} of {self._total} done, next: {what}", file=sys.stderr, flush=True)

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        self._bar.update(steps)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
