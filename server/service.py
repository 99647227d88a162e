"""What all routes share: the settings, the metrics, and the model once it is loaded."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

from server.errors import ApiError, ModelLoading, ServerDraining
from server.loader import Found, Loaded, find, load
from server.metrics import Metrics
from server.models import LOADING_RETRY_S, Models
from server.protocol.fields import SparsityChoice
from server.served import ServedModel
from server.settings import Settings


async def never() -> None:
    """Wait forever."""
    await asyncio.Event().wait()


class Service:
    """One for each app. Its first model is loading, or is loaded, or ``failure`` says why it cannot be."""

    def __init__(
        self,
        settings: Settings,
        loader: Callable[[Settings], Loaded] = load,
        finder: Callable[[Settings], Found] = find,
    ) -> None:
        """
        Args:
            loader, finder: see ``Models``.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.models = Models(settings, self.metrics, loader, finder)
        self.failure: str | None = None
        self._drains_since: float | None = None
        # Whether unfinished requests have been cancelled.
        self.closed = False
        self.metrics.ready.set_function(self._is_ready)
        self.metrics.draining.set_function(lambda: self.draining_s)
        self.metrics.drain_timeout.set(settings.drain_timeout)
        self.metrics.queue_size.set(settings.queue_size)

    def require_open(self) -> None:
        """Check that the server accepts requests.

        Raises:
            ServerDraining: the server is shutting down.
            ModelLoading: the first model is not loaded yet.
        """
        if self.draining:
            raise ServerDraining()
        self.require_started()

    def require_started(self) -> None:
        """
        Raises:
            ModelLoading: the first model is not loaded yet.
        """
        if not self.models.started:
            raise ModelLoading("the model is still loading; try again in a few seconds", LOADING_RETRY_S)

    def require_room(self) -> None:
        """Check that a request can be queued. Raises like ``require_open``, or QueueFull or EngineFailed.

        With several models, the queue is known only once the request is read.
        """
        self.require_open()
        if len(self.models.slots) == 1:
            self.models.loaded[0].workers.queue.require_room()

    @asynccontextmanager
    async def resolve(
        self,
        name: str | None,
        deadline: float | None = None,
        gone: Callable[[], Awaitable[object]] = never,
    ) -> AsyncIterator[tuple[ServedModel, SparsityChoice | None]]:
        """The model that a request names, directly or by an alias, and the alias's sparsity. The model stays loaded
        until the block ends, and as long as a job is in its queue.

        Args:
            deadline, gone: see ``Models.use``; a deadline of None: ``--request-timeout`` from now.

        Raises:
            ServerDraining, ModelLoading: see ``require_open``.
            ModelNotFound, InvalidField: see ``Models.find``.
            ModelUnavailable: see ``Models.use``.
            RequestTimeout, ClientLeft: see ``Models.use``.
        """
        self.require_open()
        slot, sparsity = self.models.find(name)
        if deadline is None:
            deadline = monotonic() + self.settings.request_timeout
        async with self.models.use(slot, deadline, gone) as model:
            yield model, sparsity

    def require_ready(self) -> str:
        """The name of the model used last. Raises like ``require_open``, or EngineFailed."""
        self.require_open()
        for model in self.models.loaded:
            model.workers.recovery.require_health()
        return next((model.name for model in self.models.loaded), self.models.slots[0].name)

    def require_hope(self) -> None:
        """Raises EngineFailed if only a restart of the process may help."""
        for model in self.models.loaded:
            model.workers.recovery.require_hope()

    def _is_ready(self) -> bool:
        try:
            self.require_ready()
        except ApiError:
            return False
        return True

    @property
    def draining(self) -> bool:
        return self._drains_since is not None

    @property
    def draining_s(self) -> float:
        """Seconds since the server stopped taking requests; 0 while it takes them."""
        return 0.0 if self._drains_since is None else monotonic() - self._drains_since

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return all(model.workers.queue.idle for model in self.models.loaded)

    def drain(self) -> None:
        """Refuse new requests; finish those that were accepted."""
        self._drains_since = monotonic()
        self.models.drain()
        for model in self.models.loaded:
            model.workers.queue.drain()

    def close(self) -> None:
        """Cancel requests that are not finished."""
        self.closed = True
        self.models.drain()
        for model in self.models.loaded:
            model.close()

    def join(self, timeout_s: float) -> None:
        """Call after ``close``: wait for the workers' threads, and write what is to be kept."""
        for model in self.models.loaded:
            model.join(timeout_s)
