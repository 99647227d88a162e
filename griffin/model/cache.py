"""The KV cache of one sequence at a time, written in place and shared by everything that decodes the sequence."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Room for at least so many tokens, and half as many again as needed, so that copies are rare.
SMALLEST_CAPACITY = 512
HEADROOM = 1.5


class _CacheLayer(CacheLayerMixin):  # type: ignore[misc]  # untyped in transformers
    """Keys and values of one layer, written in place. Attention sees only the filled part.

    The layers of transformers are slower: DynamicLayer copies the whole cache for every token, and StaticLayer attends
    to its unfilled part too. Sliding-window layers keep all positions here; the model's mask hides the old ones.
    """

    is_sliding = False

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.length = 0
        self._device, self._dtype = device, dtype

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # A resumed prompt brings keys and values from the device on which they are stored.
        self.keys, self.values = (
            states[:, :, :0].to(self._device or states.device, self._dtype or states.dtype)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys = _with_room(self.keys, self.length, end)
        self.values = _with_room(self.values, self.length, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        # Attention needs one dtype for all.
        return self.keys[:, :, :end].to(key_states.dtype), self.values[:, :, :end].to(value_states.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        # In transformers this means: the size is not fixed.
        return -1

    def get_max_cache_shape(self) -> int:
        # The name before transformers 5.20.
        return -1


def _with_room(buffer: Tensor, filled: int, needed: int) -> Tensor:
    """The buffer ``(1, heads, capacity, head size)``, or a larger copy of its filled part."""
    if needed <= buffer.shape[2]:
        return buffer
    return _of_capacity(buffer, filled, max(SMALLEST_CAPACITY, int(needed * HEADROOM)))


def _of_capacity(buffer: Tensor, filled: int, capacity: int) -> Tensor:
    if buffer.shape[2] == capacity:
        return buffer
    larger = buffer.new_empty((*buffer.shape[:2], capacity, buffer.shape[3]))
    larger[:, :, :filled] = buffer[:, :, :filled]
    return larger


class KVCache:
    """The cache of one sequence at a time. Its memory grows to the longest sequence so far and is kept."""

    def __init__(
        self, layers: int, devices: Sequence[torch.device] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """
        Args:
            devices: one for each layer; by default the device of its first keys.
            dtype: of the stored keys and values; by default that of the first ones.
        """
        self.dtype = dtype
        self._layers = [_CacheLayer(devices[number] if devices else None, dtype) for number in range(layers)]
        self.cache = Cache(layers=self._layers)

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return self._layers[0].length

    @length.setter
    def length(self, length: int) -> None:
        for layer in self._layers:
            layer.length = length

    def begin(self, groups: int, size: int, dtype: torch.dtype) -> None:
        """Create buffers of this form, without room, in every layer that has none yet."""
        for layer in self._layers:
            if not layer.is_initialized:
                states = torch.empty(1, groups, 0, size, dtype=dtype)
                layer.lazy_initialization(states, states)

    def write(self, number: int, position: int, keys_GS: Tensor, values_GS: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token's key and value in one layer.

        The length does not change; set it once for all layers.

        Returns:
            All keys and all values up to the token, ``(1, G, position + 1, S)`` each.
        """
        layer = self._layers[number]
        layer.keys = _with_room(layer.keys, position, position + 1)
        layer.values = _with_room(layer.values, position, position + 1)
        layer.keys[0, :, position] = keys_GS
        layer.values[0, :, position] = values_GS
        keys, values = (held[:, :, : position + 1] for held in (layer.keys, layer.values))
        return keys.to(keys_GS.dtype), values.to(values_GS.dtype)

    def reserve(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """Make room for so many tokens in every layer.

        Returns:
            Each layer's keys and values, ``(1, G, capacity, S)``, with the same capacity in all layers. They are the
            same tensors as before unless more room was needed.
        """
        for layer in self._layers:
            layer.keys = _with_room(layer.keys, layer.length, length)
            layer.values = _with_room(layer.values, layer.length, length)
        # An earlier growth that ran out of memory may have left some layers with more room than others.
        capacity = max(max(layer.keys.shape[2], layer.values.shape[2]) for layer in self._layers)
        for layer in self._layers:
            layer.keys = _of_capacity(layer.keys, layer.length, capacity)
            layer.values = _of_capacity(layer.values, layer.length, capacity)
        return [(layer.keys, layer.values) for layer in self._layers]

    def adopt(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Use these buffers from here on, ``(1, G, capacity, S)`` for each layer. No sequence may be longer."""
        for layer, own_keys, own_values in zip(self._layers, keys, values, strict=True):
            layer.keys, layer.values, layer.is_initialized = own_keys, own_values, True

    @torch.inference_mode()
    def copy(self, start: int, end: int) -> Tensor:
        """Keys and values of some tokens in all layers, ``(layers, 2, G, end - start, S)``."""
        first = self._layers[0].keys
        copied = first.new_empty((len(self._layers), 2, first.shape[1], end - start, first.shape[3]))
        for layer, (keys, values) in zip(self._layers, copied, strict=True):
            keys.copy_(layer.keys[0, :, start:end])
            values.copy_(layer.values[0, :, start:end])
        return copied

    @torch.inference_mode()
    def append(self, copied: Tensor) -> None:
        """Append a result of ``copy`` to the cache."""
        for layer, keys_values in zip(self._layers, copied, strict=True):
            layer.update(keys_values[0][None], keys_values[1][None])
