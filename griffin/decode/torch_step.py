"""The common block's decode step in plain torch: only the operations that one token needs.

transformers' own step spends as much time around its matrix products as in them. This step computes the same products,
merged if they share an input. It runs on any device and in any dtype.

Shapes: D model width, F feed-forward neurons, k of them kept, H query heads, G key and value heads, S head size.
"""

import torch
from torch import Tensor
from torch.nn import functional

from griffin.decode.twin import DecodeTwin
from griffin.model.cache import KVCache
from griffin.model.weights import Activation, FeedForwardWeights, Layer, Norm, Rotary, Weights
from griffin.neurons import Chosen, Kept
from griffin.thresholds import LayerThresholds, Shares, shares_read


class LeanStep:
    """One token through the full model, or through kept neurons."""

    def __init__(self, weights: Weights, cache: KVCache, twin: DecodeTwin) -> None:
        """
        Args:
            twin: gathers the kept neurons.
        """
        self._weights, self._cache, self._twin = weights, cache, twin
        self._kept: list[FeedForwardWeights] | None = None
        # For each layer, also the output of the second projection when all neurons rest.
        self._thresholds: list[tuple[LayerThresholds, Tensor]] | None = None
        self._rotaries = {id(layer.rotary): layer.rotary for layer in weights.layers if layer.rotary is not None}

    @torch.inference_mode()
    def keep(self, chosen: Chosen | None) -> None:
        """Read only this from here on, or everything (None)."""
        # Free the old weights first, because there may be no room for both.
        self._kept = self._thresholds = None
        if isinstance(chosen, Kept):
            self._kept = self._twin.load(chosen)
        elif chosen is not None:
            layers = [layer.feed_forward for layer in self._weights.layers]
            found = [chosen.layer(number, self._weights.device) for number in range(len(layers))]
            self._thresholds = [(own, layer.at_rest(own.resting)) for own, layer in zip(found, layers, strict=True)]

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``keep``; None if they are fixed."""
        return None if self._thresholds is None else shares_read([own for own, _ in self._thresholds])

    @torch.inference_mode()
    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``; its key and value are added to the cache."""
        weights, position = self._weights, self._cache.length
        x_1D = weights.embedding.part(id, id + 1).dense()
        if weights.embedding_scale != 1:
            x_1D = x_1D * weights.embedding_scale
        if weights.positions is not None:
            x_1D = x_1D + weights.positions[position]
        angles = {key: _angles(rotary, position, x_1D.dtype) for key, rotary in self._rotaries.items()}
        for number, layer in enumerate(weights.layers):
            attended_1D = self._attend(layer, number, position, _normed(x_1D, layer.before_attention), angles)
            x_1D = x_1D + self._scaled(_normed(attended_1D, layer.after_attention))
            fed_1D = self._feed(layer, number, _normed(x_1D, layer.before_feed_forward))
            x_1D = x_1D + self._scaled(_normed(fed_1D, layer.after_feed_forward))
        self._cache.length = position + 1
        logits_1V = weights.head(_normed(x_1D, weights.final_norm))
        if weights.logit_divisor != 1:
            logits_1V = logits_1V / weights.logit_divisor
        if weights.logit_cap is not None:
            logits_1V = weights.logit_cap * torch.tanh(logits_1V / weights.logit_cap)
        return logits_1V[0]

    def _feed(self, layer: Layer, number: int, x_1D: Tensor) -> Tensor:
        if self._thresholds is not None:
            return feed_by(*self._thresholds[number], layer.feed_forward, x_1D, self._weights.activation)
        feed_forward = layer.feed_forward if self._kept is None else self._kept[number]
        return feed(feed_forward, x_1D, self._weights.activation)

    def _scaled(self, change_1D: Tensor) -> Tensor:
        scale = self._weights.residual_scale
        return change_1D if scale == 1 else change_1D * scale

    def _attend(
        self, layer: Layer, number: int, position: int, x_1D: Tensor, angles: dict[int, tuple[Tensor, Tensor]]
    ) -> Tensor:
        weights = self._weights
        heads, groups, size = weights.heads, weights.kv_heads, weights.head_size
        qkv_NS = layer.query_key_value(x_1D).view(-1, size)
        qk_NS = qkv_NS[: heads + groups]
        if layer.query_norm is not None and layer.key_norm is not None:
            q_HS = _head_norm(qk_NS[:heads], layer.query_norm)
            qk_NS = torch.cat((q_HS, _head_norm(qk_NS[heads:], layer.key_norm)))
        if layer.rotary is not None:
            qk_NS = _rotated(qk_NS, *angles[id(layer.rotary)], interleaved=layer.rotary.interleaved)
        keys, values = self._cache.write(number, position, qk_NS[heads:], qkv_NS[heads + groups :])
        if layer.window is not None and position >= layer.window:
            keys, values = keys[:, :, position + 1 - layer.window :], values[:, :, position + 1 - layer.window :]
        # The query heads that share a key head become rows of one product, so no mask is needed.
        q = qk_NS[:heads].view(1, groups, heads // groups, size)
        if weights.query_growth is not None:
            q = q * q.new_tensor(weights.query_growth.factor(position))
        if weights.score_cap is None:
            out = functional.scaled_dot_product_attention(q, keys, values, scale=weights.scale)
        else:
            scores = torch.matmul(q, keys.transpose(2, 3)) * weights.scale
            scores = weights.score_cap * torch.tanh(scores / weights.score_cap)
            out = torch.matmul(scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype), values)
        return layer.output(out.view(1, heads * size))


