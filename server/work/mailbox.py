"""Events of a job on their way from a worker's thread to the event loop, in order."""

import asyncio
from contextlib import suppress
from enum import Enum, auto
from typing import Generic, TypeVar

Event = TypeVar("Event")


class Silence(Enum):
    """No event has come for some time."""

    IDLE = auto()


class Mailbox(Generic[Event]):
    """Created on the event loop that reads it. Any thread may post."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    @property
    def unread(self) -> int:
        return self._events.qsize()

    def post(self, event: Event | Exception | None) -> None:
        """Post an event, an error that ends the job, or None, which ends it."""
        # If the loop has closed, nobody waits for the event.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, idle_s: float | None = None) -> Event | Silence | None:
        """The next event; IDLE if none came within ``idle_s`` seconds; None once the job is over or cancelled.

        Raises:
            Exception: the error that ended the job.
        """
        if self._events.empty():
            try:
                async with asyncio.timeout(idle_s):
                    event = await self._events.get()
            except TimeoutError:
                return Silence.IDLE
        else:
            event = self._events.get_nowait()
        if isinstance(event, Exception):
            raise event
        return event
