"""FF weights in host memory, for a model that is larger than the device. ``mapped`` keeps them in a file instead.

The prompt phase streams them: while one layer computes, the next one is copied. The kept neurons are gathered on the
host once for each request; the device decodes all tokens of the answer with these (the paper, 5.2). All other weights
are on the device.

Shapes: D model width, F feed-forward neurons, k of them kept; parts is 2 where gated, 1 otherwise.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from griffin.model.families import FeedForward, feed_forwards

# The attribute of a model's trees that holds its host weights.
ATTRIBUTE = "feed_forward_on_host"


@dataclass(frozen=True, slots=True, eq=False)
class HostLayer:
    """One layer's FF matrices by neuron.

    expand_FD: ``(parts F, D)``, the gate's rows first.
    contract_FD: one row a neuron.
    """

    expand_FD: Tensor
    contract_FD: Tensor


class HostWeights:
    """The FF matrices of one model, on the CPU, shared by all its trees.

    device: where the model computes.
    staged: layers are copied to the device before they are used; otherwise they are read in place.
    """

    def __init__(
        self,
        layers: Sequence[HostLayer],
        device: torch.device,
        *,
        staged: bool,
        fetch: Callable[[int], None] | None = None,
        require_unchanged: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            fetch: starts to read a layer and does not wait for it.
            require_unchanged: raises WeightsChanged if the weights have changed. Called after each use.
        """
        self.layers, self.device, self.staged = layers, device, staged
        self._fetch = fetch
        self.require_unchanged = require_unchanged

    def __deepcopy__(self, memo: dict[int, object]) -> "HostWeights":
        # A second tree of the model shares this object, as it shares the parameters.
        return self

    @staticmethod
    def of(model: PreTrainedModel) -> "HostWeights | None":
        """A model's host weights; None if all its weights are on the device."""
        return getattr(model, ATTRIBUTE, None)

    def fetch(self, number: int) -> None:
        """Start to read a layer that will be needed soon. A number after the last layer does nothing."""
        if self._fetch is not None and number < len(self.layers):
            self._fetch(number)


def offload_(model: PreTrainedModel, device: torch.device, *, staged: bool = True) -> None:
    """Move a loaded model to the device, except its FF matrices, which stay in host memory (pinned for CUDA).

    Meanwhile it needs memory for the model and the matrices of one more layer.

    Raises:
        UnsupportedModel: see ``families.feed_forwards``.
    """
    blocks = feed_forwards(model)
    layers = []
    for block in blocks:
        layers.append(_by_neuron(block, pinned=device.type == "cuda"))
        for projection in (*block.expand, block.contract):
            # Free the family's own layout layer by layer.
            projection.register_parameter("weight", None)
    model.to(device)
    attach_(model, HostWeights(layers, device, staged=staged), blocks)


def attach_(model: PreTrainedModel, host: HostWeights, blocks: Sequence[FeedForward]) -> None:
    """Give the model's FF projections these weights."""
    for block, layer in zip(blocks, host.layers, strict=True):
        _assign(block, layer)
    setattr(model, ATTRIBUTE, host)


@torch.no_grad()
def _by_neuron(block: FeedForward, *, pinned: bool) -> HostLayer:
    expanding, down_FD = [part.dense() for part in block.parts_FD], block.down.dense()
    neurons, width = down_FD.shape
    expand_FD = torch.empty(len(expanding) * neurons, width, dtype=down_FD.dtype, pin_memory=pinned)
    contract_FD = torch.empty(neurons, width, dtype=down_FD.dtype, pin_memory=pinned)
    torch.cat(expanding, out=expand_FD)
    return HostLayer(expand_FD, contract_FD.copy_(down_FD))


def _assign(block: FeedForward, layer: HostLayer) -> None:
    """Give a block's projections views of a layer, in the family's shapes."""
    parts = layer.expand_FD.chunk(len(block.names.expand))
    for projection, weight in zip((*block.expand, block.contract), (*parts, layer.contract_FD.t()), strict=True):
        shaped = weight.t() if isinstance(projection, Conv1D) else weight
        projection.weight = nn.Parameter(shaped, requires_grad=False)


def stream(model: PreTrainedModel, blocks: Sequence[FeedForward]) -> None:
    """Make a tree's forward pass load each layer's FF weights when needed. Does nothing if all are on the device.

    Do this last: copies of the tree would run these hooks too.
    """
    host = HostWeights.of(model)
    if host is not None:
        streaming = _Staged(host, blocks) if host.staged else _InPlace(host)
        streaming.attach(blocks)


