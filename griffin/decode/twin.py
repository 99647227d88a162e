"""DecodeTwin: a second module tree of the model with shared tensors; its FF projections read kept neurons only.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.decode.buffers import Buffers, Room, room_for
from griffin.model.cache import KVCache
from griffin.model.families import FeedForward, feed_forwards
from griffin.model.forward import logits, share
from griffin.model.host import Gather, HostWeights
from griffin.model.matrix.matrix import Matrix
from griffin.model.weights import FeedForwardWeights, Projection
from griffin.neurons import Chosen, Kept
from griffin.thresholds import LayerThresholds, Shares, shares_read


class DecodeTwin:
    """Runs tokens through the current request's kept neurons.

    The kept weights are gathered into buffers, see ``buffers``, and read through views of the buffers' beginnings. So
    each request may keep any number of neurons.
    """

    def __init__(self, model: PreTrainedModel, room: type[Room] | None = None) -> None:
        """
        Args:
            model: its projections' tensors are held from here on, so they must not be moved later.
            room: the policy of the buffers; by default the one for the model's device.
        """
        self.model = share(model)
        self._host = HostWeights.of(model)
        self._layers = [_CompactFeedForward(block, self._host, room) for block in feed_forwards(self.model)]
        self._thresholds: list[LayerThresholds] = []

    @torch.inference_mode()
    def load(self, chosen: Chosen) -> list[FeedForwardWeights]:
        """Use these neurons or thresholds from here on; they are on the model's device.

        Returns:
            Each layer's gathered weights, valid until the next call; empty for thresholds, which read in place.

        Raises:
            MemoryError, torch.OutOfMemoryError: there is not enough memory. No neurons are loaded then.
        """
        self._thresholds = []
        if isinstance(chosen, Kept):
            return self._gathered(chosen)
        for number, layer in enumerate(self._layers):
            self._thresholds.append(chosen.layer(number, layer.device))
            layer.follow(self._thresholds[-1])
        return []

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``load``; None if they are fixed."""
        return shares_read(self._thresholds) if self._thresholds else None

    def _gathered(self, kept: Kept) -> list[FeedForwardWeights]:
        # Free small buffers before making larger ones, because there may be no room for both.
        for layer, count in zip(self._layers, kept.counts, strict=True):
            layer.make_way(count)
        loaded: list[FeedForwardWeights] = []
        try:
            if self._host is None:
                for layer, kept_k in zip(self._layers, kept.layers, strict=True):
                    loaded.append(layer.load(kept_k, kept_k))
            else:
                self._load_from(self._host, kept, loaded)
        except BaseException:
            # Most likely out of memory. What was loaded is useless, and a smaller request may need the memory.
            loaded.clear()
            for layer in self._layers:
                layer.release()
            raise
        return loaded

    def _load_from(self, host: HostWeights, kept: Kept, loaded: list[FeedForwardWeights]) -> None:
        """Gather on the host, layer by layer; the next layer is fetched in the meantime."""
        staged, rows = Gather(host), [kept_k.cpu() for kept_k in kept.layers]

        def gather(rows: Matrix, kept_k: Tensor, to: Matrix) -> None:
            # Weights on the host are plain numbers.
            staged(rows.dense(), kept_k, to.dense())

        host.fetch(0)
        for number, layer in enumerate(self._layers):
            host.fetch(number + 1)
            loaded.append(layer.load(kept.layers[number], rows[number], gather))


