"""Loads the model that the settings name: a tokenizer and engines. Takes seconds to minutes."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import griffin
from griffin import Checkpoint, Engine, PassLimit, PrefixFiles, Preparation
from griffin.errors import LoadError
from server.settings import Settings, comma_separated
from server.text.tokenizer import Tokenizer
from server.work.job import EngineLike

logger = logging.getLogger("griffin")


@dataclass(frozen=True, slots=True)
class Found:
    """A model before it is loaded: all its names, and the bytes of its files (0 if they are not here)."""

    names: Sequence[str]
    bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader returns.

    name: the model's name in metrics and in the API.
    engines: one for each worker.
    description: device, dtype and step, for the log.
    other_names: further names for clients.
    bytes: memory of the model and of all it may cache; 0 if unknown.
    sampling_defaults: see ``griffin.Checkpoint``.
    pass_tokens: the value of --prompt-pass-tokens, measured if it is auto; None if unknown.
    close: called at the end, with the seconds that it may take.
    """

    name: str
    tokenizer: Tokenizer
    engines: Sequence[EngineLike]
    description: str = ""
    other_names: Sequence[str] = ()
    bytes: int = 0
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    pass_tokens: int | None = None
    close: Callable[[float], None] = lambda seconds: None


def load(settings: Settings) -> Loaded:
    """The real loader.

    Raises:
        GriffinError: one line that says why there is no model.
    """
    _require_possible(settings)
    # Counted before anything is divided: a model that is loaded later must not get a share of a share.
    griffin.threads_at_first()
    before = griffin.memory_in_use()
    checkpoints = griffin.load_each(
        settings.model,
        comma_separated(settings.devices) if settings.devices else [settings.device],
        dtype=settings.dtype,
        cache_dir=settings.cache_dir,
        ff_offload=settings.ff_offload == "cpu",
        quantize=None if settings.quantize == "none" else settings.quantize,
    )
    prepared = Preparation.read(checkpoints[0].model, settings.cache_dir)
    _require_prepared(prepared, settings)
    # All copies of the model use what the first copy measures, so that they round alike.
    limit = PassLimit(settings.prompt_pass_tokens)
    files = _prefix_files(checkpoints[0], settings)
    engines = [
        engine for checkpoint in checkpoints for engine in _engines(checkpoint, prepared, settings, limit, files)
    ]
    # These objects stay alive. Freezing them spares the collector from visiting them while a large body is parsed.
    gc.collect()
    gc.freeze()
    checkpoint, context = checkpoints[0], engines[0].context_length
    if settings.max_model_len and context < settings.max_model_len:
        told = "--max-model-len %d is more than the model's context; %d is used"
        logger.warning(told, settings.max_model_len, context)
    if settings.prompt_pass_tokens == "auto" and (tokens := engines[0].pass_tokens):
        told = (
            "prompts of up to %d tokens go through the %s step; with --prompt-pass-tokens %d every start does the same"
        )
        logger.info(told, tokens, engines[0].step, tokens)
    name, *other_names = settings.served_names or [checkpoint.name]
    description = f"{checkpoint.model.device}, {checkpoint.formats}, {engines[0].step} decode step"
    taken = max(0, griffin.memory_in_use() - before) + settings.prefix_cache_mb * 2**20
    defaults = _defaults(checkpoint, settings)
    loaded = Loaded(
        name, checkpoint.tokenizer, engines, description, other_names, taken, defaults, engines[0].pass_tokens
    )
    return replace(loaded, close=files.close) if files else loaded


def find(settings: Settings) -> Found:
    """Where ``load`` would find the model, and the names under which it would be served.

    Raises:
        LoadError: there is nothing at the place, or it is not a checkpoint.
    """
    source = griffin.locate(settings.model)
    return Found(tuple(settings.served_names or [source.name]), source.bytes)


def _require_possible(settings: Settings) -> None:
    """
    Raises:
        LoadError: the settings exclude each other; this is known before the model is loaded.
    """
    if not Preparation(streamed=settings.ff_offload == "cpu").allows(settings.method):
        raise LoadError(
            f"--method {settings.method} reads weights in place, but --ff-offload streams them; use --method griffin"
        )


def _require_prepared(prepared: Preparation, settings: Settings) -> None:
    """
    Raises:
        LoadError: requests that leave the choice to the settings would all be refused.
    """
    if settings.sparsity == "auto" and settings.method not in prepared.tables:
        raise LoadError(
            f"--sparsity auto needs {settings.model} to be measured once with method {settings.method}: python -m "
            f"griffin tune --method {settings.method} --model {settings.model} --prompts FILE; or use --method griffin+"
        )


def _prefix_files(checkpoint: Checkpoint, settings: Settings) -> PrefixFiles | None:
    """The folder that keeps beginnings of prompts after the process ends, if the settings name one.

    Raises:
        LoadError: the folder cannot be written to.
    """
    if settings.prefix_cache_dir is None:
        return None
    device = checkpoint.model.device.type
    # Everything that the numbers of a chunk depend on, including their rounding.
    model = f"{checkpoint.identity} {device} {settings.prefill_chunk} {_passes_of_chunks(settings)}"
    disk_bytes = int(settings.prefix_cache_disk_gb * 10**9)
    return PrefixFiles(settings.prefix_cache_dir, disk_bytes, settings.prefix_cache_mb * 2**20, model)


def _passes_of_chunks(settings: Settings) -> str:
    """Tells whether whole chunks go through the compiled step. ``auto`` never takes such long prompts."""
    tokens = settings.prompt_pass_tokens
    longest = griffin.PassLimit.LARGEST_MEASURED if tokens == "auto" else tokens
    return "none" if longest < settings.prefill_chunk else str(tokens)


def _engines(
    checkpoint: Checkpoint,
    prepared: Preparation,
    settings: Settings,
    limit: PassLimit,
    files: PrefixFiles | None,
) -> Sequence[Engine]:
    """One for each worker of the checkpoint's device."""
    return griffin.build_engines(
        checkpoint.model,
        settings.workers,
        context_length=settings.max_model_len,
        prefill_chunk=settings.prefill_chunk,
        prefix_bytes=settings.prefix_cache_mb * 2**20,
        prefix_files=files,
        limit=limit,
        losses=prepared.losses,
        method=settings.method,
        threads=griffin.threads_at_first(),
    )


def _defaults(checkpoint: Checkpoint, settings: Settings) -> Mapping[str, float]:
    """The model's own sampling values, if the settings use them."""
    defaults = checkpoint.sampling_defaults if settings.generation_config == "auto" else {}
    if defaults:
        listed = ", ".join(f"{field} {value:g}" for field, value in defaults.items())
        logger.info("the model's defaults for requests: %s (--generation-config none ignores them)", listed)
    return defaults