class _InPlace:
    """Weights are used in place. While a layer is used, the next one is fetched."""

    def __init__(self, host: HostWeights) -> None:
        self._host = host

    def attach(self, blocks: Sequence[FeedForward]) -> None:
        """Put hooks around each FF block."""
        for number, block in enumerate(blocks):
            for projection in block.expand:
                projection.register_forward_pre_hook(partial(self._entered, number))
            block.contract.register_forward_hook(partial(self._left, number))

    def enter(self, number: int) -> None:
        """A layer's matrices are about to be used."""
        if number == 0:
            self._host.fetch(0)
        self._host.fetch(number + 1)

    def leave(self, number: int) -> None:
        """A layer's matrices have been used. After the last layer, the weights must be unchanged."""
        if number == len(self._host.layers) - 1:
            self._host.require_unchanged()

    def _entered(self, number: int, *_: Any) -> None:
        self.enter(number)

    def _left(self, number: int, *_: Any) -> None:
        self.leave(number)


class _Staged(_InPlace):
    """Two places on the device, at fixed addresses, hold layers in turn: one is used while the other is filled."""

    def __init__(self, host: HostWeights, blocks: Sequence[FeedForward]) -> None:
        super().__init__(host)
        self._beside = Beside(host.device)
        self._slots = [_Slot(host.layers[0], host.device) for _ in range(2)]
        for number, block in enumerate(blocks):
            _assign(block, self._slots[number % 2].layer)

    def enter(self, number: int) -> None:
        # Within a pass, ``leave`` has started both copies already.
        self._fill(number)
        self._fill(number + 1)
        self._slots[number % 2].filled.wait()

    def leave(self, number: int) -> None:
        self._fill(number + 2)

    def _fill(self, number: int) -> None:
        slot = self._slots[number % 2]
        if number >= len(self._host.layers) or slot.holds == number:
            return
        # After all earlier work that reads the layer in this place, even if that pass was cut short.
        slot.free.set()
        slot.holds = None
        source = self._host.layers[number]
        with self._beside.stream():
            slot.free.wait()
            slot.layer.expand_FD.copy_(source.expand_FD, non_blocking=True)
            slot.layer.contract_FD.copy_(source.contract_FD, non_blocking=True)
            slot.filled.set()
        slot.holds = number


class _Slot:
    """Room for one layer on the device."""

    def __init__(self, like: HostLayer, device: torch.device) -> None:
        self.layer = HostLayer(
            torch.empty_like(like.expand_FD, device=device), torch.empty_like(like.contract_FD, device=device)
        )
        self.holds: int | None = None
        self.filled, self.free = Mark(device), Mark(device)


class Gather:
    """Copies rows of the host's matrices into buffers on the device. It gathers one part while copying another."""

    def __init__(self, host: HostWeights) -> None:
        self._host = host
        self._rooms = [torch.empty(0) for _ in range(2)]
        self._copied = [Mark(host.device) for _ in range(2)]
        self._turn = 0

    def __call__(self, rows_FD: Tensor, kept_k: Tensor, to_kD: Tensor) -> None:
        """
        Args:
            kept_k: int64, on the host.
            to_kD: on the device. It is filled once the device's stream reaches this point.
        """
        if not self._host.staged:
            torch.index_select(rows_FD, 0, kept_k, out=to_kD)
            self._host.require_unchanged()
            return
        self._turn = 1 - self._turn
        copied = self._copied[self._turn]
        copied.synchronize()
        gathered_kD = self._room(to_kD)
        torch.index_select(rows_FD, 0, kept_k, out=gathered_kD)
        to_kD.copy_(gathered_kD, non_blocking=True)
        copied.set()

    def _room(self, like: Tensor) -> Tensor:
        """Host memory from which a device can copy without the processor."""
        if self._rooms[self._turn].numel() < like.numel():
            pinned = self._host.device.type == "cuda"
            self._rooms[self._turn] = torch.empty(like.numel(), dtype=like.dtype, pin_memory=pinned)
        return self._rooms[self._turn][: like.numel()].view(like.shape)


class Beside:
    """A second stream beside the computing one. Without CUDA there is none, and everything runs in order."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class Mark:
    """A point in the current stream's work, for another stream or the host to wait for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def set(self) -> None:
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Let the current stream wait until the point is reached; it does not wait if the point was never set."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def synchronize(self) -> None:
        """Let the host wait until the point is reached."""
        if self._event is not None:
            self._event.synchronize()
