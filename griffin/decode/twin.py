"""DecodeTwin: the model's module tree again, tensors shared, its FF projections reading kept neurons only.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from griffin.model.families import FeedForward, feed_forwards
from griffin.model.forward import share
from griffin.model.host import Gather, HostWeights
from griffin.model.matrix.dense import Dense
from griffin.model.weights import FeedForwardWeights, Projection
from griffin.neurons import Kept


class DecodeTwin:
    """Runs tokens through the kept neurons of the request at hand.

    The kept weights are gathered into buffers made once, at their full size, and used through prefix
    views: any sparsity per request, no allocation from request to request. (On Linux the pages of a
    buffer that no request has needed yet are not backed by memory.) Of a model whose FF weights stay on the
    host, buffers are only as large as the largest request so far: all of them would not fit.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = share(model)
        self._host = HostWeights.of(model)
        self._layers = [_CompactFeedForward(block, self._host) for block in feed_forwards(self.model)]

    @torch.inference_mode()
    def load(self, kept: Kept) -> list[FeedForwardWeights]:
        """Keep these neurons, on the model's device, from now on; each layer's gathered weights."""
        if self._host is None:
            loaded = [layer.load(e_k, e_k) for layer, e_k in zip(self._layers, kept.layers, strict=True)]
        else:
            loaded = self._load_from_host(self._host, kept)
        if kept.correction is not None:
            for number, feed_forward in enumerate(loaded):
                kept.correction.add_to_(number, feed_forward.contract.dense())
        if kept.gating is not None:
            contract = loaded[0].contract
            gating = kept.gating.to(contract.device, contract.dtype)
            for number, layer in enumerate(self._layers):
                layer.gate(partial(gating.apply, number))
        if kept.offset_LD is None:
            return loaded
        return [
            layer.offset(feed_forward, offset_D)
            for layer, feed_forward, offset_D in zip(self._layers, loaded, kept.offset_LD, strict=True)
        ]

    def _load_from_host(self, host: HostWeights, kept: Kept) -> list[FeedForwardWeights]:
        gather, rows, loaded = Gather(host), [kept_k.cpu() for kept_k in kept.layers], []
        # Before larger buffers are made, for there may not be room for both.
        for layer, count in zip(self._layers, kept.counts, strict=True):
            layer.release(count)
        try:
            host.fetch(0)
            for number, layer in enumerate(self._layers):
                host.fetch(number + 1)
                loaded.append(layer.load(kept.layers[number], rows[number], gather))
        except BaseException:
            # Out of memory, most likely: what is there is of no use, and a smaller request may need the room.
            loaded.clear()
            for layer in self._layers:
                layer.release()
            raise
        return loaded


def _gather(rows_FD: Tensor, kept_k: Tensor, to_kD: Tensor) -> None:
    torch.index_select(rows_FD, 0, kept_k, out=to_kD)


