"""The KV cache, and one step of a model over it.

Whichever module tree runs the step (the full model or its decode twin), both read and write the same cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

# Room is made for this many tokens at least, and for half as many again as are needed, so that copies are rare.
SMALLEST_CAPACITY = 512
HEADROOM = 1.5


class _CacheLayer(CacheLayerMixin):  # type: ignore[misc]  # untyped in transformers
    """Keys and values of one layer, written in place; attention sees the filled part only.

    Against the library's own layers: DynamicLayer copies the whole cache for every token, StaticLayer
    attends to its unfilled part too. Sliding-window layers keep all positions; the model's mask hides the old.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states[:, :, :0]
        self.values = value_states[:, :, :0]
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
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        # To the library: grows as needed.
        return -1

    def get_max_cache_shape(self) -> int:
        # The name before transformers 5.20.
        return -1


def _with_room(buffer: Tensor, filled: int, needed: int) -> Tensor:
    """The buffer ``(1, heads, capacity, head size)``, or a larger one with its filled part."""
    if needed <= buffer.shape[2]:
        return buffer
    capacity = max(SMALLEST_CAPACITY, int(needed * HEADROOM))
    larger = buffer.new_empty((*buffer.shape[:2], capacity, buffer.shape[3]))
    larger[:, :, :filled] = buffer[:, :, :filled]
    return larger


class KVCache:
    """The cache of one sequence at a time. Its memory follows the longest sequence so far, and stays."""

    def __init__(self, layers: int) -> None:
        self.cache = Cache(layers=[_CacheLayer() for _ in range(layers)])

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        for layer in self.cache.layers:
            layer.length = length


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
