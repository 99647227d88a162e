"""Progress on stderr: a bar on a terminal, else a line now and then."""

import asyncio
import sys
import time
from types import TracebackType

from tqdm import tqdm  # type: ignore[import-untyped]

from loadtest.sample import Sample

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_LINES = 10.0
# The counts come last, and the line fits into 80 columns.
BAR = "{desc} {bar} {elapsed}{postfix}"


class Progress:
    """Counts requests and tokens during a run. It is an async context manager.

    total: the number of requests; None if the limit is a time.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total = what, total
        self._sent = self._done = self._failed = self.tokens = 0
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total, desc=what, leave=False, disable=not sys.stderr.isatty(), bar_format=BAR, dynamic_ncols=True
        )
        self._ticking: asyncio.Task[None] | None = None

    def sent(self) -> None:
        self._sent += 1

    def pieces(self, count: int) -> None:
        """Count each piece as one token, until the server tells its own count."""
        self.tokens += count

    def ended(self, sample: Sample, pieces: int) -> None:
        self._done += 1
        self._failed += not sample.answered
        self.tokens += (sample.tokens or pieces) - pieces
        self._bar.update(1)

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        of = f" of {self._total}" if self._total else ""
        return (
            f"{self._sent}{of} sent, {self._sent - self._done} running, {self._done - self._failed} answered, "
            f"{self._failed} failed, {self.tokens / seconds:.1f} tokens/s"
        )

    async def __aenter__(self) -> "Progress":
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._ticking:
            self._ticking.cancel()
        self._bar.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            if not self._bar.disable:
                self._bar.set_postfix_str(str(self))
            elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                print(f"{self._what}: {self}", file=sys.stderr, flush=True)
