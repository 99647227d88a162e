"""Room: models come and go one at a time, so that those that are loaded fit into memory."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import griffin
from griffin.errors import GriffinError
from server.errors import ModelUnavailable, ServerDraining
from server.loader import Loaded
from server.metrics import Metrics
from server.served import ServedModel
from server.settings import Settings
from server.slot import Slot
from server.work.shadow import Shadows
from server.work.workers import Workers

logger = logging.getLogger("griffin")

T = TypeVar("T")

# Seconds between checks whether a model's last request has ended.
POLL_S = 0.02
# Seconds for the threads of a model that is unloaded: each ends within one token or one prompt chunk.
LAST_TOKEN_S = 60
# Seconds before a model that could not be loaded is tried again.
BROKEN_S = 30


class Room:
    """Loads models, and unloads others for them. Used on the event loop only.

    drains: set once no model is to be loaded any more.
    """

    def __init__(
        self, slots: Sequence[Slot], settings: Settings, metrics: Metrics, loader: Callable[[Settings], Loaded]
    ) -> None:
        """
        Args:
            slots: all models that may be loaded.
            loader: gives a model; runs in a thread of its own.
        """
        self.drains = asyncio.Event()
        self._slots, self._settings, self._metrics, self._loader = slots, settings, metrics, loader
        # In the order in which they were asked for.
        self._one_change = asyncio.Lock()
        self._trimming: asyncio.Task[None] | None = None

    async def change_to(self, slot: Slot) -> None:
        """Load a model, when those that were asked for before it have been.

        Raises:
            ModelUnavailable: it could not be loaded.
            ServerDraining: the server is on its way down.
        """
        try:
            async with self._one_change:
                await self._make_room(slot)
                await self.load(slot)
        except (ServerDraining, asyncio.CancelledError):
            raise
        except Exception as error:
            if isinstance(error, GriffinError):
                logger.error("%s could not be loaded: %s", slot.name, error)
            else:
                logger.exception("%s could not be loaded", slot.name)
            # Each try may cost another model its place.
            slot.broken_until = time.monotonic() + BROKEN_S
            raise ModelUnavailable(slot.name) from None
        finally:
            slot.coming = None
        if self._victim(slot) is not None:
            # It takes more than its files told. Whoever waits for it need not wait for that.
            self._trimming = asyncio.create_task(self._trim(slot))

    async def _trim(self, slot: Slot) -> None:
        with suppress(ServerDraining):
            async with self._one_change:
                await self._make_room(slot)

    async def load(self, slot: Slot) -> Loaded:
        """Load a model for which there is room."""
        loaded = await in_thread("loader", self._loader, slot.settings)
        self.serve(slot, loaded)
        return loaded

    def serve(self, slot: Slot, loaded: Loaded) -> None:
        """From now on the model answers."""
        restarted = self._metrics.worker_restarts.labels(loaded.name)
        shadows = Shadows(self._settings.shadow_share, self._metrics, loaded.name)
        workers = Workers(loaded.engines, self._settings.queue_size, restarted.inc, shadows)
        slot.served, slot.used = ServedModel.of(loaded, workers), time.monotonic()
        slot.names, slot.bytes = slot.served.names, loaded.bytes or slot.bytes
        if loaded.pass_tokens is not None:
            # Loaded again, it must round as before.
            slot.settings = slot.settings.model_copy(update={"prompt_pass_tokens": loaded.pass_tokens})
        accounting = workers.engine.accounting
        self._metrics.watch(
            loaded.name,
            accounting.total,
            accounting.feed_forward,
            accounting.weight_bytes,
            len(loaded.engines),
            running=slot.running,
            waiting=slot.waiting,
            loaded=lambda: slot.served is not None,
        )
        if self.drains.is_set():
            workers.queue.drain()

    async def _make_room(self, slot: Slot) -> None:
        """Unload models, those first that were asked for least recently, until this one fits.

        Raises:
            ServerDraining: the server is on its way down.
        """
        while (victim := self._victim(slot)) is not None:
            await self._unload(victim)
        if self.drains.is_set():
            raise ServerDraining()

    def _victim(self, slot: Slot) -> Slot | None:
        others = [each for each in self._slots if each.served is not None and each is not slot]
        limit = self._settings.memory_limit_bytes
        # Of a model whose files are not here yet nothing is known.
        known = slot.bytes > 0 and limit is not None
        if not others or (known and sum(each.bytes for each in (*others, slot)) <= (limit or 0)):
            return None
        return min(others, key=lambda each: each.used)

    async def _unload(self, slot: Slot) -> None:
        """When its last request has ended. Meanwhile requests for it wait until it is loaded again."""
        while slot.takers and not self.drains.is_set():
            # It was loaded for these, and none of them has it yet.
            await asyncio.sleep(POLL_S)
        slot.leaving = True
        try:
            assert slot.served is not None
            queue = slot.served.workers.queue
            while slot.users or slot.served.answers or queue.busy():
                await asyncio.sleep(POLL_S)
                if self.drains.is_set():
                    raise ServerDraining()
            slot.served.close()
            await asyncio.to_thread(slot.served.join, LAST_TOKEN_S)
            slot.served = None
        finally:
            slot.leaving = False
        await asyncio.to_thread(griffin.give_memory_back)
        logger.info("%s was unloaded: another model needs its memory", slot.name)


async def in_thread(name: str, work: Callable[[Settings], T], settings: Settings) -> T:
    """Work in a daemon: a server told to stop does not wait for a checkpoint."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type]  # a value, as there is no error
        else:
            result.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = work(settings)
        except BaseException as raised:
            error = raised
        # The loop may have closed meanwhile; then nobody needs the model.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await result
