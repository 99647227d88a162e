"""FusedStep: one decode step of the common block in few kernels, at fixed addresses, for a CUDA graph to record.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept, V vocabulary, H query heads, S head size.
"""

import torch
from torch import Tensor

from griffin.decode.cuda import kernels
from griffin.decode.cuda.picking import PickingBuffers
from griffin.model.weights import Layer, Weights
from griffin.neurons import Chosen, Kept
from griffin.thresholds import Shares, Thresholds

SMALLEST_BUCKET = 1024


def buckets(context_length: int) -> list[int]:
    """The lengths up to which a step may be recorded to attend: powers of two, then the context length."""
    sizes = [SMALLEST_BUCKET]
    while sizes[-1] < context_length:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context_length]


class FusedStep:
    """Everything that a step reads and writes.

    token_id, position: int64 ``(1,)``, the token that the next ``run`` decodes, and its position.
    index_LF, kept_L: int32, the kept neurons: the first ``kept_L[layer]`` of each row.
    contract_bias_LD: fp32, the contracting projections' own biases; where tokens pick, plus what neurons at rest give.
    picking: a request's thresholds, where tokens pick by them what they read.
    keys, values: per layer ``(1, G, context_length, S)``, filled up to ``position``.
    logits_V: the logits after ``run``, in the model's dtype.
    """

    def __init__(self, weights: Weights, context_length: int) -> None:
        self.weights = weights
        self.context_length = context_length
        layers, heads, size, width = len(weights.layers), weights.heads, weights.head_size, weights.width
        neurons = weights.layers[0].feed_forward.contract.row_count
        dtype, device = weights.dtype, weights.device

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.token_id = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.index_LF = buffer(layers, neurons, dtype=torch.int32)
        self.kept_L = buffer(layers, dtype=torch.int32)
        self.picking = PickingBuffers(weights)
        # Without a factor the kernels round once less.
        self._residual_factor = None if weights.residual_scale == 1 else weights.residual_scale
        self._logit_factor = None if weights.logit_divisor == 1 else 1 / weights.logit_divisor
        self._own_bias_LD = weights.contract_bias()
        self.contract_bias_LD = self._own_bias_LD.clone()
        self.keys = [buffer(1, weights.kv_heads, context_length, size) for _ in weights.layers]
        self.values = [buffer(1, weights.kv_heads, context_length, size) for _ in weights.layers]
        self.logits_V = buffer(weights.head.matrix.row_count)
        self._x_D = buffer(width)
        self._y_D = buffer(width)
        self._qkv = buffer((heads + 2 * weights.kv_heads) * size)
        self._q_HS = buffer(heads, size)
        self._attended_HS = buffer(heads, size)
        self._attended_HPS = buffer(heads, kernels.MOST_SPLITS, size, dtype=torch.float32)
        self._extremes_2HP = buffer(2, heads, kernels.MOST_SPLITS, dtype=torch.float32)
        self._z_F = buffer(neurons, dtype=torch.float32)
        self._contracted_PD = buffer(kernels.row_splits(neurons, width), width, dtype=torch.float32)
        self._everything_F = torch.arange(neurons, dtype=torch.int32, device=device)
        self.keep(None)

    @torch.inference_mode()
    def keep(self, chosen: Chosen | None) -> None:
        """Go through these neurons from now on, pick by these thresholds, or read everything (None)."""
        self.picking.stop()
        self.contract_bias_LD.copy_(self._own_bias_LD)
        if isinstance(chosen, Kept):
            for index_F, kept_k in zip(self.index_LF, chosen.layers, strict=True):
                index_F[: len(kept_k)] = kept_k
            self.kept_L.copy_(torch.tensor(chosen.counts, dtype=torch.int32))
            return
        self.index_LF.copy_(self._everything_F)
        self.kept_L.fill_(len(self._everything_F))
        if chosen is not None:
            self._pick(chosen)

    def _pick(self, thresholds: Thresholds) -> None:
        for layer, bias_D, resting_F in zip(
            self.weights.layers, self.contract_bias_LD, thresholds.resting_LF, strict=True
        ):
            bias_D.copy_(layer.feed_forward.at_rest(resting_F.to(bias_D.device)))
        self.picking.load(thresholds)

    def shares(self) -> Shares | None:
        """What tokens have read of the FF weights, on average since ``keep``; None without thresholds or tokens.

        It waits for the device.
        """
        return self.picking.shares()

    @torch.inference_mode()
    def run(self, bucket: int) -> None:
        """Enqueue the step of ``token_id`` at ``position``, which must be below ``bucket``; then position += 1."""
        weights = self.weights
        kernels.embed(
            self.token_id,
            self.position,
            weights.embedding.dense(),
            weights.embedding_scale,
            weights.positions,
            self._x_D,
        )
        for number, layer in enumerate(weights.layers):
            self._attention(number, layer, bucket)
            self._feed_forward(number, layer)
        kernels.project(
            self._x_D,
            weights.head.matrix.dense(),
            self.logits_V,
            bias_N=weights.head.bias,
            norm=weights.final_norm,
            factor=self._logit_factor,
            cap=weights.logit_cap,
        )
        self.position.add_(1)

    def _attention(self, number: int, layer: Layer, bucket: int) -> None:
        keys, values = self.keys[number], self.values[number]
        merged, output = layer.query_key_value, layer.output
        kernels.project(self._x_D, merged.matrix.dense(), self._qkv, bias_N=merged.bias, norm=layer.before_attention)
        kernels.rotate_and_store(
            self._qkv,
            self.position,
            self._q_HS,
            keys,
            values,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
            frequencies_R=layer.rotary.frequencies_R if layer.rotary else None,
            scaling=layer.rotary.scaling if layer.rotary else 1.0,
            interleaved=layer.rotary is not None and layer.rotary.interleaved,
            growth=self.weights.query_growth,
        )
        kernels.attend(
            self._q_HS,
            keys,
            values,
            self.position,
            self._attended_HPS,
            self._extremes_2HP,
            self._attended_HS,
            bucket=bucket,
            scale=self.weights.scale,
            window=layer.window,
            cap=self.weights.score_cap,
        )
        attended = self._attended_HS.view(-1)
        if layer.after_attention is None:
            kernels.project(
                attended,
                output.matrix.dense(),
                self._x_D,
                bias_N=output.bias,
                factor=self._residual_factor,
                residual_N=self._x_D,
            )
        else:
            kernels.project(attended, output.matrix.dense(), self._y_D, bias_N=output.bias)
            kernels.normalise_add(self._x_D, self._y_D, layer.after_attention, self._residual_factor)

    def _feed_forward(self, number: int, layer: Layer) -> None:
        feed_forward, index_F, kept = layer.feed_forward, self.index_LF[number], self.kept_L[number : number + 1]
        bias_D, picking = self.contract_bias_LD[number], self.picking.layers[number]
        kernels.sum_inputs(self._x_D, picking, norm=layer.before_feed_forward)
        kernels.expand(
            self._x_D,
            feed_forward.expand.matrix.dense(),
            index_F,
            kept,
            self._z_F,
            activation=self.weights.activation,
            bias=feed_forward.expand.bias,
            norm=layer.before_feed_forward,
            picking=picking,
        )
        kernels.contract(
            self._z_F, index_F, kept, feed_forward.contract.dense(), self._contracted_PD, self.picking.picks
        )
        if layer.after_feed_forward is None:
            kernels.reduce_add(
                self._contracted_PD, self._x_D, bias_D=bias_D, factor=self._residual_factor, residual_D=self._x_D
            )
        else:
            kernels.reduce_add(self._contracted_PD, self._y_D, bias_D=bias_D)
            kernels.normalise_add(self._x_D, self._y_D, layer.after_feed_forward, self._residual_factor)
