"""What all routes share: the settings, the metrics, and the model once it is loaded."""

from time import monotonic

from server.errors import ApiError, ModelLoading, ServerDraining
from server.loader import Loaded
from server.metrics import Metrics
from server.protocol.fields import SparsityChoice
from server.served import ServedModel
from server.settings import Settings
from server.work.shadow import Shadows
from server.work.workers import Workers

# How long a start from a warm cache takes, about.
LOADING_RETRY_S = 5


class Service:
    """One for each app. The model is ``loaded``, or has not been yet, or there is a ``failure`` that says why not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.loaded: ServedModel | None = None
        self.failure: str | None = None
        self._drains_since: float | None = None
        # Whether requests that were not finished have been given up.
        self.closed = False
        self.metrics.ready.set_function(self._is_ready)
        self.metrics.draining.set_function(lambda: self.draining_s)
        self.metrics.drain_timeout.set(settings.drain_timeout)
        self.metrics.queue_size.set(settings.queue_size)

    def serve(self, loaded: Loaded) -> None:
        """From now on the model answers."""
        restarted = self.metrics.worker_restarts.labels(loaded.name)
        shadows = Shadows(self.settings.shadow_share, self.metrics, loaded.name)
        workers = Workers(loaded.engines, self.settings.queue_size, restarted.inc, shadows)
        accounting = workers.engine.accounting
        self.loaded = ServedModel.of(loaded, workers)
        self.metrics.watch(
            loaded.name,
            accounting.total,
            accounting.feed_forward,
            accounting.weight_bytes,
            len(loaded.engines),
            running=lambda: workers.queue.running,
            waiting=lambda: workers.queue.waiting,
        )

    def model(self) -> ServedModel:
        """The model that takes requests.

        Raises:
            ServerDraining: the server is on its way down.
            ModelLoading: the model is not there yet.
        """
        if self.draining:
            raise ServerDraining()
        return self.known()

    def known(self) -> ServedModel:
        """The model, also after it has stopped taking requests: for questions about what it did.

        Raises:
            ModelLoading: the model is not there yet.
        """
        if self.loaded is None:
            raise ModelLoading("the model is still loading; try again in a few seconds", LOADING_RETRY_S)
        return self.loaded

    def require_room(self) -> None:
        """Raises like ``model``, or QueueFull or EngineFailed: whether a request can be queued at all."""
        self.model().workers.queue.require_room()

    def resolve(self, name: str | None) -> tuple[ServedModel, SparsityChoice | None]:
        """The model that a request asks for by one of its names or an alias, and the sparsity of an alias.

        Raises:
            ServerDraining, ModelLoading: see ``model``.
            ModelNotFound, InvalidField: see ``ServedModel.sparsity_of``.
        """
        model = self.model()
        return model, model.sparsity_of(name)

    def require_ready(self) -> str:
        """The name of the model that answers; raises like ``model``, or EngineFailed."""
        model = self.model()
        model.workers.recovery.require_health()
        return model.name

    def require_hope(self) -> None:
        """Raises EngineFailed: only a new process may help."""
        if self.loaded is not None:
            self.loaded.workers.recovery.require_hope()

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
        """Nothing is being generated and nothing waits."""
        return self.loaded is None or self.loaded.workers.queue.idle

    def drain(self) -> None:
        """Refuse new requests; finish those that were accepted."""
        self._drains_since = monotonic()
        if self.loaded is not None:
            self.loaded.workers.queue.drain()

    def close(self) -> None:
        """Give up requests that are not finished."""
        self.closed = True
        if self.loaded is not None:
            self.loaded.workers.close()
            self.loaded.grammars.close()

    def join(self, timeout_s: float) -> None:
        """After ``close``: wait for the workers' threads."""
        if self.loaded is not None:
            self.loaded.workers.join(timeout_s)
