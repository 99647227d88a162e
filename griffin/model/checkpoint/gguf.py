"""A model and its tokenizer from a GGUF file: with the file's own codes, or dequantised once into the user's cache."""

import logging
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from griffin.model.checkpoint import checksums, folder, gguf_file, gguf_tokenizer
from griffin.model.checkpoint.built import obstacle
from griffin.model.checkpoint.ends import settle_ends, tokenizer_ends
from griffin.model.checkpoint.gguf_config import config_of, settle_sampling
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_in_place import read_in_place
from griffin.model.checkpoint.gguf_weights import read_model
from griffin.model.checkpoint.refusals import first_words
from griffin.model.checkpoint.stored import file_identity, write_whole
from griffin.model.checkpoint.whole import require_finite, require_rows
from griffin.model.families import require_supported
from griffin.model.guard import whole_while_read

logger = logging.getLogger("griffin")

# Raise this when the written form changes, so that all folders are written again.
CACHE_FORMAT = 3


def load_in_place(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Read a file into memory with its own codes; None if this model or installation cannot use them."""
    with whole_while_read(path.name, gguf_file.parts(path)):
        file = gguf_file.read(path)
        config = config_of(file)
        require_supported(config.to_dict())
        if why := obstacle(config.model_type):
            logger.warning("%s: its weights become plain numbers, which are slower: %s", path.name, why)
            return None
        return _with_tokenizer(file, lambda: read_in_place(file, dtype))


def load_dequantised(
    path: Path, dtype: torch.dtype, cache_dir: Path, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the dequantised copy in the cache. If it is missing, damaged or unreadable, it is written first."""
    place = cache_dir / "dequantised"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f"{path.stem}-{_short(dtype)}.lock"):
            return _cached(path, dtype, place, map_from)
    except OSError as error:
        logger.warning("%s: no cache in %s (%s); this start is slower", path.stem, cache_dir, error)
        return read_gguf(path, dtype)


def _cached(
    path: Path, dtype: torch.dtype, place: Path, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Like ``load_dequantised``; the caller holds the lock."""
    target, loaded = _found_or_made(path, dtype, place)
    if loaded is None:
        try:
            if map_from is None:
                # Mapped weights are not read at the start; their file shows by itself whether it has changed.
                checksums.require(target)
            return folder.read(target, path.name, dtype, map_from)
        except Exception as error:
            logger.warning("%s: what is cached cannot be read (%s); making it again", path.stem, first_words(error))
            shutil.rmtree(target)
            target, loaded = _found_or_made(path, dtype, place)
    if loaded is not None and (map_from is None or not target.exists()):
        return loaded
    del loaded
    return folder.read(target, path.name, dtype, map_from)


def _found_or_made(
    path: Path, dtype: torch.dtype, place: Path
) -> tuple[Path, tuple[PreTrainedModel, PreTrainedTokenizerBase] | None]:
    """A file's folder in the cache, written if it is missing; and what was read for writing it, else None."""
    # The file may be replaced at any time: its name in the cache belongs to the bytes that were read.
    with whole_while_read(path.name, gguf_file.parts(path)):
        target = place / _cache_name(path, dtype)
        if target.exists():
            return target, None
        logger.info("%s: dequantising, once; later starts read the result from %s", path.stem, target)
        model, tokenizer = read_gguf(path, dtype)
    # Checked before anything is cached, so that an incomplete or damaged file is not cached.
    require_finite(model, path.name)
    try:
        write_whole(target, lambda folder: _write(folder, model, tokenizer))
    except Exception as error:
        # Most likely the disk is full. The weights are in memory anyway.
        logger.warning("%s: not cached (%s); the next start will be as slow", path.stem, error)
    return target, (model, tokenizer)


def _cache_name(path: Path, dtype: torch.dtype) -> str:
    made_of = f"{[file_identity(part) for part in gguf_file.parts(path)]} {transformers.__version__} {CACHE_FORMAT}"
    identity = blake2b(made_of.encode(), digest_size=6).hexdigest()
    return f"{path.stem}-{_short(dtype)}-{identity}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write(place: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    checksums.write(place)


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a file into memory."""
    file = gguf_file.read(path)
    require_supported(config_of(file).to_dict())
    return _with_tokenizer(file, lambda: read_model(file, dtype))


def _with_tokenizer(
    file: GgufFile, read: Callable[[], PreTrainedModel]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tokenizer is read first: it is faster, and may be refused."""
    tokenizer = gguf_tokenizer.read_tokenizer(file)
    model = read()
    require_rows(model, tokenizer, file.path.name)
    settle_ends(model, tokenizer_ends(tokenizer), gguf_tokenizer.ends(file))
    settle_sampling(model, file)
    # All weights were copied.
    file.close()
    return model, tokenizer
