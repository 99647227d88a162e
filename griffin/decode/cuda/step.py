"""FusedStep: a decode step of the common block in few kernels, at fixed addresses, so that a CUDA graph can record it.

It runs one token, or a pass of several successive tokens. Each token of a pass has the same sums in the same order as
in a step, see ``kernels``.

Shapes: L layers, M tokens, D model width, F feed-forward neurons, V vocabulary, H query heads, S head size, P parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from griffin.decode.cuda import kernels
from griffin.decode.cuda.picking import PickingBuffers
from griffin.decode.cuda.reading import Reading
from griffin.decode.decoder import PASS_TOKENS
from griffin.method.statistic import Activations
from griffin.model.weights import Layer, Norm, Projection, Weights
from griffin.neurons import Chosen, Kept
from griffin.thresholds import Shares

SMALLEST_BUCKET = 1024
# Sizes of passes that have kernels. Other numbers of tokens run in the next larger pass.
PASSES = (2, 4, 8, PASS_TOKENS)


def buckets(context_length: int) -> list[int]:
    """The lengths up to which a recorded step may attend: powers of two, then the context length."""
    sizes = [SMALLEST_BUCKET]
    while sizes[-1] < context_length:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context_length]


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """Values that kernels pass to each other. They have a row for each token, in the model's dtype except:

    parts_MHPS, extremes_M2HP, contracted_MPD: fp32.
    """

    x_MD: Tensor
    y_MD: Tensor
    normed_MD: Tensor
    qkv_MN: Tensor
    q_MHS: Tensor
    attended_MHS: Tensor
    parts_MHPS: Tensor
    extremes_M2HP: Tensor
    contracted_MPD: Tensor
    logits_MV: Tensor

    def first(self, tokens: int) -> "_Buffers":
        """The buffers of the first tokens."""
        return _Buffers(*(getattr(self, field.name)[:tokens] for field in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """The FF activations of a pass, see ``Activations``. Single steps use only ``z_LMF``, in fp32."""

    x_LMD: Tensor
    gate_LMF: Tensor
    up_LMF: Tensor | None
    z_LMF: Tensor

    def layer(self, number: int, tokens: int) -> Activations:
        up_MF = None if self.up_LMF is None else self.up_LMF[number, :tokens]
        return Activations(
            self.x_LMD[number, :tokens], self.z_LMF[number, :tokens], self.gate_LMF[number, :tokens], up_MF
        )


class FusedStep:
    """Everything that a step or pass reads and writes.

    token_id, position: int64 ``(1,)``, the token that the next step decodes, and its position.
    ids_M, count: int64, and int32 ``(1,)``: the tokens that the next pass reads from ``position`` on, and how many of
        them are needed. The others are valid ids, and later tokens overwrite their keys and values.
    keys, values: for each layer ``(1, G, context_length, S)``, filled up to ``position``.
    logits_MV: the logits after a pass, in the model's dtype; ``logits_V``: those after a step.
    """

    def __init__(self, weights: Weights, context_length: int) -> None:
        self.weights = weights
        self.context_length = context_length
        layers, heads, size, width = len(weights.layers), weights.heads, weights.head_size, weights.width
        feed_forward = weights.layers[0].feed_forward
        neurons, parts = feed_forward.contract.row_count, kernels.MOST_SPLITS
        dtype, device = weights.dtype, weights.device

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def rows(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return buffer(PASS_TOKENS, *shape, dtype=dtype)

        def seen(columns: int, dtype: torch.dtype = dtype) -> Tensor:
            return buffer(layers, PASS_TOKENS, columns, dtype=dtype)

        self.ids_M = torch.zeros(PASS_TOKENS, dtype=torch.int64, device=device)
        self.token_id = self.ids_M[:1]
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.count = torch.full((1,), PASS_TOKENS, dtype=torch.int32, device=device)
        # None instead of a factor of 1, because without a factor the kernels round once less.
        self._residual_factor = None if weights.residual_scale == 1 else weights.residual_scale
        self._logit_factor = None if weights.logit_divisor == 1 else 1 / weights.logit_divisor
        self.keys = [buffer(1, weights.kv_heads, context_length, size) for _ in weights.layers]
        self.values = [buffer(1, weights.kv_heads, context_length, size) for _ in weights.layers]
        self._buffers = _Buffers(
            x_MD=rows(width),
            y_MD=rows(width),
            normed_MD=rows(width),
            qkv_MN=rows((heads + 2 * weights.kv_heads) * size),
            q_MHS=rows(heads, size),
            attended_MHS=rows(heads, size),
            parts_MHPS=rows(heads, parts, size, dtype=torch.float32),
            extremes_M2HP=rows(2, heads, parts, dtype=torch.float32),
            contracted_MPD=rows(kernels.row_splits(neurons, width), width, dtype=torch.float32),
            logits_MV=rows(weights.head.matrix.row_count),
        )
        up_LMF = seen(neurons) if feed_forward.gated else None
        self._seen = _Seen(seen(width), seen(neurons), up_LMF, seen(neurons, torch.float32))
        self.logits_MV = self._buffers.logits_MV
        self.logits_V = self.logits_MV[0]
        # A pass may read all neurons while steps do not.
        self._own, self._several = Reading(weights), Reading(weights)
        self._picking = PickingBuffers(weights, self._own, self._several, self.count, PASS_TOKENS)
        # Whether passes read all neurons; None if that was not set since ``keep``.
        self._full: bool | None = None

    @torch.inference_mode()
    def keep(self, chosen: Chosen | None) -> None:
        """Use these neurons or thresholds from here on, or read all neurons (None)."""
        self._full = None
        self._picking.stop()
        if chosen is None:
            self._own.everything()
        elif isinstance(chosen, Kept):
            self._own.keep(chosen)
        else:
            self._picking.load(chosen)
            self._own.pick(chosen)

    @torch.inference_mode()
    def have_passes_read(self, *, full: bool) -> None:
        """Let passes read all neurons from here on (``full``), or the same neurons as steps."""
        if self._full == full:
            return
        if full:
            self._several.everything()
        else:
            self._several.follow(self._own)
        self._full = full

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``keep``; None without thresholds or tokens.

        It waits for the device.
        """
        return self._picking.shares()

    def seen(self, tokens: int) -> Sequence[Activations]:
        """For each layer the FF activations of the latest pass's first tokens, valid until the next pass."""
        return [self._seen.layer(number, tokens) for number in range(len(self.weights.layers))]

    @torch.inference_mode()
    def run(self, bucket: int, tokens: int = 1) -> None:
        """Enqueue a step, or a pass of ``tokens`` tokens (a size in ``PASSES``), from ``position`` on. It adds them to
        ``position``.

        After a pass of which some tokens are not needed, the caller sets ``position`` again.

        Args:
            bucket: must exceed all needed positions.
        """
        weights, own = self.weights, self._buffers.first(tokens)
        kernels.embed(
            self.ids_M[:tokens],
            self.position,
            weights.embedding.dense(),
            weights.embedding_scale,
            weights.positions,
            own.x_MD,
        )
        for number, layer in enumerate(weights.layers):
            self._attention(number, layer, own, bucket)
            self._feed_forward(number, layer, own, tokens)
        kernels.project(
            own.x_MD,
            weights.head.matrix.dense(),
            own.logits_MV,
            bias_N=weights.head.bias,
            norm=weights.final_norm,
            factor=self._logit_factor,
            cap=weights.logit_cap,
            normed_MD=own.normed_MD,
        )
        self.position.add_(tokens)

    def _attention(self, number: int, layer: Layer, own: _Buffers, bucket: int) -> None:
        keys, values, merged = self.keys[number], self.values[number], layer.query_key_value
        kernels.project(
            own.x_MD,
            merged.matrix.dense(),
            own.qkv_MN,
            bias_N=merged.bias,
            norm=layer.before_attention,
            normed_MD=own.normed_MD,
        )
        kernels.rotate_and_store(
            own.qkv_MN,
            self.position,
            own.q_MHS,
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
            own.q_MHS,
            keys,
            values,
            self.position,
            own.parts_MHPS,
            own.extremes_M2HP,
            own.attended_MHS,
            bucket=bucket,
            scale=self.weights.scale,
            window=layer.window,
            cap=self.weights.score_cap,
        )
        self._add_attended(own, layer.output, layer.after_attention)

    def _add_attended(self, own: _Buffers, output: Projection, norm: Norm | None) -> None:
        attended, matrix, factor = own.attended_MHS.flatten(1), output.matrix.dense(), self._residual_factor
        if norm is None:
            kernels.project(attended, matrix, own.x_MD, bias_N=output.bias, factor=factor, residual_MN=own.x_MD)
        else:
            kernels.project(attended, matrix, own.y_MD, bias_N=output.bias)
            kernels.normalise_add(own.x_MD, own.y_MD, norm, factor)

    def _feed_forward(self, number: int, layer: Layer, own: _Buffers, tokens: int) -> None:
        feed_forward, seen, single = layer.feed_forward, self._seen.layer(number, tokens), tokens == 1
        reading = self._own if single else self._several
        picking = (self._picking.step if single else self._picking.several)[number]
        index_F, kept = reading.index_LF[number], reading.kept_L[number : number + 1]
        kernels.sum_inputs(own.x_MD, picking, norm=layer.before_feed_forward)
        kernels.expand(
            own.x_MD,
            feed_forward.expand.matrix.dense(),
            index_F,
            kept,
            seen.z,
            activation=self.weights.activation,
            bias=feed_forward.expand.bias,
            norm=layer.before_feed_forward,
            picking=picking,
            normed_MD=seen.x,
            observed=None if single else kernels.Observed(seen.gate, seen.up),
        )
        if layer.before_feed_forward is None and not single:
            seen.x.copy_(own.x_MD)
        kernels.contract(seen.z, index_F, kept, feed_forward.contract.dense(), own.contracted_MPD, reading.picks)
        self._add_contracted(own, reading.contract_bias_LD[number], layer.after_feed_forward)

    def _add_contracted(self, own: _Buffers, bias_D: Tensor, norm: Norm | None) -> None:
        factor = self._residual_factor
        if norm is None:
            kernels.reduce_add(own.contracted_MPD, own.x_MD, bias_D=bias_D, factor=factor, residual_MD=own.x_MD)
        else:
            kernels.reduce_add(own.contracted_MPD, own.y_MD, bias_D=bias_D)
            kernels.normalise_add(own.x_MD, own.y_MD, norm, factor)
