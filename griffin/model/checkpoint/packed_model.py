"""A model in a folder, quantised by GPTQ or AWQ: read with its own codes, or as plain numbers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from griffin.errors import LoadError
from griffin.model.checkpoint.built import assembled, empty_model, obstacle, with_matrices
from griffin.model.checkpoint.gguf_codes import column_sizes, lay_columns, lay_rows, row_sizes
from griffin.model.checkpoint.packed import TENSORS, Packed, Scheme, order_of
from griffin.model.checkpoint.refusals import require_readable
from griffin.model.checkpoint.text_part import served_config
from griffin.model.checkpoint.whole import require_rows, warn_of_unused, weight_files
from griffin.model.families import family_of
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouping import COLUMN_UNIT
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.modules import takes_matrix
from griffin.model.memory import untouched

logger = logging.getLogger("griffin")


def read(
    folder: Path, source: str, scheme: Scheme, dtype: torch.dtype, *, in_place: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint's model and tokenizer.

    Args:
        source: the checkpoint's name for the user.
        dtype: of activations; also of all weights if they become plain numbers.
        in_place: keep the codes.

    Raises:
        LoadError: a weight is missing or cannot be read.
    """
    require_readable(folder, source)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    with ExitStack() as stack:
        reader = _Reader(folder, source, scheme, dtype, stack)
        if in_place and (why := reader.obstacle()):
            logger.warning("%s: its weights become plain numbers, which are slower: %s", source, why)
            in_place = False
        model = reader.in_place() if in_place else reader.dequantised()
    require_rows(model, tokenizer, source)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, tokenizer