class TwinStep:
    """Runs a token with the forward pass of transformers, through the model or its decode twin."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, twin: DecodeTwin) -> None:
        self._model, self._cache, self._twin = model, cache, twin
        self._tree = model

    def keep(self, chosen: Chosen | None) -> None:
        """Read only this from here on, or everything (None)."""
        self._tree = self._model
        if chosen is not None:
            self._twin.load(chosen)
            self._tree = self._twin.model

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``keep``; None if they are fixed."""
        return None if self._tree is self._model else self._twin.shares()

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``."""
        return logits(self._tree, torch.tensor([id], device=self._model.device), self._cache)[-1]


def _gather(rows: Matrix, kept_k: Tensor, to: Matrix) -> None:
    to.fill_(rows, kept_k)


class _CompactFeedForward:
    """One layer's kept weights, and the modules in the twin's tree that read them."""

    def __init__(self, block: FeedForward, host: HostWeights | None, room: type[Room] | None) -> None:
        width, self._fused = block.width, block.names.fused
        # One part for each matrix, even if several are stacked in one projection.
        self._parts = block.parts_FD
        biases = [_bias(p) for p in block.expand]
        self._biases_F = [part for bias in biases if bias is not None for part in torch.split(bias, width)]
        # The bias of the contracting projection belongs to no neuron, so it is always used whole.
        self._down, self._contract_bias = block.down, _bias(block.contract)
        merged = len({part.format for part in self._parts}) == 1 and self._parts[0].merges
        # The parts that are gathered into one buffer: all of them if their format allows it.
        self._stacks = [self._parts] if merged else [[part] for part in self._parts]
        self.device = host.device if host else self._down.device
        policy = room or room_for(self.device, on_host=host is not None)
        self.room = policy(width, self._allocate)
        self._expand_slots = [_Expand(None) for _ in block.expand]
        self._contract_slot = _Contract(self._contract_bias, self._expand_slots[0], block.activation)
        for name, slot in zip(block.names.expand, self._expand_slots, strict=True):
            block.layer.set_submodule(name, slot)
        block.layer.set_submodule(block.names.contract, self._contract_slot)

    def load(
        self,
        kept_k: Tensor,
        rows_k: Tensor,
        gather: Callable[[Matrix, Tensor, Matrix], None] = _gather,
    ) -> FeedForwardWeights:
        """
        Args:
            rows_k: ``kept_k`` on the device of the model's matrices.
            gather: copies rows of a matrix, given such indices, into a buffer.
        """
        parts, kept, buffers = len(self._parts), len(kept_k), self.room.take(len(kept_k))
        kept_k, rows_k = kept_k.to(self.device), rows_k.to(self._down.device)
        expand = [room.part(0, len(stack) * kept) for stack, room in zip(self._stacks, buffers.expand, strict=True)]
        for stack, room in zip(self._stacks, expand, strict=True):
            for part, to in zip(stack, room.split([kept] * len(stack)), strict=True):
                gather(part, rows_k, to)
        bias = None
        if buffers.bias is not None:
            bias = buffers.bias[: parts * kept]
            for bias_F, own in zip(self._biases_F, torch.split(bias, kept), strict=True):
                torch.index_select(bias_F, 0, kept_k, out=own)
        contract: Matrix = buffers.contract.part(0, kept)
        gather(self._down, rows_k, contract)
        self._fill_slots(expand, bias, contract, self._fused * kept)
        self._contract_slot.bias = self._contract_bias
        return FeedForwardWeights(Projection(expand, bias), contract, self._contract_bias, parts == 2)

    def follow(self, thresholds: LayerThresholds) -> None:
        """Let each token pick what it reads of all neurons' weights."""
        biases = torch.cat(self._biases_F) if self._biases_F else None
        self._fill_slots(self._parts, biases, self._down, self._fused * self._down.row_count)
        at_rest_D = self._down.weighted_rows(thresholds.resting.to(self._down.dtype), self._contract_bias)
        self._expand_slots[0].thresholds = self._contract_slot.thresholds = thresholds
        self._contract_slot.bias = at_rest_D

    def make_way(self, kept: int) -> None:
        """Free buffers that are too small for so many neurons."""
        if self.room.is_short(kept):
            self.release()

    def release(self) -> None:
        """Free the buffers, and drop every view of them."""
        self.room.release()
        for slot in (*self._expand_slots, self._contract_slot):
            slot.matrices = ()

    def _fill_slots(self, expand: Sequence[Matrix], bias: Tensor | None, contract: Matrix, rows: int) -> None:
        for number, slot in enumerate(self._expand_slots):
            first, end = number * rows, (number + 1) * rows
            # One stack of all parts, or each part by itself.
            slot.matrices = (
                [expand[0].part(first, end)]
                if len(expand) == 1
                else expand[number * self._fused : (number + 1) * self._fused]
            )
            slot.bias = bias[first:end] if bias is not None else None
        self._contract_slot.matrices = [contract]
        self._expand_slots[0].thresholds = self._contract_slot.thresholds = None

    def _allocate(self, neurons: int) -> Buffers:
        rows = len(self._parts) * neurons
        bias = torch.empty(rows, dtype=self._down.dtype, device=self.device) if self._biases_F else None
        expand = [stack[0].room(len(stack) * neurons, self.device) for stack in self._stacks]
        return Buffers(expand, bias, self._down.room(neurons, self.device))


class _Slot(nn.Module):
    """Replaces a projection in the twin. Its tensors are views that change with each request.

    thresholds: for tokens that pick what they read; None if they read everything that is there.
    """

    matrices: Sequence[Matrix] = ()
    bias: Tensor | None
    thresholds: LayerThresholds | None = None

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias


class _Expand(_Slot):
    """An expanding projection. The first one has the gate and the thresholds."""

    _gate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.thresholds is None:
            return Projection(self.matrices, self.bias)(x)
        gate, *others = self.matrices
        self._gate = self.thresholds.gate(gate.product(self.thresholds.inputs(x)))
        if not others:
            return self._gate
        bias = None if self.bias is None else self.bias[gate.row_count :]
        return torch.cat((self._gate, Projection(others, bias)(x)), dim=-1)

    def take_gate(self) -> Tensor:
        """The input of the activation function; it is then forgotten."""
        gate, self._gate = self._gate, None
        assert gate is not None
        return gate


class _Contract(_Slot):
    """The contracting projection."""

    def __init__(self, bias: Tensor | None, first: _Expand, activation: Callable[[Tensor], Tensor] | None) -> None:
        """
        Args:
            first: the projection that has the gate.
            activation: the gate's function; None in a block without a gate.
        """
        super().__init__(bias)
        # Not registered as a submodule of this one.
        self._first, self._activation = (first,), activation

    def forward(self, z: Tensor) -> Tensor:
        if self.thresholds is not None:
            gate = self._first[0].take_gate()
            given = z if self._activation is None else self._activation(gate).view_as(z)
            z = self.thresholds.outputs(given, z)
        (contract,) = self.matrices
        return contract.weighted_rows(z, self.bias)


def _bias(projection: nn.Module) -> Tensor | None:
    bias = projection.bias
    return bias.data if isinstance(bias, Tensor) else None
