"""Tiny models with codes of GGUF files, each with a model that has the same values in fp32."""

from collections.abc import Callable

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.model.checkpoint.gguf_codes import column_sizes, lay_columns, lay_rows, row_sizes
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.modules import MatrixEmbedding, MatrixLinear
from griffin.model.memory import untouched
from tests.griffin.model.quantised import HALVES, plain, random_tensor
from tests.tiny import tiny_model

T = GGMLQuantizationType
PLAIN = {T.F32: torch.float32, T.F16: torch.float16, T.BF16: torch.bfloat16}
# The type of a matrix, by the name of its module.
KindOf = Callable[[str], GGMLQuantizationType]


def laid_rows(
    kind: GGMLQuantizationType, data: np.ndarray, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> GroupedRows:
    return lay_rows(data, kind, shape, untouched(row_sizes(kind, shape)), dtype)


def laid_columns(
    kind: GGMLQuantizationType, data: np.ndarray, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> GroupedColumns:
    """The transpose of a file's tensor; ``shape`` is that of the transpose."""
    return lay_columns(data, kind, shape, untouched(column_sizes(kind, shape)), dtype)


def sized_tensor(
    kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0, deviation: float = 0.25
) -> np.ndarray:
    """Bytes of random codes whose numbers have about this standard deviation."""
    data = random_tensor(kind, rows, columns, seed)
    factor = deviation / plain(data, kind).std()
    blocks = data.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for place in HALVES[kind]:
        halves = blocks[:, place : place + 2].copy().view("<f2").astype(np.float32)
        blocks[:, place : place + 2] = (halves * float(factor)).astype("<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def matrix_of(
    kind: GGMLQuantizationType, rows: int, columns: int, seed: int, dtype: torch.dtype, *, by_input: bool
) -> tuple[Matrix, Tensor]:
    """A random tensor ``(rows, columns)`` of a file as a matrix, or by input its transpose; and its values, fp32."""
    deviation = columns**-0.5
    if kind in PLAIN:
        generator = torch.Generator().manual_seed(seed)
        values = (deviation * torch.randn(rows, columns, generator=generator)).to(PLAIN[kind])
        return Dense((values.t() if by_input else values).contiguous(), dtype), values.float()
    data = sized_tensor(kind, rows, columns, seed, deviation)
    values = torch.from_numpy(gguf.dequantize(data, kind))
    if by_input:
        return laid_columns(kind, data, (columns, rows), dtype), values
    return laid_rows(kind, data, (rows, columns), dtype), values


@torch.no_grad()
def coded_model(
    kind_of: KindOf, dtype: torch.dtype = torch.float32, family: str = "llama", **sizes: int
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with codes, and the same values in fp32. ``dtype`` can represent all biases and norms."""
    exact = tiny_model(family, num_hidden_layers=2, **sizes)
    for parameter in exact.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter)).copy_(parameter.to(dtype).float())
    coded = tiny_model(family, num_hidden_layers=2, **sizes).to(dtype)
    coded.load_state_dict(exact.state_dict())
    for number, (name, module) in enumerate(list(exact.named_modules())):
        if isinstance(module, nn.Linear | nn.Embedding):
            rows, columns = module.weight.shape
            by_input = name.endswith(("down_proj", "fc2"))
            matrix, values = matrix_of(kind_of(name), rows, columns, number, dtype, by_input=by_input)
            module.weight.copy_(values)
            coded.set_submodule(name, _module(coded.get_submodule(name), matrix, by_input=by_input))
    return coded, exact


def _module(module: nn.Module, matrix: Matrix, *, by_input: bool) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return MatrixEmbedding(matrix, 1.0)
    bias = module.bias
    return MatrixLinear(matrix, bias.detach() if isinstance(bias, Tensor) else None, by_input=by_input)
