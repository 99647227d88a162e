"""A folder's model with its weights rounded to codes; the codes are kept in the user's cache.

transformers maps the folder's files. Weights are rounded one by one, so memory holds the codes and one weight.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from griffin.errors import LoadError
from griffin.model.checkpoint import checksums
from griffin.model.checkpoint import folder as folder_reader
from griffin.model.checkpoint.refusals import first_words
from griffin.model.checkpoint.stored import folder_identity, write_whole
from griffin.model.checkpoint.whole import stored_types, weight_files
from griffin.model.guard import whole_while_read
from griffin.model.quantise import Codes, Kind, Place, places, quantise_, rounding

logger = logging.getLogger("griffin")

FILE = "codes.safetensors"
# Raise this when the written form changes, so that all folders are written again.
CACHE_FORMAT = 1
TYPES = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read(
    folder: Path, source: str, kind: Kind, dtype: torch.dtype, cache_dir: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint's model and tokenizer.

    Args:
        source: the checkpoint's name for the user.
        dtype: of activations, and of weights that stay plain.
    """
    # The folder's files may be replaced at any time, so codes are named after the files that are read.
    with whole_while_read(source, weight_files(folder)) as require_unchanged:
        target = cache_dir / "quantised" / f"{folder.name}-{kind}-{folder_identity(folder)}-{CACHE_FORMAT}"
        model, tokenizer = folder_reader.read(folder, source, _dtype_of(folder, source), None)
        wanted = places(model, kind)
        own = rounding(model, source)

        def write(partial: Path) -> None:
            _write(partial / FILE, wanted, own, f"rounding {folder.name} to {kind}")
            require_unchanged()
            checksums.write(partial)

        quantise_(model, wanted, _cached(target, wanted, source, kind, write) or own, dtype, folder.name)
    return model, tokenizer


def _dtype_of(folder: Path, source: str) -> torch.dtype:
    """The dtype of most of a checkpoint's tensors: read in this dtype, they are mapped and not copied."""
    stored = Counter(kind for _, kind in stored_types(folder, source) if kind in TYPES)
    return TYPES[stored.most_common(1)[0][0]] if stored else torch.float32


def _cached(
    target: Path, wanted: Sequence[Place], source: str, kind: Kind, write: Callable[[Path], None]
) -> Codes | None:
    """Codes in the cache, written first if they are missing or unreadable; None if there is no room."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.exists() and (found := _read(target / FILE, wanted)):
                return found
            shutil.rmtree(target, ignore_errors=True)
            _require_room(target.parent, wanted)
            logger.info("%s: rounding its weights to %s, once; later starts read them from %s", source, kind, target)
            write_whole(target, write)
            return _read(target / FILE, wanted)
    except OSError as error:
        logger.warning("%s: no cache in %s (%s); every start rounds its weights again", source, target.parent, error)
    return None


def _require_room(place: Path, wanted: Sequence[Place]) -> None:
    """
    Raises:
        OSError: the disk is too full; without this check that would show only after minutes.
    """
    needed, free = sum(each.bytes for each in wanted), shutil.disk_usage(place).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _header(wanted: Sequence[Place]) -> bytes:
    """The header of a safetensors file, padded to eight bytes."""
    entries, start = {}, 0
    for place in wanted:
        shape = [place.shape[0], place.form.row_bytes(place.shape[1])]
        entries[place.path] = {"dtype": "U8", "shape": shape, "data_offsets": [start, start + place.bytes]}
        start += place.bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(path: Path, wanted: Sequence[Place], codes: Codes, description: str) -> None:
    with path.open("wb") as file:
        file.write(_header(wanted))
        for place in tqdm(wanted, desc=description, disable=None):
            file.write(codes(place).numpy().data)


def _read(path: Path, wanted: Sequence[Place]) -> Codes | None:
    """The codes in a file, mapped; None if it is damaged or has other places."""
    header = _header(wanted)
    try:
        with path.open("rb") as file:
            same = file.read(len(header)) == header
        if not same or path.stat().st_size != len(header) + sum(place.bytes for place in wanted):
            raise LoadError("it is not whole")
        checksums.require(path.parent)
        content = safe_open(path, "pt")
    except Exception as error:
        # The reader raises errors of many classes.
        logger.warning("%s cannot be read (%s); making it again", path, first_words(error))
        return None

    def codes(place: Place) -> Tensor:
        found: Tensor = content.get_tensor(place.path)  # type: ignore[no-untyped-call]
        return found

    return codes
