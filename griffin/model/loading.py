"""A checkpoint becomes a model and a tokenizer: hub id, directory, GGUF file, or the embedded default."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]
from filelock import FileLock
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from griffin.errors import GriffinError, LoadError
from griffin.model import mapped
from griffin.model.checkpoint import gguf_file, gguf_tokenizer
from griffin.model.checkpoint.defaults import sampling_defaults
from griffin.model.checkpoint.ends import settle_ends, token_ids, tokenizer_ends
from griffin.model.checkpoint.gguf_config import config_of, settle_sampling
from griffin.model.checkpoint.gguf_weights import read_model
from griffin.model.checkpoint.numbers import require_numbers
from griffin.model.checkpoint.quiet import quiet
from griffin.model.checkpoint.refusals import first_words, require_files, require_plain, require_readable
from griffin.model.checkpoint.source import EMBEDDED_MODEL, Source, locate
from griffin.model.checkpoint.text_part import RENAMED, served_config, without_left_out
from griffin.model.checkpoint.whole import (
    require_finite,
    require_plain_numbers,
    require_rows,
    require_whole,
    weight_files,
)
from griffin.model.dtype import fastest_dtype
from griffin.model.families import feed_forwards, require_supported, text_part
from griffin.model.guard import state, whole_while_read
from griffin.model.host import HostWeights, attach_
from griffin.model.placement import distribute

logger = logging.getLogger("griffin")

HASHED_UP_TO_BYTES = 2**29
# Of what is written to the cache; a change makes all of it anew.
CACHE_FORMAT = 3

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, its tokenizer, and a short name for it.

    sampling_defaults: values of ``Sampling`` that its maker recommends, see ``defaults``; engines do not apply them.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)


def load(
    source: str = EMBEDDED_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
    ff_offload: bool = False,
) -> Checkpoint:
    """Load a model, ready to run on one device, or across several; see ``load_each``."""
    return load_each(source, [device], dtype=dtype, cache_dir=cache_dir, ff_offload=ff_offload)[0]


def load_each(
    source: str = EMBEDDED_MODEL,
    devices: Sequence[str] = ("auto",),
    *,
    dtype: str = "auto",
    cache_dir: Path | None = None,
    ff_offload: bool = False,
) -> list[Checkpoint]:
    """Load a model, ready to run on each of several devices. Fewer come back where it fits only across them.

    Args:
        source: a hub id, a directory with ``config.json`` and safetensors, a ``.gguf`` file, or
            ``SmolLM2-135M-Instruct``, the default that comes as a Python package.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it measures faster, else float32.
        devices: as torch names them, or auto: CUDA when there is one, the CPU otherwise. With ``+`` between
            them, one model across several.
        cache_dir: where dequantised GGUF weights and weights by neuron are kept; by default the user's cache
            directory (XDG).
        ff_offload: FF weights stay in host memory and are streamed, see ``offload``; if the CPU is the only
            device, in a file that is mapped, see ``mapped``.

    Raises:
        LoadError: no such checkpoint, or it cannot be read.
        UnsupportedModel: its model type has no row in the family table.
    """
    if not sys.stderr.isatty():
        # Progress bars are for people; in a log they are noise. (The one of the GGUF reader has no switch.)
        transformers.logging.disable_progress_bar()
    groups = [[parse_device(name) for name in device.split("+")] for device in devices]
    torch_dtype = parse_dtype(dtype, groups[0][0])
    cache_dir = cache_dir or platformdirs.user_cache_path("griffin")
    map_from = cache_dir / "by-neuron" if ff_offload and groups == [[torch.device("cpu")]] else None
    try:
        found = locate(source)
        with whole_while_read(source):
            if found.is_gguf:
                assert found.path is not None
                model, tokenizer = _load_gguf(found.path, torch_dtype, cache_dir, map_from)
            else:
                model, tokenizer = _load_checkpoint(found, source, torch_dtype, map_from)
        defaults = sampling_defaults(model.generation_config)
        require_finite(model, source)
        if HostWeights.of(model) is not None:
            _own_(model)
            return [Checkpoint(found.name, model, tokenizer, defaults)]
        models = distribute(model, groups, ff_offload=ff_offload)
        with whole_while_read(source):
            for each in models:
                _own_(each)
        return [Checkpoint(found.name, model, tokenizer, defaults) for model in models]
    except GriffinError:
        raise
    except Exception as error:
        # Readers of checkpoints raise anything from OSError to KeyError; a user needs the first line of it.
        raise LoadError(f"cannot load '{source}': {first_words(error)}") from error


@torch.no_grad()
def _own_(model: PreTrainedModel) -> None:
    """Have no weight in memory be a view of a file, which may change or be cut short under a running server.

    The feed-forward weights that ff-offload maps stay as they are; see ``mapped`` for those.
    """
    host = HostWeights.of(model)
    mapped_ids = (
        {id(p.weight) for block in feed_forwards(model) for p in (*block.expand, block.contract)} if host else ()
    )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and id(tensor) not in mapped_ids:
            tensor.data = tensor.data.clone()


def parse_device(name: str) -> torch.device:
    """A device by name, or (auto) CUDA when there is one.

    Raises:
        LoadError: no such device.
    """
    if name == "auto" and torch.version.cuda and not torch.cuda.is_available():
        logger.warning(
            "torch is built for CUDA %s and sees no GPU: the CPU it is. If there is one, its driver may be too old",
            torch.version.cuda,
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LoadError(f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by name, or (auto) the fastest of the device.

    Raises:
        LoadError: no such dtype.
    """
    if name == "auto":
        return fastest_dtype(device)
    if name not in DTYPES:
        raise LoadError(f"unknown dtype '{name}'; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _load_checkpoint(
    found: Source, source: str, dtype: torch.dtype, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From a directory; what is on a hub is brought into one first, its configuration before its weights."""
    config = PreTrainedConfig.get_config_dict(found.path or str(found.hub_id))[0]
    require_supported(config)
    part = text_part(config)
    served = part.config(config) if part else config
    require_plain(config, source)
    require_plain(served, source)
    require_numbers(served, source, part.told_by_shapes if part else ())
    folder = found.path or _downloaded(str(found.hub_id))
    require_files(folder, source)
    model, tokenizer = _read(folder, source, dtype, map_from)
    settle_ends(model, tokenizer_ends(tokenizer), token_ids(config.get("eos_token_id")))
    return model, tokenizer


def _read(
    folder: Path, source: str, dtype: torch.dtype, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint; if there is a directory to map its FF weights from, without those in memory."""
    require_readable(folder, source)
    require_plain_numbers(folder, source)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    model = _mapped(folder, dtype, map_from, source) if map_from else _from_pretrained(folder, source, dtype)
    require_rows(model, tokenizer, source)
    return model, tokenizer


def _from_pretrained(folder: Path, source: str, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """A model all of whose weights come from its checkpoint.

    Raises:
        LoadError: some do not; names the first few.
    """
    config, part = served_config(folder)
    with quiet():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            key_mapping=RENAMED if part else None,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if part:
        report["unexpected_keys"] = without_left_out(part, report["unexpected_keys"], source)
    require_whole(report, source)
    assert isinstance(model, PreTrainedModel)
    return model


def _downloaded(hub_id: str) -> Path:
    small = ["*.json", "*.txt", "*.model", "*.jinja"]
    # Not its maker's own format, which holds the same weights once more.
    others = ["consolidated*", "*/*"]
    folder = Path(snapshot_download(hub_id, allow_patterns=[*small, "*.safetensors"], ignore_patterns=others))
    if not weight_files(folder):
        snapshot_download(hub_id, allow_patterns=["*.bin"], ignore_patterns=others)
    return folder


def _mapped(folder: Path, dtype: torch.dtype, map_from: Path, source: str) -> PreTrainedModel:
    """A model whose FF weights are mapped from a file, which is made first if it is not there or cannot be used."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(served_config(folder)[0], dtype=dtype)
    layout = mapped.Layout.of(empty, dtype)
    target = map_from / f"{folder.name}-{str(dtype).removeprefix('torch.')}-{_folder_identity(folder)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            host = _mapped_or_made(folder, source, layout, empty.base_model_prefix, target)
    except OSError as error:
        raise LoadError(f"ff-offload on a CPU needs room for a file in {map_from}: {error}") from error
    model = _without_feed_forward(empty, layout, folder, source)
    attach_(model, host, feed_forwards(model))
    return model


def _mapped_or_made(folder: Path, source: str, layout: mapped.Layout, prefix: str, target: Path) -> HostWeights:
    if target.exists():
        try:
            return mapped.read(target, layout)
        except LoadError as error:
            logger.warning("%s; making it again", error)
            shutil.rmtree(target)
    logger.info("%s: writing its feed-forward weights by neuron, once, to %s", source, target)

    def write(partial: Path) -> None:
        with whole_while_read(source, weight_files(folder)):
            mapped.write(partial, layout, folder, prefix, source)

    _write_whole(target, write)
    return mapped.read(target, layout)


def _without_feed_forward(empty: PreTrainedModel, layout: mapped.Layout, folder: Path, source: str) -> PreTrainedModel:
    """A checkpoint, but for its FF matrices, which stay on the meta device."""
    absent = {name for names in layout.names for name in names}
    # Left on the disk by the library's own offload, of which nothing but this is wanted.
    places = {name: "disk" if name in absent else "cpu" for name, m in empty.named_modules() if not list(m.children())}
    offloading = logging.getLogger("accelerate.big_modeling")
    level = offloading.level
    offloading.setLevel(logging.ERROR)
    try:
        model = _from_pretrained(folder, source, layout.dtype, device_map=places)
    finally:
        offloading.setLevel(level)
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        for method in ("forward", "to", "cuda"):
            # Left on the instance by those hooks; a copy of the module would call this one's.
            module.__dict__.pop(method, None)
    biased = [name for name in absent if model.get_submodule(name).bias is not None]
    biases = mapped.tensors(folder, [f"{name}.bias" for name in biased], model.base_model_prefix)
    for name, bias in zip(biased, biases, strict=True):
        model.get_submodule(name).bias = nn.Parameter(bias.to(layout.dtype), requires_grad=False)
    return model


def _folder_identity(folder: Path) -> str:
    """By place and time: hashing all weights would take as long as reading them."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    states = [(file.name, state(file.stat())) for file in files]
    return blake2b(f"{folder.resolve()} {states}".encode(), digest_size=6).hexdigest()


def _load_gguf(
    path: Path, dtype: torch.dtype, cache_dir: Path, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From the dequantised copy in the cache, which is made first if it is not there or cannot be read."""
    target = cache_dir / "dequantised" / _cache_name(path, dtype)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if not target.exists():
                loaded = _dequantise(path, dtype, target)
                if map_from is None or not target.exists():
                    return loaded
                del loaded
            try:
                return _read(target, path.name, dtype, map_from)
            except Exception as error:
                logger.warning("%s: what is cached cannot be read (%s); making it again", path.stem, first_words(error))
                shutil.rmtree(target)
                loaded = _dequantise(path, dtype, target)
            return loaded if map_from is None else _read(target, path.name, dtype, map_from)
    except OSError as error:
        logger.warning("%s: no cache in %s (%s); this start is slower", path.stem, cache_dir, error)
        return _read_gguf(path, dtype)


def _cache_name(path: Path, dtype: torch.dtype) -> str:
    made_of = f"{[_file_identity(part) for part in gguf_file.parts(path)]} {transformers.__version__} {CACHE_FORMAT}"
    identity = blake2b(made_of.encode(), digest_size=6).hexdigest()
    return f"{path.stem}-{str(dtype).removeprefix('torch.')}-{identity}"


def _file_identity(path: Path) -> str:
    """By content where that takes under a second, so that copies share; by place and times for large files."""
    found = path.stat()
    if found.st_size > HASHED_UP_TO_BYTES:
        return f"{path} {state(found)}"
    with path.open("rb") as file:
        return file_digest(file, "blake2b").hexdigest()


def _dequantise(path: Path, dtype: torch.dtype, target: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    logger.info("%s: dequantising, once; later starts read the result from %s", path.stem, target)
    # Before anything is cached: what was half another file must not be found again.
    with whole_while_read(path.name, gguf_file.parts(path)):
        model, tokenizer = _read_gguf(path, dtype)
    try:
        _write_whole(target, lambda folder: (model.save_pretrained(folder), tokenizer.save_pretrained(folder)))
    except Exception as error:
        # Most likely a full disk; the weights are in hand all the same.
        logger.warning("%s: not cached (%s); the next start will be as slow", path.stem, error)
    return model, tokenizer


def _write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """Fill a folder beside ``target`` and rename it: whoever finds ``target`` finds all of it. Needs the lock."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as written:
                # The rename must not reach the disk before the contents.
                os.fsync(written.fileno())
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    file = gguf_file.read(path)
    require_supported(config_of(file).to_dict())
    tokenizer = gguf_tokenizer.read_tokenizer(file)
    model = read_model(file, dtype)
    require_rows(model, tokenizer, path.name)
    settle_ends(model, tokenizer_ends(tokenizer), gguf_tokenizer.ends(file))
    settle_sampling(model, file)
    return model, tokenizer
