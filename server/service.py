"""What all routes share: the settings, the metrics, and the model once it is loaded."""

import asyncio
import gc
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any, TypeVar

import griffin
from griffin import Preparation
from griffin.errors import LoadError
from server.errors import ApiError, InvalidField, ModelLoading, ModelNotFound, ServerDraining
from server.metrics import Metrics
from server.protocol.fields import SparsityChoice
from server.settings import ALIAS, Settings, comma_separated
from server.text.logprobs import Vocabulary
from server.text.tokenizer import Tokenizer
from server.work.experts import RecentExperts
from server.work.job import EngineLike
from server.work.shadow import Shadows
from server.work.workers import Workers

logger = logging.getLogger("griffin")

T = TypeVar("T")

NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE]-?[0-9]{1,3})?")
LISTED_SPARSITIES = (0.25, 0.5, 0.75)
# In characters or tokens. More takes the tokenizer milliseconds, in which no other request's token could be sent.
LONG_TEXT = 20_000
# How long a start from a warm cache takes, about.
LOADING_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader returns: a name, a tokenizer, and an engine for each worker.

    other_names: clients may use them as well. sampling_defaults: see ``griffin.Checkpoint``.
    """

    name: str
    tokenizer: Tokenizer
    engines: Sequence[EngineLike]
    description: str = ""
    other_names: Sequence[str] = ()
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that answers. ``names``: all that clients may use; the first stands in metrics."""

    names: Sequence[str]
    tokenizer: Tokenizer
    workers: Workers
    vocabulary: Vocabulary
    sampling_defaults: Mapping[str, float]
    experts: RecentExperts = field(default_factory=RecentExperts)
    created: int = field(default_factory=lambda: int(time()))
    _one_at_a_time: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def worked_out(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """Tokenizing and the like: at once if it is little, in a thread if it would keep all others waiting.

        One at a time there, so that no crowd of long texts takes the processor from the engine.
        """
        if size < LONG_TEXT:
            return work(*arguments)
        async with self._one_at_a_time:
            return await asyncio.to_thread(work, *arguments)

    @property
    def name(self) -> str:
        return self.names[0]


def aliases(name: str) -> list[str]:
    """Those of a model's name that are listed; every sparsity has one."""
    return [f"{name}{ALIAS}{sparsity:g}" for sparsity in LISTED_SPARSITIES]


class Service:
    """One per app."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.loaded: ServedModel | None = None
        self.failure: str | None = None
        self._drains_since: float | None = None
        # Whether what was not finished has been given up.
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
        names = (loaded.name, *loaded.other_names)
        vocabulary, defaults = Vocabulary(loaded.tokenizer), loaded.sampling_defaults
        self.loaded = ServedModel(names, loaded.tokenizer, workers, vocabulary, defaults)
        self.metrics.watch(
            loaded.name,
            accounting.total,
            accounting.feed_forward,
            accounting.bytes_per_parameter,
            len(loaded.engines),
            running=lambda: workers.running,
            waiting=lambda: workers.waiting,
        )

    def model(self) -> ServedModel:
        """The model that takes requests.

        Raises:
            ServerDraining: none does, from here on.
            ModelLoading: it is not there yet.
        """
        if self.draining:
            raise ServerDraining()
        return self.known()

    def known(self) -> ServedModel:
        """The model, also for those who ask about what it did while it was still taking requests.

        Raises:
            ModelLoading: it is not there yet.
        """
        if self.loaded is None:
            raise ModelLoading("the model is still loading; try again in a few seconds", LOADING_RETRY_S)
        return self.loaded

    def require_room(self) -> None:
        """Raises like ``model``, or QueueFull or EngineFailed: whether a request can be queued at all."""
        self.model().workers.require_room()

    def resolve(self, name: str | None) -> tuple[ServedModel, SparsityChoice | None]:
        """The model a request asks for by one of its names or an alias, and the sparsity that an alias stands for.

        Raises:
            ServerDraining, ModelLoading: see ``model``.
            ModelNotFound: another one is served.
            InvalidField: an alias whose sparsity is none.
        """
        model = self.model()
        if name is None or name in model.names:
            return model, None
        base, mark, number = name.rpartition(ALIAS)
        if not mark or base not in model.names:
            raise ModelNotFound(name, "', '".join(model.names))
        return model, parse_sparsity(number, "model")

    def require_ready(self) -> str:
        """The name of the model that answers; raises like ``model``, or EngineFailed."""
        model = self.model()
        model.workers.require_health()
        return model.name

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
        """For how long nothing new has been taken; 0 when it is."""
        return 0.0 if self._drains_since is None else monotonic() - self._drains_since

    @property
    def idle(self) -> bool:
        """Nothing is being generated and nothing waits."""
        return self.loaded is None or self.loaded.workers.idle

    def drain(self) -> None:
        """Refuse what comes; finish what was accepted."""
        self._drains_since = monotonic()
        if self.loaded is not None:
            self.loaded.workers.drain()

    def close(self) -> None:
        """Give up what is not finished."""
        self.closed = True
        if self.loaded is not None:
            self.loaded.workers.close()

    def join(self, timeout_s: float) -> None:
        if self.loaded is not None:
            self.loaded.workers.join(timeout_s)


def parse_sparsity(text: str, where: str) -> SparsityChoice:
    """A sparsity that does not come as JSON.

    Raises:
        InvalidField: it is none, naming ``where`` it was found.
    """
    if text == "auto":
        return "auto"
    sparsity = float(text) if NUMBER.fullmatch(text) else -1.0
    if not 0 <= sparsity < 1:
        raise InvalidField(f"{where}: the sparsity must be a number from 0 to below 1, such as 0.5, or auto", where)
    return sparsity


def load(settings: Settings) -> Loaded:
    """The real loader: takes seconds.

    Raises:
        GriffinError: one line that says why there is no model.
    """
    checkpoints = griffin.load_each(
        settings.model,
        comma_separated(settings.devices) if settings.devices else [settings.device],
        dtype=settings.dtype,
        cache_dir=settings.cache_dir,
        ff_offload=settings.ff_offload == "cpu",
    )
    prepared = Preparation.read(checkpoints[0].model, settings.cache_dir)
    if not prepared.allows(settings.method):
        # Otherwise every request that names no method would be refused.
        raise LoadError(
            f"--method {settings.method} needs {settings.model} to be calibrated once: "
            f"python -m griffin calibrate --model {settings.model}"
        )
    if settings.sparsity == "auto":
        _require_losses(prepared, settings)
    engines = [
        engine
        for checkpoint in checkpoints
        for engine in griffin.build_engines(
            checkpoint.model,
            settings.workers,
            context_length=settings.max_model_len,
            prefill_chunk=settings.prefill_chunk,
            prefix_bytes=settings.prefix_cache_mb * 2**20,
            calibration=prepared.calibration,
            losses=prepared.losses,
        )
    ]
    checkpoint = checkpoints[0]
    context = engines[0].context_length
    if settings.max_model_len and context < settings.max_model_len:
        logger.warning("--max-model-len %d is more than the model has: %d", settings.max_model_len, context)
    # All there is now stays: the collector need not walk through it again and again while a large body is parsed.
    gc.collect()
    gc.freeze()
    name, *other_names = settings.served_names or [checkpoint.name]
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    description = f"{checkpoint.model.device}, {dtype}, {engines[0].step} decode step"
    defaults = checkpoint.sampling_defaults if settings.generation_config == "auto" else {}
    if defaults:
        listed = ", ".join(f"{field} {value:g}" for field, value in defaults.items())
        logger.info("where a request names no other: %s (the model's; --generation-config none drops them)", listed)
    return Loaded(name, checkpoint.tokenizer, engines, description, other_names, defaults)


def _require_losses(prepared: Preparation, settings: Settings) -> None:
    """Otherwise every request that names no sparsity would be refused."""
    if settings.method not in prepared.measured:
        raise LoadError(
            f"--sparsity auto needs {settings.model} to be measured once with method {settings.method}: python -m "
            f"griffin tune --method {settings.method} --model {settings.model} --prompts FILE"
        )
