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

    token_id, position: int64 ``(1,)``, what the next ``run`` decodes, and where.
    index_LF, kept_L: int32, the neurons it goes through; of each row the first ``kept_L[layer]`` count.
    gates, thresholds_LF, resting_LF: whether neurons act on some tokens only, int32 ``(1,)``; then when they do, and
        what stands for them otherwise, fp32, in the order of ``index_LF``; see ``kept.Acting``.
    contract_bias_LD: fp32, the contracting projections' own, and what stands for the neurons that are gone.
    contract_L: int64, where each layer's second projection is read: the model's own rows, by ``index_LF``, or the kept
        ones once more, corrected. ``contract_index_LF``: int32, which of its rows.
    keys, values: per layer ``(1, G, context_length, S)``, filled up to ``position``.
    logits_V: what ``run`` leaves, in the model's dtype.
    """

    def __init__(self, weights: Weights, context_length: int) -> None:
        self.weights = weights
        self.context_length = context_length
        layers, heads, size, width = len(weights.layers), weights.heads, weights.head_size, weights.width
        neurons = len(weights.layers[0].feed_forward.contract_FD)
        dtype, device = weights.embedding_VD.dtype, weights.embedding_VD.device

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.token_id = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.index_LF = buffer(layers, neurons, dtype=torch.int32)
        self.kept_L = buffer(layers, dtype=torch.int32)
        self.gates = torch.zeros(1, dtype=torch.int32, device=device)
        self.thresholds_LF, self.resting_LF = torch.zeros(2, layers, neurons, dtype=torch.float32, device=device)
        self._own_bias_LD = weights.contract_bias()
        self.contract_bias_LD = self._own_bias_LD.clone()
        self.keys = [buffer(1, weights.kv_heads, context_length, size) for _ in weights.layers]
        self.values = [buffer(1, weights.kv_heads, context_length, size) for _ in weights.layers]
        self.logits_V = buffer(len(weights.head.weight))
        self._x_D = buffer(width)
        self._y_D = buffer(width)
        self._qkv = buffer((heads + 2 * weights.kv_heads) * size)
        self._q_HS = buffer(heads, size)
        self._attended_HS = buffer(heads, size)
        self._attended_HPS = buffer(heads, kernels.MOST_SPLITS, size, dtype=torch.float32)
        self._extremes_2HP = buffer(2, heads, kernels.MOST_SPLITS, dtype=torch.float32)
        self._z_F = buffer(neurons, dtype=torch.float32)
        self._contracted_PD = buffer(kernels.contract_splits(neurons, width), width, dtype=torch.float32)
        self._own_contract_L = torch.tensor([_address(layer.feed_forward.contract_FD) for layer in weights.layers]).to(
            device
        )
        self.contract_L = self._own_contract_L.clone()
        self._contract_dtype = weights.layers[0].feed_forward.contract_FD.dtype
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
        """Costs the memory of the kept neurons' second projections, until others are kept."""
        # First of all, for there may not be room for both.
        self._corrected = []
        self._corrected = [
            layer.feed_forward.contract_FD[kept_k]
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
            self.token_id, self.position, weights.embedding_VD, weights.embedding_scale, weights.positions, self._x_D
        )
        for number, layer in enumerate(weights.layers):
            self._attention(number, layer, bucket)
            self._feed_forward(number, layer)
        kernels.project(
            self._x_D,
            weights.head.weight,
            self.logits_V,
            bias_N=weights.head.bias,
            norm=weights.final_norm,
            cap=weights.logit_cap,
        )
        self.position.add_(1)

    def _attention(self, number: int, layer: Layer, bucket: int) -> None:
        keys, values = self.keys[number], self.values[number]
        merged, output = layer.query_key_value, layer.output
        kernels.project(self._x_D, merged.weight, self._qkv, bias_N=merged.bias, norm=layer.before_attention)
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
            kernels.project(attended, output.weight, self._x_D, bias_N=output.bias, residual_N=self._x_D)
        else:
            kernels.project(attended, output.weight, self._y_D, bias_N=output.bias)
            kernels.normalise_add(self._x_D, self._y_D, layer.after_attention)

    def _feed_forward(self, number: int, layer: Layer) -> None:
        feed_forward, index_F, kept = layer.feed_forward, self.index_LF[number], self.kept_L[number : number + 1]
        bias_D = self.contract_bias_LD[number]
        kernels.expand(
            self._x_D,
            feed_forward.expand.weight,
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
            kernels.reduce_add(self._contracted_PD, self._x_D, bias_D=bias_D, residual_D=self._x_D)
        else:
            kernels.reduce_add(self._contracted_PD, self._y_D, bias_D=bias_D)
            kernels.normalise_add(self._x_D, self._y_D, layer.after_feed_forward)


def _address(contract_FD: Tensor) -> int:
    address = contract_FD.data_ptr()
    # The kernel reads 16 bytes at a time. What torch has allocated always begins so.
    if address % 16:
        raise ValueError("a second projection does not begin at a multiple of 16 bytes")
    return address
