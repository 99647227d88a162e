"""Several devices on one host: a copy of the model on each, or one model split over devices.

A model is split when no single device can hold it. Its layers are then in contiguous runs; everything else is on the
first device. Hidden states move to the next device where a run ends. Keys, values and FF weights stay with their layer.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.errors import LoadError
from griffin.model.families import feed_forwards
from griffin.model.host import offload_

logger = logging.getLogger("griffin")

# A model takes at least so many times the memory of its weights, because of keys, values and activations.
ROOM = 1.1
ATTRIBUTE = "layer_devices"

# The devices of one copy, from the first layer to the last.
Group = Sequence[torch.device]


def parse_device(name: str) -> torch.device:
    """A device by name, or with auto CUDA if there is a GPU.

    Raises:
        LoadError: no such device.
    """
    if name == "auto" and torch.version.cuda and not torch.cuda.is_available():
        logger.warning(
            "torch is built for CUDA %s but sees no GPU, so the CPU is used. The driver of a GPU may be too old",
            torch.version.cuda,
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LoadError(f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def distribute(model: PreTrainedModel, groups: Sequence[Group], *, ff_offload: bool = False) -> list[PreTrainedModel]:
    """Place a loaded model on each group of devices. If no device has room for a copy, one model is split over all.

    Raises:
        LoadError: it does not fit, or cannot be placed in this way.
    """
    if ff_offload and any(len(group) > 1 for group in groups):
        raise LoadError("ff-offload keeps a model on one device; name devices with commas, not with +")
    needed = resident_bytes(model, ff_offload=ff_offload)
    groups = _together(groups, needed) if not ff_offload else groups
    models = []
    for number, group in enumerate(groups, start=1):
        # At most one copy is on the host at a time; the loaded model is moved last.
        each = model if number == len(groups) else copy.deepcopy(model)
        _place_(each, group, needed, ff_offload=ff_offload)
        models.append(each)
    return models


def _together(groups: Sequence[Group], needed: int) -> Sequence[Group]:
    singles = [group[0] for group in groups if len(group) == 1]
    fits = [room is None or needed * ROOM <= room for room in map(free_bytes, singles)]
    if len(singles) < 2 or len(singles) < len(groups) or any(fits):
        return groups
    return [singles]


def _place_(model: PreTrainedModel, group: Group, needed: int, *, ff_offload: bool) -> None:
    first = group[0]
    if len(group) > 1:
        spread_(model, group)
        return
    room = free_bytes(first)
    if room is not None and needed > room:
        raise LoadError(
            f"the model does not fit on {first}: it takes {_gib(needed)}, but {_gib(room)} are free; "
            "keep its feed-forward weights on the host (ff-offload), or use several devices"
        )
    if ff_offload:
        # On a CPU the weights are used in place.
        offload_(model, first, staged=first.type != "cpu")
    else:
        model.to(first)


def resident_bytes(model: PreTrainedModel, *, ff_offload: bool = False) -> int:
    """How many bytes a model's weights take on a device."""
    total = _bytes(model)
    if not ff_offload:
        return total
    blocks = feed_forwards(model)
    # Two layers of FF weights are on the device at a time.
    return total - sum(_matrix(p).nbytes for block in blocks[2:] for p in (*block.expand, block.contract))


def free_bytes(device: torch.device) -> int | None:
    """Free bytes on a device; None if unknown (CPU)."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def spread_(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Put a model's layers across devices, in place.

    Raises:
        LoadError: they do not fit.
    """
    layers = [block.layer for block in feed_forwards(model)]
    sizes = [_bytes(layer) for layer in layers]
    rest = resident_bytes(model) - sum(sizes)
    numbers = plan(sizes, rest, [free_bytes(device) for device in devices])
    for layer, number in zip(layers, numbers, strict=True):
        layer.to(devices[number])
        layer.register_forward_pre_hook(MoveInputs(devices[number]), with_kwargs=True)
    layers[-1].register_forward_hook(MoveOutput(devices[0]))
    placed = {id(tensor) for layer in layers for tensor in chain(layer.parameters(), layer.buffers())}
    for tensor in chain(model.parameters(), model.buffers()):
        if id(tensor) not in placed:
            tensor.data = tensor.data.to(devices[0])
    setattr(model, ATTRIBUTE, [devices[number] for number in numbers])


def across_devices(model: PreTrainedModel) -> bool:
    """Whether a model was split by ``spread_``."""
    return hasattr(model, ATTRIBUTE)


def plan(layer_bytes: Sequence[int], rest_bytes: int, free: Sequence[int | None]) -> list[int]:
    """Choose a device for each layer: contiguous runs, every device filled to the same fraction of its free memory.

    Args:
        rest_bytes: size of everything that is not a layer. It goes to the first device.
        free: free bytes of each device. If one is not known, all devices count as equal.

    Returns:
        For each layer the number of its device.

    Raises:
        LoadError: a device would hold more than it has.
    """
    known = [room for room in free if room is not None]
    rooms = known if len(known) == len(free) else [1] * len(free)
    total = rest_bytes + sum(layer_bytes)
    ends = [total * filled / sum(rooms) for filled in accumulate(rooms)]
    starts = accumulate(layer_bytes, initial=rest_bytes)
    middles = [start + size / 2 for start, size in zip(starts, layer_bytes, strict=False)]
    numbers = [next((n for n, end in enumerate(ends) if middle <= end), len(ends) - 1) for middle in middles]
    for number, room in enumerate(free):
        held = sum(size for size, at in zip(layer_bytes, numbers, strict=True) if at == number)
        held += rest_bytes if number == 0 else 0
        if room is not None and held > room:
            raise LoadError(
                f"the model does not fit across these devices: number {number + 1} of them would hold "
                f"{_gib(held)}, but {_gib(room)} are free"
            )
    return numbers


@dataclass(frozen=True, slots=True)
class MoveInputs:
    """A hook before a layer that moves all its inputs to its device. It is copied along with its module."""

    device: torch.device

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return _moved(inputs, self.device), _moved(named, self.device)


@dataclass(frozen=True, slots=True)
class MoveOutput:
    """A hook after a layer that moves its output to a device."""

    device: torch.device

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return _moved(output, self.device)


def make_current(device: torch.device) -> None:
    """Make this thread run its work on this device from here on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _moved(value: Any, device: torch.device) -> Any:
    """Move tensors, also inside tuples, lists and dictionaries. A cache stays as it is."""
    if isinstance(value, Tensor):
        # Non-blocking only towards CUDA; otherwise the host would read data that has not arrived yet.
        return value.to(device, non_blocking=device.type == "cuda")
    if type(value) in (tuple, list):
        return type(value)(_moved(part, device) for part in value)
    if type(value) is dict:
        return {key: _moved(part, device) for key, part in value.items()}
    return value


def _bytes(module: nn.Module) -> int:
    # A tied tensor counts once.
    total: int = sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))
    return total


def _matrix(projection: nn.Module) -> Tensor:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
