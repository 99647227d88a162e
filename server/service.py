"""What all routes share: the settings, the metrics, and the model once it is loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time

import griffin
from server.errors import ModelLoading, ModelNotFound, ServerDraining
from server.metrics import Metrics
from server.settings import Settings
from server.text import Tokenizer
from server.worker import SHUTTING_DOWN, EngineLike, Workers

logger = logging.getLogger("griffin")

# How long a start from a warm cache takes, about.
LOADING_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader returns: a name, a tokenizer, and an engine for each worker."""

    name: str
    tokenizer: Tokenizer
    engines: Sequence[EngineLike]
    description: str = ""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that answers."""

    name: str
    tokenizer: Tokenizer
    workers: Workers
    created: int = field(default_factory=lambda: int(time()))


class Service:
    """One per app."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.loaded: ServedModel | None = None
        self.failure: str | None = None
        self.draining = False

    def serve(self, loaded: Loaded) -> None:
        """From now on the model answers."""
        workers = Workers(loaded.engines, self.settings.queue_size)
        accounting = workers.engine.accounting
        self.loaded = ServedModel(loaded.name, loaded.tokenizer, workers)
        self.metrics.watch(
            loaded.name,
            accounting.total,
            accounting.feed_forward,
            running=lambda: workers.running,
            waiting=lambda: workers.waiting,
        )

    def model(self, name: str | None = None) -> ServedModel:
        """The model a request asks for.

        Raises:
            ServerDraining: no model is, from here on.
            ModelLoading: it is not there yet.
            ModelNotFound: another one is served.
        """
        if self.draining:
            raise ServerDraining(SHUTTING_DOWN, 1)
        if self.loaded is None:
            raise ModelLoading("the model is still loading; try again in a few seconds", LOADING_RETRY_S)
        if name is not None and name != self.loaded.name:
            raise ModelNotFound(name, self.loaded.name)
        return self.loaded

    def drain(self) -> None:
        """Refuse what comes; finish what was accepted."""
        self.draining = True
        if self.loaded is not None:
            self.loaded.workers.drain()

    def close(self) -> None:
        """Give up what is not finished."""
        if self.loaded is not None:
            self.loaded.workers.close()

    def join(self, timeout_s: float) -> None:
        if self.loaded is not None:
            self.loaded.workers.join(timeout_s)


def load(settings: Settings) -> Loaded:
    """The real loader: takes seconds.

    Raises:
        GriffinError: one line that says why there is no model.
    """
    checkpoint = griffin.load(
        settings.model, dtype=settings.dtype, device=settings.device, cache_dir=settings.cache_dir
    )
    engines = griffin.build_engines(
        checkpoint.model,
        settings.workers,
        context_length=settings.max_model_len,
        prefill_chunk=settings.prefill_chunk,
    )
    context = engines[0].context_length
    if settings.max_model_len and context < settings.max_model_len:
        logger.warning("--max-model-len %d is more than the model has: %d", settings.max_model_len, context)
    name = settings.served_model_name or checkpoint.name
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    return Loaded(name, checkpoint.tokenizer, engines, f"{checkpoint.model.device}, {dtype}")