class _CompactFeedForward:
    """The buffers of one layer, and the modules in the twin's tree that read them."""

    def __init__(self, block: FeedForward, host: HostWeights | None) -> None:
        width, fused = block.width, block.names.fused
        projections = block.expand
        # One part for each matrix, also where several are stacked in one projection.
        self._parts_FD = [part.dense() for part in block.parts_FD]
        biases = [_bias(p) for p in projections]
        self._biases_F = [part for bias in biases if bias is not None for part in torch.split(bias, width)]
        # The bias of the contracting projection belongs to no neuron and stays whole.
        self._rows_FD, self._contract_bias = block.down.dense(), _bias(block.contract)
        self._device, self._by_need = host.device if host else self._rows_FD.device, host is not None
        # Unused room costs nothing on a CPU, whose pages are not there before they are written.
        self._by_need |= self._device.type != "cpu"
        self._buffers: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._fused = fused
        self._expand_slots = [_KeptNeurons(None) for _ in projections]
        self._contract_slot = _KeptNeurons(self._contract_bias)
        self._activation = block.activation
        for name, slot in zip(block.names.expand, self._expand_slots, strict=True):
            block.layer.set_submodule(name, slot)
        block.layer.set_submodule(block.names.contract, self._contract_slot)

    def load(self, kept_k: Tensor, rows_k: Tensor, gather: Callable[..., object] = _gather) -> FeedForwardWeights:
        """
        Args:
            rows_k: the same as ``kept_k``, where the matrices are.
            gather: of a matrix and such indices, rows into a buffer.
        """
        kept = len(kept_k)
        expand_buffer, bias_buffer, contract_buffer = self._room(kept)
        kept_k, rows_k = kept_k.to(self._device), rows_k.to(self._rows_FD.device)
        expand, bias = expand_buffer[: len(self._parts_FD) * kept], None
        for part_FD, to in zip(self._parts_FD, torch.split(expand, kept), strict=True):
            gather(part_FD, rows_k, to)
        if bias_buffer is not None:
            bias = bias_buffer[: len(self._parts_FD) * kept]
            for bias_F, to in zip(self._biases_F, torch.split(bias, kept), strict=True):
                torch.index_select(bias_F, 0, kept_k, out=to)
        contract_kD = contract_buffer[:kept]
        gather(self._rows_FD, rows_k, contract_kD)
        self._fill_slots(expand, bias, contract_kD, self._fused * kept)
        self._contract_slot.bias = self._contract_bias
        return FeedForwardWeights(
            Projection(Dense(expand), bias), Dense(contract_kD), self._contract_bias, len(self._parts_FD) == 2
        )

    def offset(self, feed_forward: FeedForwardWeights, offset_D: Tensor) -> FeedForwardWeights:
        """What was loaded, with this added to what it gives."""
        bias_D = offset_D.to(feed_forward.contract.device, feed_forward.contract.dtype)
        if self._contract_bias is not None:
            bias_D = bias_D + self._contract_bias
        self._contract_slot.bias = bias_D
        return replace(feed_forward, contract_bias=bias_D)

    def gate(self, acts: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Of what was loaded, let those neurons act on a token that ``Gating.apply`` lets."""
        given: Callable[[], Tensor] | None = None
        if self._activation is not None:
            self._expand_slots[0].remembers = True
            given = partial(self._given, self._activation)
        self._contract_slot.acts = acts, given

    def _given(self, activation: Callable[[Tensor], Tensor]) -> Tensor:
        gate = self._expand_slots[0].take()
        return activation(gate[..., : gate.shape[-1] // self._fused])

    def _fill_slots(self, expand: Tensor, bias: Tensor | None, contract_kD: Tensor, rows: int) -> None:
        for number, slot in enumerate(self._expand_slots):
            part = slice(number * rows, (number + 1) * rows)
            slot.weight, slot.bias = expand[part], bias[part] if bias is not None else None
        self._contract_slot.weight, self._contract_slot.acts = contract_kD.t(), None
        self._expand_slots[0].remembers = False

    def release(self, kept: int | None = None) -> None:
        """Give up the buffers, or only if they are of fewer neurons."""
        if self._buffers is None or (kept is not None and len(self._buffers[2]) >= kept):
            return
        self._buffers = None
        for slot in (*self._expand_slots, self._contract_slot):
            slot.weight = self._rows_FD[:0]

    def _room(self, kept: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Made at the first need: a step that has kept neurons of its own leaves this to scoring."""
        if self._buffers is None:
            neurons, width = self._rows_FD.shape
            neurons = kept if self._by_need else neurons
            rows = len(self._parts_FD) * neurons

            def buffer(*shape: int) -> Tensor:
                return torch.empty(shape, dtype=self._rows_FD.dtype, device=self._device)

            bias = buffer(rows) if self._biases_F else None
            self._buffers = buffer(rows, width), bias, buffer(neurons, width)
        return self._buffers


class _KeptNeurons(nn.Module):
    """Stands in the twin where a projection stood. Its tensors are views that change with each request.

    acts: of a contracting one, what counts of activations (``Gating.apply``), and where the values of their gates are
        to be had; those are the activations themselves where there is no gate.
    remembers: of the first expanding one, whether what it gives is wanted once more.
    """

    weight: Tensor
    bias: Tensor | None
    acts: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], Tensor] | None] | None = None
    remembers = False

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self._given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.acts is not None:
            acts, given = self.acts
            x = acts(given().view_as(x) if given else x, x)
        y = functional.linear(x, self.weight, self.bias)
        if self.remembers:
            self._given = y
        return y

    def take(self) -> Tensor:
        """What this gave last."""
        given, self._given = self._given, None
        assert given is not None
        return given


def _bias(projection: nn.Module) -> Tensor | None:
    bias = projection.bias
    return bias.data if isinstance(bias, Tensor) else None
