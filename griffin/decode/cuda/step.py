"""FusedStep: one decode step of the common block in few kernels, at fixed addresses, for a CUDA graph to record.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept, V vocabulary, H query heads, S head size.
"""

import torch
from torch import Tensor

from griffin.decode.cuda import kernels
from griffin.model.weights import Layer, Weights
from griffin.neurons import Acting, Correction, Kept

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
    gates: int32 ``(1,)``, not 0 where kept neurons act on some tokens only.
    thresholds_LF, resting_LF: fp32, in the order of ``index_LF``: when a neuron acts, and its resting value, which the
        bias holds; see ``neurons.Acting``.
    contract_bias_LD: fp32, the contracting projections' own biases plus the offset that replaces removed neurons.
    contract_L: int64, the address of each layer's contracting rows: the model's own, or corrected copies of the kept
        ones.
    contract_index_LF: int32, the rows to read there.
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
        self.gates = torch.zeros(1, dtype=torch.int32, device=device)
        self.thresholds_LF, self.resting_LF = torch.zeros(2, layers, neurons, dtype=torch.float32, device=device)
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
        self._contracted_PD = buffer(kernels.contract_splits(neurons, width), width, dtype=torch.float32)
        self._own_contract_L = torch.tensor(
            [_address(layer.feed_forward.contract.dense()) for layer in weights.layers]
        ).to(device)
        self.contract_L = self._own_contract_L.clone()
        self._contract_dtype = weights.layers[0].feed_forward.contract.dtype
        self.contract_index_LF = torch.empty_like(self.index_LF)
        self._everything_F = torch.arange(neurons, dtype=torch.int32, device=device)
        self._corrected: list[Tensor] = []
        self.keep_all()

    @torch.inference_mode()
    def keep(self, kept: Kept) -> None:
        """Go through these neurons from now on."""
        for index_F, kept_k in zip(self.index_LF, kept.layers, strict=True):
            index_F[: len(kept_k)] = kept_k
        self.kept_L.copy_(torch.tensor(kept.counts, dtype=torch.int32))
        self.contract_bias_LD.copy_(self._own_bias_LD)
        if kept.offset_LD is not None:
            self.contract_bias_LD += kept.offset_LD
        self._gate(kept.acting)
        if kept.correction is None:
            self._contract_in_place()
        else:
            self._contract_corrected(kept, kept.correction)

    @torch.inference_mode()
    def keep_all(self) -> None:
        """The dense model from now on."""
        self.index_LF.copy_(self._everything_F)
        self.kept_L.fill_(len(self._everything_F))
        self.contract_bias_LD.copy_(self._own_bias_LD)
        self._gate(None)
        self._contract_in_place()

    def _gate(self, gating: Acting | None) -> None:
        self.gates.fill_(gating is not None)
        if gating is not None:
            for number, (thresholds_k, resting_k) in enumerate(zip(gating.thresholds, gating.resting, strict=True)):
                self.thresholds_LF[number, : len(thresholds_k)] = thresholds_k
                self.resting_LF[number, : len(resting_k)] = resting_k

    def _contract_in_place(self) -> None:
        self.contract_L.copy_(self._own_contract_L)
        self.contract_index_LF.copy_(self.index_LF)
        self._corrected = []

    def _contract_corrected(self, kept: Kept, correction: Correction) -> None:
        """Copies take memory until other neurons are kept: one contracting row for each kept neuron."""
        # First, because there may not be room for both.
        self._corrected = []
        self._corrected = [
            layer.feed_forward.contract.rows(kept_k).dense()
            for layer, kept_k in zip(self.weights.layers, kept.layers, strict=True)
        ]
        for number, contract_kD in enumerate(self._corrected):
            correction.add_to_(number, contract_kD)
        self.contract_L.copy_(torch.tensor([_address(contract_kD) for contract_kD in self._corrected]))
        self.contract_index_LF.copy_(self._everything_F)

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
        bias_D = self.contract_bias_LD[number]
        kernels.expand(
            self._x_D,
            feed_forward.expand.matrix.dense(),
            index_F,
            kept,
            self._z_F,
            activation=self.weights.activation,
            bias=feed_forward.expand.bias,
            norm=layer.before_feed_forward,
            gates=self.gates,
            thresholds_F=self.thresholds_LF[number],
            resting_F=self.resting_LF[number],
        )
        kernels.contract(
            self._z_F,
            self.contract_index_LF[number],
            kept,
            self.contract_L[number : number + 1],
            self._contract_dtype,
            self._contracted_PD,
            self.gates,
        )
        if layer.after_feed_forward is None:
            kernels.reduce_add(
                self._contracted_PD, self._x_D, bias_D=bias_D, factor=self._residual_factor, residual_D=self._x_D
            )
        else:
            kernels.reduce_add(self._contracted_PD, self._y_D, bias_D=bias_D)
            kernels.normalise_add(self._x_D, self._y_D, layer.after_feed_forward, self._residual_factor)


def _address(contract_FD: Tensor) -> int:
    address = contract_FD.data_ptr()
    # The kernel reads 16 bytes at a time. Memory that torch allocates always begins so.
    if address % 16:
        raise ValueError("a contracting projection does not begin at a multiple of 16 bytes")
    return address
