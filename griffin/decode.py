"""The KV cache, and one step of a model over it.

Whichever module tree runs the step (the full model or its decode twin), both read and write the same cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

CAPACITY_STEP = 512


class _CacheLayer(CacheLayerMixin):  # type: ignore[misc]  # untyped in transformers
    """Keys and values of one layer, written in place; attention sees the filled part only.

    Against the library's own layers: DynamicLayer copies the whole cache for every token, StaticLayer
    attends to its unfilled part too. Sliding-window layers keep all positions; the model's mask hides the old.
    """

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        # To the library: grows as needed. The engine reserves before it writes.
        return -1

    def get_max_cache_shape(self) -> int:
        # The name before transformers 5.20.
        return -1


class KVCache:
    """The cache of one sequence at a time. Memory grows to the longest sequence served, never past it."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._capacity = 0
        self.cache: Cache | None = None

    def start(self, capacity: int) -> None:
        """Forget the last sequence and have room for one of ``capacity`` tokens."""
        if capacity > self._capacity or self.cache is None:
            self._capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
            # The old one goes first: both at once might not fit.
            self.cache = None
            self.cache = Cache(layers=[_CacheLayer(self._capacity) for _ in range(self._layers)])
        for layer in self.cache.layers:
            layer.length = 0


@torch.inference_mode()
def extend(model: PreTrainedModel, ids_T: Tensor, cache: KVCache) -> None:
    """Run tokens for what they leave in the cache (and in hooks), without their logits."""
    model.base_model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True)


@torch.inference_mode()
def step(model: PreTrainedModel, ids_T: Tensor, cache: KVCache, logits_for: int = 1) -> Tensor:
    """Run tokens; the logits of the last ``logits_for`` of them, ``(logits_for, vocabulary)``."""
    output = model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True, logits_to_keep=logits_for)
    logits: Tensor = output.logits[0]
    return logits
