"""A model's weights in the form that the compiled step reads."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.decode.c.library import (
    CACHE_FORMATS,
    FORMATS,
    MOST_TOKENS,
    CFeedForward,
    CGroups,
    CLayer,
    CMatrix,
    CModel,
    CNorm,
    CProjection,
    CRotary,
)
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.grouping import Layout
from griffin.model.matrix.matrix import Matrix
from griffin.model.weights import ACTIVATIONS, FeedForwardWeights, Layer, Norm, Projection, QueryGrowth, Rotary, Weights


def supported(weights: Weights) -> bool:
    """Whether the step can read these weights: on the CPU, in formats that it knows, with contiguous rows."""
    matrices = [*weights.matrices(), *([] if weights.positions is None else [Dense(weights.positions)])]
    return str(weights.dtype).removeprefix("torch.") in CACHE_FORMATS and all(map(_readable, matrices))


def _readable(matrix: Matrix) -> bool:
    contiguous = all(tensor.is_contiguous() for tensor in (*matrix.planes, *matrix.shared))
    return matrix.format in FORMATS and matrix.device.type == "cpu" and contiguous


def described(matrix: Matrix) -> CMatrix:
    """A matrix, whose rows need not be adjacent. Its tensors must live as long as the result is used."""
    codes, *scales = matrix.planes
    stride = codes.stride(0) * codes.element_size()
    found = CMatrix(codes.data_ptr(), None, len(codes), matrix.columns, stride, FORMATS.index(matrix.format))
    if isinstance(matrix, GroupedRows):
        # A row's scales follow its codes.
        found.groups = _groups(matrix.layout, codes, codes)
    elif isinstance(matrix, GroupedColumns):
        found.groups = _groups(matrix.layout, matrix.records, matrix.supers)
        found.groups.neurons = None if matrix.neurons is None else matrix.neurons.data_ptr()
    elif scales:
        found.scales = scales[0].data_ptr()
    return found


def _groups(layout: Layout, records: Tensor, supers: Tensor | None) -> CGroups:
    scales, second = records.data_ptr(), 0 if supers is None else supers.data_ptr()
    found = CGroups(
        scales=scales + layout.scales, stride=records.stride(0), size=layout.size, bytes=layout.bytes, zero=layout.zero
    )
    if layout.has_minimums:
        found.minimums = scales + layout.minimums
    if layout.two_levels and supers is not None:
        found.supers, found.super_stride = second + layout.supers, supers.stride(0)
        if layout.has_minimums:
            found.super_minimums = second + layout.super_minimums
    return found


class Description:
    """All structures for a step, and the small tensors made for them. Biases and norms become fp32.

    model: the structure with which a step is opened.
    layers, blocks: one for each layer; a layer reads the neurons of the block that is written into it.
    """

    def __init__(self, weights: Weights, cache_dtype: torch.dtype) -> None:
        self._held: list[object] = []
        rotaries = list({id(layer.rotary): layer.rotary for layer in weights.layers if layer.rotary}.values())
        self._rotaries = (CRotary * len(rotaries))(*(self._rotary(rotary) for rotary in rotaries))
        numbers = {id(rotary): number for number, rotary in enumerate(rotaries)}
        blocks = (self._block(layer.feed_forward) for layer in weights.layers)
        self.blocks = (CFeedForward * len(weights.layers))(*blocks)
        self.layers = (CLayer * len(weights.layers))(
            *(
                self._layer(layer, block, self._rotaries[numbers[id(layer.rotary)]] if layer.rotary else None)
                for layer, block in zip(weights.layers, self.blocks, strict=True)
            )
        )
        growth = weights.query_growth or QueryGrowth(rate=0, context=1)
        self.model = CModel(
            embedding=self._matrix(weights.embedding),
            positions=CMatrix() if weights.positions is None else self._matrix(Dense(weights.positions)),
            head=self._projection(weights.head),
            final_norm=self._norm(weights.final_norm),
            layers=self.layers,
            rotaries=self._rotaries,
            layer_count=len(self.layers),
            rotary_count=len(rotaries),
            width=weights.width,
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            head_size=weights.head_size,
            embedding_scale=weights.embedding_scale,
            residual_scale=weights.residual_scale,
            scale=weights.scale,
            query_growth=growth.rate,
            query_context=growth.context,
            score_cap=weights.score_cap or 0,
            logit_divisor=weights.logit_divisor,
            logit_cap=weights.logit_cap or 0,
            activation=ACTIVATIONS.index(weights.activation),
            cache_format=FORMATS.index(str(cache_dtype).removeprefix("torch.")),
        )

    def _layer(self, layer: Layer, block: CFeedForward, rotary: CRotary | None) -> CLayer:
        return CLayer(
            before_attention=self._norm(layer.before_attention),
            query_norm=self._norm(layer.query_norm),
            key_norm=self._norm(layer.key_norm),
            after_attention=self._norm(layer.after_attention),
            before_feed_forward=self._norm(layer.before_feed_forward),
            after_feed_forward=self._norm(layer.after_feed_forward),
            query_key_value=self._projections(layer.query_key_value),
            output=self._projection(layer.output),
            feed_forward=block,
            rotary=ctypes.pointer(rotary) if rotary is not None else None,
            window=layer.window or 0,
        )

    def _block(self, feed_forward: FeedForwardWeights) -> CFeedForward:
        contract = self._projection(Projection((feed_forward.contract,), feed_forward.contract_bias))
        gate, *up = (self._projection(projection) for projection in feed_forward.expanding())
        return CFeedForward(gate, up[0] if up else CProjection(), contract)

    def _projections(self, projection: Projection) -> "ctypes.Array[CProjection]":
        """Each part of a projection, with its part of the bias."""
        biases: Sequence[Tensor | None] = [None] * len(projection.parts)
        if projection.bias is not None:
            biases = torch.split(projection.bias, [part.row_count for part in projection.parts])
        pairs = zip(projection.parts, biases, strict=True)
        return (CProjection * 3)(*(CProjection(self._matrix(part), self._float(bias)) for part, bias in pairs))

    def _projection(self, projection: Projection) -> CProjection:
        return CProjection(self._matrix(projection.matrix), self._float(projection.bias))

    def _matrix(self, matrix: Matrix) -> CMatrix:
        self._held.append(matrix)
        return described(matrix)

    def _norm(self, norm: Norm | None) -> CNorm:
        if norm is None:
            return CNorm()
        width = len(norm.weight)
        return CNorm(self._float(norm.weight), self._float(norm.bias), width, norm.eps, norm.centred)

    def _rotary(self, rotary: Rotary) -> CRotary:
        frequencies_R = rotary.frequencies_R
        pointers = [self._float(tensor) for tensor in (frequencies_R, *torch.empty(2, MOST_TOKENS, len(frequencies_R)))]
        return CRotary(*pointers, len(frequencies_R), rotary.scaling, rotary.interleaved)

    def _float(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        held = tensor.float().contiguous()
        self._held.append(held)
        return held.data_ptr()
