"""A model's FF weights in one file, by neuron, mapped into memory: the system reads them from the disk when needed.

The system keeps as much of the file in memory as fits, so a model larger than the memory can run. The file is in
safetensors format. If it changes while the server runs, the next pass notices: see ``guard``.

Shapes: D model width, F feed-forward neurons; parts is 2 where gated, 1 otherwise.
"""

import json
import mmap
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from griffin.errors import LoadError
from griffin.model.checkpoint.refusals import INDEXES, WEIGHTS
from griffin.model.checkpoint.whole import lacking
from griffin.model.families import feed_forwards
from griffin.model.guard import Unchanged
from griffin.model.host import HostLayer, HostWeights

FILE = "feed_forward.safetensors"
# Size and time of the complete file. A file that was touched later is written again.
STAMP = "stamp"
SINGLE, INDEX = WEIGHTS[0], INDEXES[0]
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The contents of a model's file, and their places in it.

    names: the names of each layer's projections in the model, the contracting one last.
    parts: how many matrices a layer's expanding projections hold together.
    transposed: whether the family stores its weights ``(in_features, out_features)``.
    """

    names: Sequence[Sequence[str]]
    parts: int
    neurons: int
    width: int
    transposed: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, model: PreTrainedModel, dtype: torch.dtype) -> "Layout":
        """The layout for a model, which may be on the meta device."""
        blocks = feed_forwards(model)
        contract, names = blocks[0].contract, blocks[0].names
        paths = (*names.expand, names.contract)
        return cls(
            names=[[f"{names.layers}.{number}.{path}" for path in paths] for number in range(len(blocks))],
            parts=names.parts,
            neurons=blocks[0].width,
            width=blocks[0].down.columns,
            transposed=isinstance(contract, Conv1D),
            dtype=dtype,
        )

    @property
    def matrix_bytes(self) -> int:
        return self.neurons * self.width * self.dtype.itemsize

    @property
    def layer_bytes(self) -> int:
        return (self.parts + 1) * self.matrix_bytes

    def header(self) -> bytes:
        """The beginning of the file, padded so that the weights start at a page."""
        entries: dict[str, object] = {}
        for number in range(len(self.names)):
            start = number * self.layer_bytes
            middle, end = start + self.parts * self.matrix_bytes, start + self.layer_bytes
            entries[f"{number}.expand"] = self._entry(self.parts * self.neurons, start, middle)
            entries[f"{number}.contract"] = self._entry(self.neurons, middle, end)
        text = json.dumps(entries).encode()
        text += b" " * (-(8 + len(text)) % mmap.ALLOCATIONGRANULARITY)
        return len(text).to_bytes(8, "little") + text

    def _entry(self, rows: int, start: int, end: int) -> dict[str, object]:
        return {"dtype": TYPES[self.dtype], "shape": [rows, self.width], "data_offsets": [start, end]}


def write(folder: Path, layout: Layout, checkpoint: Path, base_model_prefix: str, source: str) -> None:
    """Write a checkpoint's FF weights by neuron into ``folder``, with one layer in memory at a time.

    Args:
        checkpoint: a folder with safetensors, in one file or in several with an index.
        base_model_prefix: some checkpoints leave it out of all names.
        source: the checkpoint's name for the user.

    Raises:
        LoadError: there are no safetensors, or a weight is missing.
    """
    where = _located(checkpoint)
    weights = [f"{name}.weight" for names in layout.names for name in names]
    if missing := [name for name in weights if not where.keys() & _spellings(name, base_model_prefix)]:
        raise lacking(missing, source)
    path = folder / FILE
    with path.open("wb") as file:
        file.write(layout.header())
        for names in layout.names:
            *expanding, contract = [_read(checkpoint, where, f"{name}.weight", base_model_prefix) for name in names]
            if layout.transposed:
                expanding, contract = [weight.t() for weight in expanding], contract.t()
            _require_shapes(layout, names, expanding, contract)
            for rows_FD in (*expanding, contract.t()):
                file.write(rows_FD.to(layout.dtype).contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    # Write-protected against mistakes.
    path.chmod(0o444)
    (folder / STAMP).write_text(_stamp(path))


def tensors(checkpoint: Path, names: Sequence[str], base_model_prefix: str) -> list[Tensor]:
    """Some of a checkpoint's tensors.

    Raises:
        LoadError: see ``write``.
    """
    where = _located(checkpoint)
    return [_read(checkpoint, where, name, base_model_prefix) for name in names]


def read(folder: Path, layout: Layout) -> HostWeights:
    """Map the file that ``write`` left in a folder.

    Raises:
        LoadError: it is missing, incomplete, was touched since, or belongs to another model.
    """
    path, header = folder / FILE, layout.header()
    try:
        if (folder / STAMP).read_text() != _stamp(path):
            raise LoadError(f"{path} has changed")
        mapping = _Mapping(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: {error}") from error
    if mapping.bytes_N.numel() != len(header) + len(layout.names) * layout.layer_bytes:
        raise LoadError(f"{path} has the wrong size")
    if mapping.bytes_N[: len(header)].numpy().tobytes() != header:
        raise LoadError(f"{path} is another model's")
    starts = [len(header) + number * layout.layer_bytes for number in range(len(layout.names))]
    return HostWeights(
        [mapping.layer(layout, start) for start in starts],
        torch.device("cpu"),
        staged=False,
        fetch=lambda number: mapping.fetch(starts[number], layout.layer_bytes),
        require_unchanged=mapping.unchanged.require,
    )


class _Mapping:
    """A file's bytes as a tensor, uint8 ``(N,)``, read-only."""

    def __init__(self, path: Path) -> None:
        # Stays open as long as this object lives.
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.unchanged = Unchanged(path, self._file)
        mapped = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # torch warns that the memory is read-only. That is intended.
            warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
            self.bytes_N = torch.frombuffer(mapped, dtype=torch.uint8)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def layer(self, layout: Layout, start: int) -> HostLayer:
        weights = self.bytes_N[start : start + layout.layer_bytes].view(layout.dtype).view(-1, layout.width)
        expand_FD, contract_FD = torch.split(weights, [layout.parts * layout.neurons, layout.neurons])
        return HostLayer(expand_FD, contract_FD)

    def fetch(self, start: int, length: int) -> None:
        """Ask the system to read these bytes if they are not in memory. In a thread, because it waits for the disk."""
        if hasattr(os, "posix_fadvise"):
            self._ahead.submit(os.posix_fadvise, self._file, start, length, os.POSIX_FADV_WILLNEED)


