"""The common block's decode step in plain torch: the operations that one token needs, and none besides.

transformers' own step spends as much time around its matrix products as in them; this one makes the same
products, merged where they share an input. It runs on any device and in any dtype.

Shapes: D model width, F feed-forward neurons, k of them kept, H query heads, G key and value heads, S head size.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from griffin.decode.twin import DecodeTwin
from griffin.model.cache import KVCache
from griffin.model.weights import Activation, FeedForwardWeights, Layer, Norm, Projection, Rotary, Weights
from griffin.neurons import Acting, Kept

# ``Acting.apply`` of one layer.
Acts = Callable[[Tensor, Tensor], Tensor]


class LeanStep:
    """One token through the full model, or through kept neurons."""

    def __init__(self, weights: Weights, cache: KVCache, twin: DecodeTwin) -> None:
        """
        Args:
            twin: gathers the kept neurons.
        """
        self._weights, self._cache, self._twin = weights, cache, twin
        self._kept: list[FeedForwardWeights] | None = None
        self._acting: Acting | None = None
        self._rotaries = {id(layer.rotary): layer.rotary for layer in weights.layers if layer.rotary is not None}

    def keep(self, kept: Kept | None) -> None:
        """Use these neurons from now on, or all."""
        # The old weights go first: they may be in the way of the new ones.
        self._kept = self._acting = None
        if kept is not None:
            self._kept = self._twin.load(kept)
            embedding_VD = self._weights.embedding_VD
            self._acting = kept.acting and kept.acting.to(embedding_VD.device, embedding_VD.dtype)

    @torch.inference_mode()
    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``; its key and value join the cache."""
        weights, position = self._weights, self._cache.length
        x_1D = weights.embedding_VD[id : id + 1]
        if weights.embedding_scale != 1:
            x_1D = x_1D * weights.embedding_scale
        if weights.positions is not None:
            x_1D = x_1D + weights.positions[position]
        angles = {key: _angles(rotary, position, x_1D.dtype) for key, rotary in self._rotaries.items()}
        for number, layer in enumerate(weights.layers):
            attended_1D = self._attend(layer, number, position, _normed(x_1D, layer.before_attention), angles)
            x_1D = x_1D + _normed(attended_1D, layer.after_attention)
            feed_forward = layer.feed_forward if self._kept is None else self._kept[number]
            acts = partial(self._acting.apply, number) if self._acting else None
            fed_1D = feed(feed_forward, _normed(x_1D, layer.before_feed_forward), weights.activation, acts)
            x_1D = x_1D + _normed(fed_1D, layer.after_feed_forward)
        self._cache.length = position + 1
        logits_1V = _project(_normed(x_1D, weights.final_norm), weights.head)
        if weights.logit_cap is not None:
            logits_1V = weights.logit_cap * torch.tanh(logits_1V / weights.logit_cap)
        return logits_1V[0]

    def _attend(
        self, layer: Layer, number: int, position: int, x_1D: Tensor, angles: dict[int, tuple[Tensor, Tensor]]
    ) -> Tensor:
        weights = self._weights
        heads, groups, size = weights.heads, weights.kv_heads, weights.head_size
        qkv_NS = _project(x_1D, layer.query_key_value).view(-1, size)
        qk_NS = qkv_NS[: heads + groups]
        if layer.query_norm is not None and layer.key_norm is not None:
            q_HS = _head_norm(qk_NS[:heads], layer.query_norm)
            qk_NS = torch.cat((q_HS, _head_norm(qk_NS[heads:], layer.key_norm)))
        if layer.rotary is not None:
            qk_NS = _rotated(qk_NS, *angles[id(layer.rotary)])
        keys, values = self._cache.write(number, position, qk_NS[heads:], qkv_NS[heads + groups :])
        if layer.window is not None and position >= layer.window:
            keys, values = keys[:, :, position + 1 - layer.window :], values[:, :, position + 1 - layer.window :]
        # The query heads that share a key head stand as one after the other: nothing hides the past from any.
        q = qk_NS[:heads].view(1, groups, heads // groups, size)
        if weights.score_cap is None:
            out = functional.scaled_dot_product_attention(q, keys, values, scale=weights.scale)
        else:
            scores = torch.matmul(q, keys.transpose(2, 3)) * weights.scale
            scores = weights.score_cap * torch.tanh(scores / weights.score_cap)
            out = torch.matmul(scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype), values)
        return _project(out.view(1, heads * size), layer.output)


def feed(feed_forward: FeedForwardWeights, x_1D: Tensor, activation: Activation, acts: Acts | None = None) -> Tensor:
    """The FF block, with the neurons that ``feed_forward`` has, or of these only those that act."""
    hidden = _project(x_1D, feed_forward.expand)
    if feed_forward.gated:
        gate_1k, up_1k = hidden.chunk(2, dim=1)
        given_1k = _activated(gate_1k, activation)
        z_1k = given_1k * up_1k
    else:
        z_1k = given_1k = _activated(hidden, activation)
    if acts is not None:
        z_1k = acts(given_1k, z_1k)
    return functional.linear(z_1k, feed_forward.contract_FD.t(), feed_forward.contract_bias)


def _project(x_1D: Tensor, projection: Projection) -> Tensor:
    return functional.linear(x_1D, projection.weight, projection.bias)


def _activated(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "silu":
            return functional.silu(x)
        case "relu":
            return functional.relu(x)
        case "gelu":
            return functional.gelu(x)
        case "gelu_tanh":
            return functional.gelu(x, approximate="tanh")


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    if norm.centred:
        return functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    if norm.weight.dtype != x.dtype:
        return functional.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.eps).to(x.dtype)
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def _head_norm(x_NS: Tensor, norm: Norm) -> Tensor:
    if norm.weight.shape[0] == x_NS.shape[1]:
        return _normed(x_NS, norm)
    return _normed(x_NS.reshape(1, -1), norm).view_as(x_NS)


def _angles(rotary: Rotary, position: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, ``(2R,)`` each, the sine with the sign that either half takes."""
    angles_R = rotary.frequencies_R * position
    cosine_R, sine_R = angles_R.cos() * rotary.scaling, angles_R.sin() * rotary.scaling
    return torch.cat((cosine_R, cosine_R)).to(dtype), torch.cat((-sine_R, sine_R)).to(dtype)


def _rotated(x_NS: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    size = len(cosine)
    if size < x_NS.shape[1]:
        return torch.cat((_rotated(x_NS[:, :size], cosine, sine), x_NS[:, size:]), dim=1)
    swapped = x_NS.reshape(len(x_NS), 2, size // 2).flip(1).view(len(x_NS), size)
    return torch.addcmul(x_NS * cosine, swapped, sine)