class _Reader:
    """A checkpoint's tensors, and the model built from them."""

    def __init__(self, folder: Path, source: str, scheme: Scheme, dtype: torch.dtype, stack: ExitStack) -> None:
        self._source, self._scheme, self._dtype = source, scheme, dtype
        self._config = _plain_config(folder)
        self._empty = empty_model(self._config)
        self._names = family_of(self._config).feed_forward
        self._where: dict[str, Any] = {}
        for file in weight_files(folder):
            if file.suffix != ".safetensors":
                raise LoadError(f"'{source}': {file.name} is no safetensors file; take a checkpoint that has these")
            content = stack.enter_context(safe_open(file, "pt"))
            self._where |= dict.fromkeys(content.keys(), content)
        self._shapes = {name: (*values.shape,) for name, values in self._empty.state_dict().items()}
        self._packed = [
            path for name in self._shapes if f"{(path := name.removesuffix('.weight'))}.qweight" in self._where
        ]
        self._plain = [name for name in self._shapes if name in self._where]
        taken = {f"{path}.{ending}" for path in self._packed for ending in TENSORS}
        warn_of_unused(self._where.keys() - taken - set(self._plain), source)

    def obstacle(self) -> str | None:
        """Why codes cannot be kept; None if they can."""
        return obstacle(self._config.model_type)

    def dequantised(self) -> PreTrainedModel:
        """All numbers plain, in the model's dtype."""
        paths = tqdm(self._packed, desc=f"dequantising {self._source}", disable=None)
        state = {f"{path}.weight": self._read(path).plain().to(self._dtype) for path in paths}
        state |= {name: self._tensor(name).to(self._dtype, copy=True) for name in self._plain}
        return assembled(self._source, self._config, state, self._dtype)

    def in_place(self) -> PreTrainedModel:
        """The checkpoint's codes in matrices; everything else is small and kept in fp32 beside the model's dtype."""
        orders = self._row_orders()
        tables = [name.removesuffix(".weight") for name in self._plain if self._is_matrix(name)]
        shapes = {f"{path}.weight": self._shapes[f"{path}.weight"] for path in (*self._packed, *tables)}
        small = {name: self._small(name, orders) for name in self._plain if name not in shapes}
        matrices = self._matrices(tables, orders)
        model = with_matrices(self._source, self._config, shapes, matrices, small, self._dtype)
        if self._widened:
            logger.warning(
                "%s: %d of its %d projections are held in float32, which takes longer to read: inputs that share a "
                "scale are no neighbours there (desc_act)",
                self._source, self._widened, len(self._packed),
            )  # fmt: skip
        return model

    def _matrices(self, tables: Sequence[str], orders: Mapping[str, Tensor]) -> Iterator[tuple[str, Matrix, bool]]:
        for path in tqdm(self._packed, desc=f"reading {self._source}", disable=None):
            by_input = self._names.is_contracting(path)
            yield path, self._matrix(path, orders.get(path), by_input=by_input), by_input
        for path in tables:
            yield path, self._table(path, orders.get(path)), self._names.is_contracting(path)

    # Number of projections that could not keep their codes.
    _widened = 0

    def _matrix(self, path: str, order_R: Tensor | None, *, by_input: bool) -> Matrix:
        """A projection's codes. If a group cannot stay together: plain numbers in fp32, which are exact too."""
        packed = self._read(path)
        packed = packed if order_R is None else packed.outputs(order_R)
        order_C = order_of(packed.groups) if by_input else None
        packed = packed if order_C is None else packed.inputs(order_C)
        rows, columns = packed.codes.shape
        blocks = None if by_input and rows % COLUMN_UNIT else packed.blocks()
        if blocks is None:
            self._widened += 1
            plain = packed.plain()
            return Dense(plain.t().contiguous() if by_input else plain, self._dtype)
        kind, data = blocks
        if by_input:
            room = untouched(column_sizes(kind, (columns, rows)))
            return lay_columns(data.numpy(), kind, (columns, rows), room, self._dtype)
        return lay_rows(data.numpy(), kind, (rows, columns), untouched(row_sizes(kind, (rows, columns))), self._dtype)

    def _table(self, path: str, order_R: Tensor | None) -> Matrix:
        """A matrix that is not quantised, with the checkpoint's own numbers."""
        values = self._tensor(f"{path}.weight")
        if self._names.is_contracting(path):
            return Dense(values.t().clone(memory_format=torch.contiguous_format), self._dtype)
        return Dense(values.clone() if order_R is None else values[order_R], self._dtype)

    def _small(self, name: str, orders: Mapping[str, Tensor]) -> Tensor:
        """Another parameter's values, fp32."""
        values, order_R = self._tensor(name).float(), orders.get(name.removesuffix(".bias"))
        return values.clone() if order_R is None else values[order_R]

    def _row_orders(self) -> dict[str, Tensor]:
        """The order in which each expanding projection's outputs are read, so that a group's neurons are neighbours.

        The order of neurons does not change the model.
        """
        found: dict[str, Tensor] = {}
        for contract in filter(self._names.is_contracting, self._packed):
            stored = f"{contract}.g_idx"
            order_F = order_of(self._tensor(stored)) if stored in self._where else None
            if order_F is not None:
                layer = contract.removesuffix(f".{self._names.contract}")
                parts = torch.cat([order_F + part * len(order_F) for part in range(self._names.fused)])
                found |= {f"{layer}.{expand}": parts for expand in self._names.expand}
        return found

    def _read(self, path: str) -> Packed:
        present = {ending: f"{path}.{ending}" for ending in TENSORS if f"{path}.{ending}" in self._where}
        tensors = {ending: self._tensor(name) for ending, name in present.items()}
        rows, columns = self._shapes[f"{path}.weight"]
        try:
            return Packed.read(tensors, self._scheme, (rows, columns))
        except ValueError as error:
            raise LoadError(f"'{self._source}': {path} {error}; download it again") from None

    def _tensor(self, name: str) -> Tensor:
        found: Tensor = self._where[name].get_tensor(name)
        return found

    def _is_matrix(self, name: str) -> bool:
        path, _, ending = name.rpartition(".")
        return ending == "weight" and takes_matrix(self._empty, self._empty.get_submodule(path))


def _plain_config(folder: Path) -> PreTrainedConfig:
    """A checkpoint's configuration without its quantisation, so that transformers does not look for kernels."""
    config = served_config(folder)[0]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config