def _located(checkpoint: Path) -> Mapping[str, str]:
    """The file that contains each of a checkpoint's weights."""
    try:
        # The same order as transformers: an index may be left over from another version.
        if (checkpoint / SINGLE).is_file():
            with safe_open(checkpoint / SINGLE, "pt") as file:
                return dict.fromkeys(file.keys(), SINGLE)
        if (checkpoint / INDEX).is_file():
            located: Mapping[str, str] = json.loads((checkpoint / INDEX).read_text())["weight_map"]
            return located
    except Exception as error:
        # The reader raises errors of many classes.
        raise LoadError(f"cannot read the weights in {checkpoint}: {error}") from error
    raise LoadError(f"{checkpoint} has no safetensors, which weights can be mapped from")


def _spellings(name: str, base_model_prefix: str) -> list[str]:
    """A weight's possible names in checkpoints: some leave the prefix out, and some contain more than a text model."""
    bare = name.removeprefix(f"{base_model_prefix}.")
    return [name, bare, f"language_model.{name}", f"{base_model_prefix}.language_model.{bare}"]


def _read(checkpoint: Path, where: Mapping[str, str], name: str, base_model_prefix: str) -> Tensor:
    stored = next((spelling for spelling in _spellings(name, base_model_prefix) if spelling in where), None)
    if stored is None:
        raise LoadError(f"{checkpoint} has no {name}")
    with safe_open(checkpoint / where[stored], "pt") as file:
        weight: Tensor = file.get_tensor(stored)
    return weight


def _require_shapes(layout: Layout, names: Sequence[str], expanding: Sequence[Tensor], contract: Tensor) -> None:
    rows = layout.parts * layout.neurons // len(expanding)
    wanted = [*[(rows, layout.width)] * len(expanding), (layout.width, layout.neurons)]
    for name, weight, shape in zip(names, (*expanding, contract), wanted, strict=True):
        if tuple(weight.shape) != shape:
            raise LoadError(f"{name}.weight is {tuple(weight.shape)} and should be {shape}, as config.json says")


def _stamp(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns}"
