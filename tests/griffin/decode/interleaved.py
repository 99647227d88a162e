"""Models whose heads store their elements in another order: neighbours are rotated together.

The order of elements within a head is free as long as queries and keys share it. So a step that reads these weights
must give the model's own logits.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import Layer, Projection, Weights, read_weights
from tests.tiny import tiny_model

# All elements of a head are rotated, or half of them.
MODELS = {"all": ("qwen2", {}), "half": ("phi3", {"partial_rotary_factor": 0.5})}


def interleaved_model(kind: str) -> tuple[PreTrainedModel, Weights, Tensor]:
    """A model of ``MODELS``, its weights with interleaved heads, and the order of elements in these, int64 ``(S,)``."""
    model_type, changes = MODELS[kind]
    model = tiny_model(model_type, **changes)
    store_by_neuron_(feed_forwards(model))
    weights = read_weights(model)
    assert weights is not None
    rotary = weights.layers[0].rotary
    assert rotary is not None
    pairs, size = len(rotary.frequencies_R), weights.head_size
    assert (2 * pairs == size) == (kind == "all")
    order_S = torch.cat((torch.arange(2 * pairs).view(2, pairs).t().flatten(), torch.arange(2 * pairs, size)))
    turned = replace(rotary, interleaved=True)
    layers = [
        replace(layer, rotary=turned, query_key_value=_reordered(layer, weights, order_S)) for layer in weights.layers
    ]
    return model, replace(weights, layers=layers), order_S


def _reordered(layer: Layer, weights: Weights, order_S: Tensor) -> Projection:
    heads, size = weights.heads + weights.kv_heads, weights.head_size
    rows = torch.arange((heads + weights.kv_heads) * size)
    rows[: heads * size] = rows[: heads * size].view(heads, size)[:, order_S].flatten()
    merged = layer.query_key_value
    return Projection((merged.matrix.rows(rows),), None if merged.bias is None else merged.bias[rows])
