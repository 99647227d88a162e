"""DecodeTwin: the model's module tree again, tensors shared, its FF projections reading kept neurons only.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.decode.buffers import Buffers, Room, room_for
from griffin.model.cache import KVCache
from griffin.model.families import FeedForward, feed_forwards
from griffin.model.forward import logits, share
from griffin.model.host import Gather, HostWeights
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.matrix import Matrix
from griffin.model.weights import FeedForwardWeights, Projection
from griffin.neurons import Kept


class DecodeTwin:
    """Runs tokens through the kept neurons of the request at hand.

    The kept weights are gathered into buffers, see ``buffers``, and read through views of their beginnings. So any
    request may keep any number of neurons.
    """

    def __init__(self, model: PreTrainedModel, room: type[Room] | None = None) -> None:
        """
        Args:
            model: its projections' tensors are kept from now on: whatever moves them must have done so.
            room: the policy of the buffers; by default the one for the model's device.
        """
        self.model = share(model)
        self._host = HostWeights.of(model)
        self._layers = [_CompactFeedForward(block, self._host, room) for block in feed_forwards(self.model)]

    @torch.inference_mode()
    def load(self, kept: Kept) -> list[FeedForwardWeights]:
        """Keep these neurons, on the model's device, from now on.

        Returns:
            Each layer's gathered weights, good until the next call.

        Raises:
            MemoryError, torch.OutOfMemoryError: there is no room for them. No neurons are loaded then.
        """
        loaded = self._gathered(kept)
        if kept.correction is not None:
            for number, feed_forward in enumerate(loaded):
                kept.correction.add_to_(number, feed_forward.contract.dense())
        if kept.acting is not None:
            acting = kept.acting.to(loaded[0].contract.device, loaded[0].contract.dtype)
            for number, layer in enumerate(self._layers):
                layer.act(partial(acting.apply, number))
        if kept.offset_LD is None:
            return loaded
        return [
            layer.offset(feed_forward, offset_D)
            for layer, feed_forward, offset_D in zip(self._layers, loaded, kept.offset_LD, strict=True)
        ]

    def _gathered(self, kept: Kept) -> list[FeedForwardWeights]:
        # Small buffers go before any larger one is made, because there may not be room for both.
        for layer, count in zip(self._layers, kept.counts, strict=True):
            layer.make_way(count)
        loaded: list[FeedForwardWeights] = []
        try:
            if self._host is None:
                for layer, kept_k in zip(self._layers, kept.layers, strict=True):
                    loaded.append(layer.load(kept_k, kept_k, corrected=kept.correction is not None))
            else:
                self._load_from(self._host, kept, loaded)
        except BaseException:
            # Out of memory, most likely. What was loaded is of no use, and a smaller request may need the room.
            loaded.clear()
            for layer in self._layers:
                layer.release()
            raise
        return loaded

    def _load_from(self, host: HostWeights, kept: Kept, loaded: list[FeedForwardWeights]) -> None:
        """Gather on the host, layer by layer; the next layer is fetched meanwhile."""
        staged, rows = Gather(host), [kept_k.cpu() for kept_k in kept.layers]

        def gather(rows: Matrix, kept_k: Tensor, to: Matrix) -> None:
            # Weights on the host are plain numbers.
            staged(rows.dense(), kept_k, to.dense())

        host.fetch(0)
        for number, layer in enumerate(self._layers):
            host.fetch(number + 1)
            loaded.append(layer.load(kept.layers[number], rows[number], gather))


class TwinStep:
    """A token by the forward pass of transformers, through the model or its decode twin."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, twin: DecodeTwin) -> None:
        self._model, self._cache, self._twin = model, cache, twin
        self._tree = model

    def keep(self, kept: Kept | None) -> None:
        """Use these neurons from now on, or all."""
        self._tree = self._model
        if kept is not None:
            self._twin.load(kept)
            self._tree = self._twin.model

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``."""
        return logits(self._tree, torch.tensor([id], device=self._model.device), self._cache)[-1]


def _gather(rows: Matrix, kept_k: Tensor, to: Matrix) -> None:
    to.fill_(rows, kept_k)


class _CompactFeedForward:
    """One layer's kept weights, and the modules in the twin's tree that read them."""

    def __init__(self, block: FeedForward, host: HostWeights | None, room: type[Room] | None) -> None:
        width, self._fused = block.width, block.names.fused
        # One part for each matrix, also where several are stacked in one projection.
        self._parts = block.parts_FD
        biases = [_bias(p) for p in block.expand]
        self._biases_F = [part for bias in biases if bias is not None for part in torch.split(bias, width)]
        # The bias of the contracting projection belongs to no neuron and stays whole.
        self._down, self._contract_bias = block.down, _bias(block.contract)
        merged = len({part.format for part in self._parts}) == 1 and self._parts[0].merges
        # What is gathered into one buffer: all parts where their format allows it.
        self._stacks = [self._parts] if merged else [[part] for part in self._parts]
        self._device = host.device if host else self._down.device
        policy = room or room_for(self._device, on_host=host is not None)
        self.room = policy(width, self._allocate)
        self._expand_slots = [_KeptNeurons(None, by_input=False) for _ in block.expand]
        self._contract_slot = _KeptNeurons(self._contract_bias, by_input=True)
        self._activation = block.activation
        for name, slot in zip(block.names.expand, self._expand_slots, strict=True):
            block.layer.set_submodule(name, slot)
        block.layer.set_submodule(block.names.contract, self._contract_slot)

    def load(
        self,
        kept_k: Tensor,
        rows_k: Tensor,
        gather: Callable[[Matrix, Tensor, Matrix], None] = _gather,
        *,
        corrected: bool = False,
    ) -> FeedForwardWeights:
        """
        Args:
            rows_k: ``kept_k`` on the device of the model's matrices.
            gather: copies rows of a matrix, by such indices, into a buffer.
            corrected: the contracting rows will be corrected, and so must be plain numbers.
        """
        parts, kept, buffers = len(self._parts), len(kept_k), self.room.take(len(kept_k))
        kept_k, rows_k = kept_k.to(self._device), rows_k.to(self._down.device)
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
        if corrected and not isinstance(contract, Dense):
            contract = Dense(contract.dense())
        self._fill_slots(expand, bias, contract, self._fused * kept)
        self._contract_slot.bias = self._contract_bias
        return FeedForwardWeights(Projection(expand, bias), contract, self._contract_bias, parts == 2)

    def offset(self, feed_forward: FeedForwardWeights, offset_D: Tensor) -> FeedForwardWeights:
        """The loaded weights, with an offset added to their output."""
        bias_D = offset_D.to(feed_forward.contract.device, feed_forward.contract.dtype)
        if self._contract_bias is not None:
            bias_D = bias_D + self._contract_bias
        self._contract_slot.bias = bias_D
        return replace(feed_forward, contract_bias=bias_D)

    def act(self, apply: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Let the loaded neurons act only on the tokens that ``Acting.apply`` of this layer says."""
        given: Callable[[], Tensor] | None = None
        if self._activation is not None:
            self._expand_slots[0].remembers = True
            given = partial(self._given, self._activation)
        self._contract_slot.acts = apply, given

    def make_way(self, kept: int) -> None:
        """Give up buffers that have no room for so many neurons."""
        if self.room.is_short(kept):
            self.release()

    def release(self) -> None:
        """Give up the buffers, and every view of them."""
        self.room.release()
        for slot in (*self._expand_slots, self._contract_slot):
            slot.matrices = ()

    def _given(self, activation: Callable[[Tensor], Tensor]) -> Tensor:
        gate = self._expand_slots[0].take()
        return activation(gate[..., : gate.shape[-1] // self._fused])

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
        self._contract_slot.matrices, self._contract_slot.acts = [contract], None
        self._expand_slots[0].remembers = False

    def _allocate(self, neurons: int) -> Buffers:
        rows = len(self._parts) * neurons
        bias = torch.empty(rows, dtype=self._down.dtype, device=self._device) if self._biases_F else None
        expand = [stack[0].room(len(stack) * neurons, self._device) for stack in self._stacks]
        return Buffers(expand, bias, self._down.room(neurons, self._device))


class _KeptNeurons(nn.Module):
    """Takes the place of a projection in the twin. Its tensors are views that change with each request.

    acts: for a contracting projection: ``Acting.apply`` of its layer, and a function that gives the values of the
        gates, or None where the activations are those themselves.
    remembers: for the first expanding projection: whether its latest output is needed again.
    """

    matrices: Sequence[Matrix] = ()
    bias: Tensor | None
    acts: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], Tensor] | None] | None = None
    remembers = False

    def __init__(self, bias: Tensor | None, *, by_input: bool) -> None:
        super().__init__()
        self.bias, self._by_input = bias, by_input
        self._given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.acts is not None:
            apply, given = self.acts
            x = apply(given().view_as(x) if given else x, x)
        if self._by_input:
            (contract,) = self.matrices
            y = contract.weighted_rows(x, self.bias)
        else:
            y = Projection(self.matrices, self.bias)(x)
        if self.remembers:
            self._given = y
        return y

    def take(self) -> Tensor:
        """Its latest output, which is then forgotten."""
        given, self._given = self._given, None
        assert given is not None
        return given


def _bias(projection: nn.Module) -> Tensor | None:
    bias = projection.bias
    return bias.data if isinstance(bias, Tensor) else None
