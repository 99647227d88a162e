"""A model that holds a GGUF file's own codes. The file's other values are small and kept in fp32.

All threads copy the codes from the mapped file into a new layout in memory; no value changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedConfig, PreTrainedModel

from griffin.model.checkpoint.built import empty_model, with_matrices
from griffin.model.checkpoint.gguf_codes import GROUPINGS, column_sizes, lay_columns, lay_rows, row_sizes
from griffin.model.checkpoint.gguf_config import config_of
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_tensors import GgufTensor
from griffin.model.checkpoint.gguf_weights import as_trained, parameter_names, plain
from griffin.model.checkpoint.whole import require_finite
from griffin.model.families import family_of
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouping import COLUMN_UNIT
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.modules import takes_matrix
from griffin.model.memory import untouched

PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
READABLE = frozenset((*GROUPINGS, *PLAIN))


def read_in_place(file: GgufFile, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a file, with the file's own codes in its matrices.

    Args:
        dtype: of activations, and of the model's other parameters.

    Raises:
        UnsupportedModel, LoadError: see ``gguf_weights.read_model``; or a tensor's type is not supported, or it has
            values that are infinite or not a number.
        MemoryError: there is not enough memory.
    """
    file.require_readable(READABLE)
    config = config_of(file)
    empty = empty_model(config)
    names = parameter_names(file, empty)
    places = list(_places(file, empty, names))
    shapes = {place.parameter: place.tensor.shape for place in places}
    small = {parameter: plain(file, name, config) for name, parameter in names.items() if parameter not in shapes}
    model = with_matrices(file.path.name, config, shapes, _matrices(file, config, places, dtype), small, dtype)
    require_finite(model, file.path.name, {parameter: name for name, parameter in names.items()})
    return model


def _matrices(
    file: GgufFile, config: PreTrainedConfig, places: Sequence["_Place"], dtype: torch.dtype
) -> Iterator[tuple[str, Matrix, bool]]:
    rooms = untouched([size for place in places for size in place.sizes])
    for place in tqdm(places, desc=f"reading {file.path.name}", disable=None):
        room, rooms = rooms[: len(place.sizes)], rooms[len(place.sizes) :]
        yield place.parameter.rpartition(".")[0], place.matrix(file, config, room, dtype), place.by_input


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor that becomes a module's matrix. ``by_input``: its rows belong to the module's inputs."""

    tensor: GgufTensor
    parameter: str
    by_input: bool

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.tensor.shape
        return (columns, rows) if self.by_input else (rows, columns)

    @property
    def grouped(self) -> bool:
        """Whether its codes can be kept; a few shapes cannot be cut into tiles."""
        return self.tensor.type in GROUPINGS and not (self.by_input and self.shape[1] % COLUMN_UNIT)

    @property
    def sizes(self) -> list[int]:
        if not self.grouped:
            return [self.shape[0] * self.shape[1] * PLAIN.get(self.tensor.type, torch.float32).itemsize]
        return (column_sizes if self.by_input else row_sizes)(self.tensor.type, self.shape)

    def matrix(self, file: GgufFile, config: PreTrainedConfig, room: list[Tensor], dtype: torch.dtype) -> Matrix:
        tensor, shape = self.tensor, self.shape
        if not self.grouped:
            return self._plain(file, config, room[0], dtype)
        if self.by_input:
            return lay_columns(tensor.data, tensor.type, shape, room, dtype)
        order_R = as_trained(file.architecture, tensor.name, torch.arange(shape[0]), config).contiguous()
        moved = not order_R.equal(torch.arange(shape[0]))
        return lay_rows(tensor.data, tensor.type, shape, room, dtype, order_R if moved else None)

    def _plain(self, file: GgufFile, config: PreTrainedConfig, room: Tensor, dtype: torch.dtype) -> Matrix:
        own = PLAIN.get(self.tensor.type, torch.float32)
        values = plain(file, self.tensor.name, config)
        numbers = room.view(own).view(self.shape)
        numbers.copy_(values.t() if self.by_input else values)
        return Dense(numbers, dtype)


def _places(file: GgufFile, empty: PreTrainedModel, names: dict[str, str]) -> Iterator[_Place]:
    feed_forward = family_of(empty.config).feed_forward
    for name, parameter in names.items():
        path, _, ending = parameter.rpartition(".")
        if ending == "weight" and takes_matrix(empty, empty.get_submodule(path)):
            yield _Place(file.tensors[name], parameter, feed_forward.is_contracting(path))