def feed(feed_forward: FeedForwardWeights, x_1D: Tensor, activation: Activation) -> Tensor:
    """The FF block with the neurons in ``feed_forward``."""
    hidden = feed_forward.expand(x_1D)
    if feed_forward.gated:
        gate_1k, up_1k = hidden.chunk(2, dim=1)
        z_1k = _activated(gate_1k, activation) * up_1k
    else:
        z_1k = _activated(hidden, activation)
    return feed_forward.contract.weighted_rows(z_1k, feed_forward.contract_bias)


def feed_by(
    thresholds: LayerThresholds,
    at_rest_D: Tensor,
    feed_forward: FeedForwardWeights,
    x_1D: Tensor,
    activation: Activation,
) -> Tensor:
    """The FF block when each token picks what it reads.

    Args:
        at_rest_D: the block's output when all neurons rest.
    """
    gate, *up = feed_forward.expanding()
    given_1F = _activated(thresholds.gate(gate.matrix.product(thresholds.inputs(x_1D))), activation)
    z_1F = given_1F * up[0](x_1D) if up else given_1F
    return feed_forward.contract.weighted_rows(thresholds.outputs(given_1F, z_1F), at_rest_D)


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
    """Cosine and sine for each of the 2R rotated elements; the first element of a pair has the negative sine."""
    angles_R = rotary.frequencies_R * position
    cosine_R, sine_R = angles_R.cos() * rotary.scaling, angles_R.sin() * rotary.scaling
    pair_dim = 1 if rotary.interleaved else 0
    cosine, sine = torch.stack((cosine_R, cosine_R), pair_dim), torch.stack((-sine_R, sine_R), pair_dim)
    return cosine.flatten().to(dtype), sine.flatten().to(dtype)


def _rotated(x_NS: Tensor, cosine: Tensor, sine: Tensor, *, interleaved: bool) -> Tensor:
    size = len(cosine)
    if size < x_NS.shape[1]:
        turned = _rotated(x_NS[:, :size], cosine, sine, interleaved=interleaved)
        return torch.cat((turned, x_NS[:, size:]), dim=1)
    pairs = x_NS.reshape(len(x_NS), size // 2, 2) if interleaved else x_NS.reshape(len(x_NS), 2, size // 2)
    swapped = pairs.flip(2 if interleaved else 1).view(len(x_NS), size)
    return torch.addcmul(x_NS * cosine, swapped, sine)
