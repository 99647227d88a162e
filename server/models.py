"""The models of this server: which one a request means, and the wait until it is loaded."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from griffin.errors import GriffinError
from server.errors import ClientLeft, ModelLoading, ModelNotFound, ModelUnavailable, RequestTimeout, ServerDraining
from server.loader import Found, Loaded
from server.metrics import Metrics
from server.protocol.fields import SparsityChoice
from server.room import Room, in_thread
from server.served import ServedModel, parse_sparsity
from server.settings import ALIAS, Settings
from server.slot import Slot

# Approximate seconds of a start from a warm cache.
LOADING_RETRY_S = 5


class Models:
    """Has a model loaded when a request asks for it. Used on the event loop only.

    slots: one for each, the first being the server's own. room: loads them.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        loader: Callable[[Settings], Loaded],
        finder: Callable[[Settings], Found],
    ) -> None:
        """
        Args:
            loader: gives a model; runs in a thread of its own.
            finder: finds a model's files and its names; runs there too.
        """
        self.slots = [Slot(each) for each in settings.each_model]
        self.room = Room(self.slots, settings, metrics, loader)
        self._settings, self._finder = settings, finder

    async def start(self) -> Loaded:
        """Find all models, and load the first.

        Raises:
            GriffinError: one line that says why there is no model.
        """
        if len(self.slots) > 1:
            for slot in self.slots:
                found = await in_thread(f"find {slot.name}", self._finder, slot.settings)
                slot.names, slot.bytes = found.names, found.bytes
            self._require_distinct_names()
            self._require_small_enough()
        return await self.room.load(self.slots[0])

    @property
    def loaded(self) -> list[ServedModel]:
        """Those that are, the one that was used last first."""
        return [slot.served for slot in sorted(self.slots, key=lambda slot: -slot.used) if slot.served is not None]

    @property
    def started(self) -> bool:
        """Whether the first model was loaded, so that requests are taken."""
        return any(slot.used for slot in self.slots)

    def find(self, name: str | None) -> tuple[Slot, SparsityChoice | None]:
        """The model of a name or an alias, and the sparsity of an alias. No name is the first model's.

        Raises:
            ModelNotFound: no model has that name.
            InvalidField: an alias whose sparsity is none.
        """
        if name is None:
            return self.slots[0], None
        if (own := self._named(name)) is not None:
            return own, None
        base, mark, number = name.rpartition(ALIAS)
        slot = self._named(base) if mark else None
        if slot is None:
            raise ModelNotFound(name, "', '".join(each for slot in self.slots for each in slot.names))
        return slot, parse_sparsity(number, "model")

    @asynccontextmanager
    async def use(
        self, slot: Slot, deadline: float, gone: Callable[[], Awaitable[object]]
    ) -> AsyncIterator[ServedModel]:
        """The model, loaded. It stays so until the end, and as long as a job is in its queue.

        Args:
            deadline: in seconds of ``time.monotonic``.
            gone: returns when nobody waits for it any more.

        Raises:
            ModelLoading: too many requests wait for a model already.
            ModelUnavailable: it could not be loaded, just now or a short time ago.
            RequestTimeout: it was not loaded in time.
            ClientLeft: nobody waits any more.
            ServerDraining: the server is on its way down.
        """
        while not slot.available:
            self._require_room_to_wait()
            if time.monotonic() < slot.broken_until:
                raise ModelUnavailable(slot.name)
            slot.takers += 1
            try:
                slot.coming = slot.coming or asyncio.create_task(self.room.change_to(slot))
                await self._until(slot.coming, deadline, gone)
            finally:
                slot.takers -= 1
        assert slot.served is not None
        slot.used = time.monotonic()
        slot.users += 1
        try:
            yield slot.served
        finally:
            slot.users -= 1

    def _require_room_to_wait(self) -> None:
        """
        Raises:
            ModelLoading: as many requests wait for models as may.
        """
        if sum(slot.takers for slot in self.slots) > self._settings.queue_size:
            raise ModelLoading(
                f"as many requests wait for a model to be loaded as may (queue_size={self._settings.queue_size}); "
                "try again later",
                LOADING_RETRY_S,
            )

    def drain(self) -> None:
        """No model is loaded from now on."""
        self.room.drains.set()

    def _named(self, name: str) -> Slot | None:
        return next((slot for slot in self.slots if name in slot.names), None)

    async def _until(
        self, coming: "asyncio.Task[None]", deadline: float, gone: Callable[[], Awaitable[object]]
    ) -> None:
        """Wait for a change to a model, which other requests may wait for too."""
        started = time.monotonic()
        drains, left = asyncio.ensure_future(self.room.drains.wait()), asyncio.ensure_future(gone())
        try:
            ends = (coming, drains, left)
            await asyncio.wait(ends, timeout=deadline - started, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                coming.result()
            elif drains.done():
                raise ServerDraining()
            elif left.done():
                raise ClientLeft()
            else:
                waited = deadline - started
                raise RequestTimeout(f"the model was not loaded within {waited:.0f} s, as long as the request may take")
        finally:
            drains.cancel()
            left.cancel()

    def _require_distinct_names(self) -> None:
        """
        Raises:
            GriffinError: two models have the same name.
        """
        seen: set[str] = set()
        for slot in self.slots:
            for name in slot.names:
                if name in seen:
                    raise GriffinError(f"two models are called {name}; give one another name: --model NAME={name}")
                seen.add(name)

    def _require_small_enough(self) -> None:
        """
        Raises:
            GriffinError: a model's files alone are larger than the limit.
        """
        limit = self._settings.memory_limit_bytes
        for slot in self.slots:
            if limit is not None and slot.bytes > limit:
                needed = f"{slot.name} needs {slot.bytes / 2**30:.1f} GiB by itself"
                raise GriffinError(
                    f"--memory-limit {self._settings.memory_limit:g}: {needed}; raise the limit, or leave the model out"
                )
