"""DecodeTwin: the model's module tree again, tensors shared, its FF projections reading kept neurons only.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from griffin.families import FeedForward, feed_forwards, linear_weight
from griffin.sampling import seeded_generator
from griffin.selection import SELECTIONS, SelectionName
from griffin.statistic import STATISTICS, StatisticName


@dataclass(frozen=True, slots=True)
class Pruning:
    """One request's choices.

    sparsity: fraction of FF neurons removed while decoding, 0 <= sparsity < 1; 0 is the dense model.
    selection: how neurons are picked from the statistic.
    statistic: what they are picked by.
    seed: of the selections that draw; None draws differently each time.
    """

    sparsity: float = 0.0
    selection: SelectionName = "top_k"
    statistic: StatisticName = "flocking"
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, but is {self.sparsity}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, but is {self.selection!r}")
        if self.statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, but is {self.statistic!r}")

    def generator(self) -> Generator:
        return seeded_generator(self.seed, torch.device("cpu"))


def share(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers; costs no weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


class DecodeTwin:
    """Runs one token at a time through the kept neurons of the request at hand.

    The kept weights are gathered into buffers made once, at their full size, and used through prefix
    views: any sparsity per request, no allocation from request to request. (On Linux the pages of a
    buffer that no request has needed yet are not backed by memory.)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = share(model)
        self._layers = [_CompactFeedForward(block) for block in feed_forwards(self.model)]

    @torch.inference_mode()
    def load(self, experts_Lk: Tensor) -> None:
        """Keep these neurons from now on. ``experts_Lk``: sorted int64 indices, on the model's device."""
        for layer, experts_k in zip(self._layers, experts_Lk, strict=True):
            layer.load(experts_k)


def store_by_neuron_(blocks: Sequence[FeedForward]) -> None:
    """Lay every FF weight out so that one neuron is one contiguous row, in place and without a change of shape.

    Contracting weights are ``(D, F)`` by rows in a checkpoint: gathering columns of them is 2 to 14 times
    slower than gathering rows, while the product with the transposed form costs between 20 % less and
    30 % more (AMD EPYC with AVX512-BF16, 2 threads, fp32 and bf16, D 576 and 2048).
    """
    for block in blocks:
        for projection in block.expand:
            _make_contiguous_(projection, linear_weight(projection))
        _make_contiguous_(block.contract, linear_weight(block.contract).t())


def _make_contiguous_(projection: nn.Module, neurons: Tensor) -> None:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    if not neurons.is_contiguous():
        rows = neurons.contiguous()
        weight.data = rows if neurons.stride() == weight.stride() else rows.t()


class _CompactFeedForward:
    """The buffers of one layer, and the modules in the twin's tree that read them."""

    def __init__(self, block: FeedForward) -> None:
        self._width, self._fused = block.width, block.names.fused
        self._expand = [_Gathered(linear_weight(p), _bias(p)) for p in block.expand]
        # The bias of the contracting projection belongs to no neuron and stays whole.
        self._contract = _Gathered(linear_weight(block.contract).t(), None)
        self._expand_slots = [_KeptNeurons(None) for _ in self._expand]
        self._contract_slot = _KeptNeurons(_bias(block.contract))
        for name, slot in zip(block.names.expand, self._expand_slots, strict=True):
            block.layer.set_submodule(name, slot)
        block.layer.set_submodule(block.names.contract, self._contract_slot)

    def load(self, experts_k: Tensor) -> None:
        rows = experts_k
        if self._fused > 1:
            rows = torch.cat([experts_k + part * self._width for part in range(self._fused)])
        for gathered, slot in zip(self._expand, self._expand_slots, strict=True):
            slot.weight, slot.bias = gathered.load(rows)
        self._contract_slot.weight = self._contract.load(experts_k)[0].t()


class _Gathered:
    """Chosen rows of a weight and its bias, copied to the front of buffers that never move."""

    def __init__(self, rows: Tensor, bias: Tensor | None) -> None:
        self._rows, self._bias = rows, bias
        self._rows_buffer = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        self._bias_buffer = torch.empty_like(bias) if bias is not None else None

    def load(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = torch.index_select(self._rows, 0, index, out=self._rows_buffer[: len(index)])
        if self._bias is None or self._bias_buffer is None:
            return weight, None
        return weight, torch.index_select(self._bias, 0, index, out=self._bias_buffer[: len(index)])


class _KeptNeurons(nn.Module):
    """Stands in the twin where a projection stood. Its tensors are views that change with each request."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def _bias(projection: nn.Module) -> Tensor | None:
    bias = projection.bias
    return bias.data if isinstance(bias, Tensor) else None
