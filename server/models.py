"""The models of this server: which of them are loaded, and how one makes room for another."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import griffin
from griffin.errors import GriffinError
from server.errors import ClientLeft, ModelLoading, ModelNotFound, ModelUnavailable, RequestTimeout, ServerDraining
from server.loader import Found, Loaded
from server.metrics import Metrics
from server.protocol.fields import SparsityChoice
from server.served import ServedModel, parse_sparsity
from server.settings import ALIAS, Settings
from server.work.shadow import Shadows
from server.work.workers import Workers

logger = logging.getLogger("griffin")

T = TypeVar("T")

# Approximate seconds of a start from a warm cache.
LOADING_RETRY_S = 5
# Seconds between checks whether a model's last request has ended.
POLL_S = 0.02
# Seconds for the threads of a model that is unloaded: each ends within one token or one prompt chunk.
LAST_TOKEN_S = 60
# Seconds before a model that could not be loaded is tried again.
BROKEN_S = 30


@dataclass(eq=False, slots=True)
class Slot:
    """One model of ``--model``.

    settings: as if it were the server's only model.
    names: all that clients may use; empty until the only model of a server is loaded.
    bytes: of memory; those of its files until it was loaded once.
    served: the model, while it is loaded.
    used: when a request last asked for it, in seconds of ``time.monotonic``.
    leaving: it takes no further requests, and is unloaded when its last one has ended.
    takers: requests that wait until it is loaded.
    users: requests that have it and are not in its queue yet.
    broken_until: it could not be loaded, and is not tried before, in seconds of ``time.monotonic``.
    created: in Unix seconds.
    """

    settings: Settings
    names: Sequence[str] = ()
    bytes: int = 0
    served: ServedModel | None = None
    used: float = 0.0
    leaving: bool = False
    takers: int = 0
    users: int = 0
    broken_until: float = 0.0
    coming: "asyncio.Task[None] | None" = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """In metrics and messages."""
        return self.names[0] if self.names else self.settings.model

    @property
    def available(self) -> bool:
        return self.served is not None and not self.leaving

    @property
    def idle(self) -> bool:
        return self.served is None or self.served.workers.queue.idle

    def running(self) -> int:
        return 0 if self.served is None else self.served.workers.queue.running

    def waiting(self) -> int:
        return self.takers + (0 if self.served is None else self.served.workers.queue.waiting)


class Models:
    """Loads a model when a request asks for it. Used on the event loop only."""

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
        self._settings, self._metrics, self._loader, self._finder = settings, metrics, loader, finder
        # Models come and go one at a time, in the order in which they were asked for.
        self._one_change = asyncio.Lock()
        self._drains = asyncio.Event()
        self._trimming: asyncio.Task[None] | None = None

    async def start(self) -> Loaded:
        """Find all models, and load the first.

        Raises:
            GriffinError: one line that says why there is no model.
        """
        if len(self.slots) > 1:
            for slot in self.slots:
                found = await _in_thread(f"find {slot.name}", self._finder, slot.settings)
                slot.names, slot.bytes = found.names, found.bytes
            self._require_distinct_names()
            self._require_small_enough()
        return await self._load(self.slots[0])

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
                slot.coming = slot.coming or asyncio.create_task(self._change_to(slot))
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
        self._drains.set()

    def _named(self, name: str) -> Slot | None:
        return next((slot for slot in self.slots if name in slot.names), None)

    async def _until(
        self, coming: "asyncio.Task[None]", deadline: float, gone: Callable[[], Awaitable[object]]
    ) -> None:
        """Wait for a change to a model, which other requests may wait for too."""
        started = time.monotonic()
        drains, left = asyncio.ensure_future(self._drains.wait()), asyncio.ensure_future(gone())
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

    async def _change_to(self, slot: Slot) -> None:
        try:
            async with self._one_change:
                await self._make_room(slot)
                await self._load(slot)
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

    async def _load(self, slot: Slot) -> Loaded:
        loaded = await _in_thread("loader", self._loader, slot.settings)
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
        if self._drains.is_set():
            workers.queue.drain()

    async def _make_room(self, slot: Slot) -> None:
        """Unload models, those first that were asked for least recently, until this one fits.

        Raises:
            ServerDraining: the server is on its way down.
        """
        while (victim := self._victim(slot)) is not None:
            await self._unload(victim)
        if self._drains.is_set():
            raise ServerDraining()

    def _victim(self, slot: Slot) -> Slot | None:
        others = [each for each in self.slots if each.served is not None and each is not slot]
        limit = self._settings.memory_limit_bytes
        # Of a model whose files are not here yet nothing is known.
        known = slot.bytes > 0 and limit is not None
        if not others or (known and sum(each.bytes for each in (*others, slot)) <= (limit or 0)):
            return None
        return min(others, key=lambda each: each.used)

    async def _unload(self, slot: Slot) -> None:
        """When its last request has ended. Meanwhile requests for it wait until it is loaded again."""
        while slot.takers and not self._drains.is_set():
            # It was loaded for these, and none of them has it yet.
            await asyncio.sleep(POLL_S)
        slot.leaving = True
        try:
            assert slot.served is not None
            queue = slot.served.workers.queue
            while slot.users or slot.served.answers or queue.busy():
                await asyncio.sleep(POLL_S)
                if self._drains.is_set():
                    raise ServerDraining()
            slot.served.close()
            await asyncio.to_thread(slot.served.join, LAST_TOKEN_S)
            slot.served = None
        finally:
            slot.leaving = False
        await asyncio.to_thread(griffin.give_memory_back)
        logger.info("%s was unloaded: another model needs its memory", slot.name)

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


async def _in_thread(name: str, work: Callable[[Settings], T], settings: Settings) -> T:
    """In a daemon: a server told to stop does not wait for a checkpoint."""
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
