"""The decode step compiled: ``step.c`` loaded, and given the tensors that it reads in place.

Nothing here is needed: where there was no C compiler at installation, ``available()`` is false.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept, V vocabulary, S head size.
"""

import ctypes
import logging
import math
import mmap
import sys
import weakref
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from griffin.library import compiled
from griffin.model.cache import KVCache
from griffin.model.weights import ACTIVATIONS, FeedForwardWeights, Layer, Norm, Projection, Rotary, Weights
from griffin.neurons import Kept

logger = logging.getLogger("griffin")

DTYPES = (torch.float32, torch.bfloat16)
# Of the processor's caches, in bytes.
_LINE = 64
# Linux's MAP_NORESERVE, nameless in Python 3.11: one piece may be promised as much as many small ones would be.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("centred", ctypes.c_int32),
    )


class _Projection(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


class _Rotary(ctypes.Structure):
    _fields_ = (
        ("frequencies", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("pairs", ctypes.c_int64),
        ("scaling", ctypes.c_double),
    )


class _FeedForward(ctypes.Structure):
    _fields_ = (
        ("gate", _Projection),
        ("up", _Projection),
        ("contract", _Projection),
        ("stride", ctypes.c_int64),
        ("thresholds", ctypes.c_void_p),
        ("resting", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("before_attention", _Norm),
        ("query_norm", _Norm),
        ("key_norm", _Norm),
        ("after_attention", _Norm),
        ("before_feed_forward", _Norm),
        ("after_feed_forward", _Norm),
        ("query_key_value", _Projection),
        ("output", _Projection),
        ("feed_forward", _FeedForward),
        ("rotary", ctypes.POINTER(_Rotary)),
        ("window", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("embedding", _Projection),
        ("head", _Projection),
        ("positions", ctypes.c_void_p),
        ("final_norm", _Norm),
        ("layers", ctypes.POINTER(_Layer)),
        ("rotaries", ctypes.POINTER(_Rotary)),
        ("layer_count", ctypes.c_int64),
        ("rotary_count", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("embedding_scale", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("score_cap", ctypes.c_double),
        ("logit_cap", ctypes.c_double),
        ("activation", ctypes.c_int64),
        ("bfloat16", ctypes.c_int64),
    )


LAYOUT = sum(
    ctypes.sizeof(part) << shift for part, shift in ((_Model, 40), (_Layer, 20), (_FeedForward, 8), (_Rotary, 0))
)


@cache
def _library() -> ctypes.CDLL | None:
    """Built at installation."""
    return _load(compiled())


def _load(path: Path | None) -> ctypes.CDLL | None:
    """None if it is not there, or cannot be used."""
    if path is None:
        logger.warning(
            "decoding without the compiled step, two to three times slower: it was not built (no C compiler?)"
        )
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.griffin_layout.restype = ctypes.c_int64
        layout = library.griffin_layout()
        blocks = ctypes.POINTER(_FeedForward)
        library.griffin_open.restype = ctypes.c_void_p
        library.griffin_open.argtypes = (ctypes.POINTER(_Model), ctypes.c_int)
        library.griffin_step.restype = None
        library.griffin_step.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        library.griffin_keep.restype = None
        library.griffin_keep.argtypes = (ctypes.c_void_p, blocks, blocks, ctypes.c_void_p)
        library.griffin_close.restype = None
        library.griffin_close.argtypes = (ctypes.c_void_p,)
    except (OSError, AttributeError) as broken:
        logger.warning("decoding without the compiled step, two to three times slower: %s", broken)
        return None
    if layout != LAYOUT:
        logger.warning("decoding without the compiled step, two to three times slower: %s is of another version", path)
        return None
    return library


def available() -> bool:
    """Whether the compiled library is there and fits."""
    return _library() is not None


def supported(weights: Weights) -> bool:
    """Whether it can read such weights: on the CPU, fp32 or bfloat16 throughout, every row contiguous."""
    matrices = [weights.embedding_VD, weights.head.weight]
    if weights.positions is not None:
        matrices.append(weights.positions)
    for layer in weights.layers:
        matrices += [layer.query_key_value.weight, layer.output.weight, layer.feed_forward.expand.weight]
        matrices.append(layer.feed_forward.contract_FD)
    dtype = weights.embedding_VD.dtype
    return dtype in DTYPES and all(
        matrix.dtype == dtype and matrix.is_contiguous() and matrix.device.type == "cpu" for matrix in matrices
    )


class NativeStep:
    """One token through the full model, or through kept neurons. One thread at a time may use it."""

    def __init__(self, weights: Weights, cache: KVCache, threads: int) -> None:
        """
        Args:
            weights: ``supported`` ones. They are read in place: their tensors must stay where they are.
            cache: in the weights' dtype.
            threads: how many compute, the caller among them.

        Raises:
            ValueError: unsupported weights, or no thread.
        """
        library = _library()
        if library is None:
            raise RuntimeError("the compiled decode step is not available")
        if not supported(weights):
            raise ValueError("the compiled decode step cannot read weights of this form")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, but is {threads}")
        self._library, self._weights, self._cache = library, weights, cache
        self._description = _Description(weights)
        # Taken anew whenever the cache has moved.
        self._keys_values: list[tuple[Tensor, Tensor]] = []
        # Room for kept neurons, made at the first need; pages that nothing was written to take no memory.
        self._kept: _Room | None = None
        self._logits_V = torch.empty(len(weights.head.weight), dtype=torch.float32)
        self._handle: int | None = library.griffin_open(self._description.model, threads)
        if self._handle is None:
            raise MemoryError("no memory or no threads for the compiled decode step")
        self._finalizer = weakref.finalize(self, library.griffin_close, self._handle)
        # The end of a process ends its threads, and a forked one has none of them to wait for.
        self._finalizer.atexit = False

    def close(self) -> None:
        """End its threads. It may be closed again, and used no more."""
        self._handle = None
        self._finalizer()

    @torch.inference_mode()
    def keep(self, kept: Kept | None) -> None:
        """Decode with these neurons only from now on, or with all (None).

        Their weights are copied next to each other, by all threads: read in place they would be slower than all
        neurons are, see ``step.c``.
        """
        handle, all_neurons = self._open(), self._description.blocks
        if kept is None:
            self._use(all_neurons)
            return
        _require(kept, len(all_neurons), int(all_neurons[0].gate.rows))
        if self._kept is None:
            self._kept = _Room(self._weights)
        layers = kept.layers if kept.acting is None else [
            kept_k[order_k] for kept_k, order_k in zip(kept.layers, kept.acting.order, strict=True)
        ]  # fmt: skip
        # Until the room is filled: should that fail, what was in it is gone.
        self._use(all_neurons)
        which, room = torch.cat(tuple(layers)), self._kept.describe(kept, all_neurons)
        self._library.griffin_keep(handle, all_neurons, room, which.data_ptr())
        self._kept.correct(kept)
        self._use(room)

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)`` in fp32; its key and value join the cache.

        The next call writes over them.
        """
        handle, position = self._open(), self._cache.length
        if not 0 <= id < len(self._weights.embedding_VD):
            raise IndexError(f"no token has the id {id}")
        if self._weights.positions is not None and position >= len(self._weights.positions):
            raise IndexError(f"no position embedding for position {position}")
        self._follow(self._cache.reserve(position + 1))
        self._library.griffin_step(handle, id, position, self._logits_V.data_ptr())
        self._cache.length = position + 1
        return self._logits_V

    def _open(self) -> int:
        if self._handle is None:
            raise RuntimeError("the compiled decode step is closed")
        return self._handle

    def _use(self, blocks: "ctypes.Array[_FeedForward]") -> None:
        for layer, block in zip(self._description.layers, blocks, strict=True):
            layer.feed_forward = block

    def _follow(self, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        """Read and write the cache where it is now."""
        held = self._keys_values
        if len(held) == len(keys_values) and all(
            keys is held_keys and values is held_values
            for (keys, values), (held_keys, held_values) in zip(keys_values, held, strict=True)
        ):
            return
        shape = (1, self._weights.kv_heads, keys_values[0][0].shape[2], self._weights.head_size)
        for tensor in (tensor for pair in keys_values for tensor in pair):
            if tensor.dtype != self._weights.embedding_VD.dtype or tensor.shape != shape or not tensor.is_contiguous():
                raise ValueError(f"the cache is not {shape} in the weights' dtype, but {tensor.dtype} {tensor.shape}")
        for layer, (keys, values) in zip(self._description.layers, keys_values, strict=True):
            layer.keys, layer.values, layer.capacity = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        self._keys_values = keys_values


def _require(kept: Kept, layers: int, neurons: int) -> None:
    if len(kept.layers) != layers:
        raise ValueError(f"neurons must be kept in each of {layers} layers, but {len(kept.layers)} are given")
    for kept_k in kept.layers:
        if kept_k.dtype != torch.int64 or kept_k.dim() != 1 or not len(kept_k):
            raise ValueError(f"neurons must be int64 (k,), but are {kept_k.dtype} {tuple(kept_k.shape)}")
        if kept_k.min() < 0 or kept_k.max() >= neurons:
            raise ValueError(f"neurons must be among 0 to {neurons - 1}")
    acting = kept.acting
    for values in (acting.thresholds, acting.resting, acting.order) if acting else ():
        if [len(values_k) for values_k in values] != kept.counts:
            raise ValueError("of gates there must be as many values as neurons are kept, in each layer")


class _Description:
    """The weights as C sees them, and all small tensors that were made for it. Biases and norms become fp32."""

    def __init__(self, weights: Weights) -> None:
        self._held: list[Tensor] = []
        rotaries = list({id(layer.rotary): layer.rotary for layer in weights.layers if layer.rotary}.values())
        self._rotaries = (_Rotary * len(rotaries))(*(self._rotary(rotary) for rotary in rotaries))
        numbers = {id(rotary): number for number, rotary in enumerate(rotaries)}
        self.blocks = (_FeedForward * len(weights.layers))(
            *(self._block(layer.feed_forward) for layer in weights.layers)
        )
        self.layers = (_Layer * len(weights.layers))(
            *(
                self._layer(layer, feed_forward, self._rotaries[numbers[id(layer.rotary)]] if layer.rotary else None)
                for layer, feed_forward in zip(weights.layers, self.blocks, strict=True)
            )
        )
        self.model = _Model(
            embedding=self._projection(Projection(weights.embedding_VD, None)),
            head=self._projection(weights.head),
            positions=weights.positions.data_ptr() if weights.positions is not None else None,
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
            scale=weights.scale,
            score_cap=weights.score_cap or 0,
            logit_cap=weights.logit_cap or 0,
            activation=ACTIVATIONS.index(weights.activation),
            bfloat16=weights.embedding_VD.dtype == torch.bfloat16,
        )

    def _layer(self, layer: Layer, feed_forward: _FeedForward, rotary: _Rotary | None) -> _Layer:
        return _Layer(
            before_attention=self._norm(layer.before_attention),
            query_norm=self._norm(layer.query_norm),
            key_norm=self._norm(layer.key_norm),
            after_attention=self._norm(layer.after_attention),
            before_feed_forward=self._norm(layer.before_feed_forward),
            after_feed_forward=self._norm(layer.after_feed_forward),
            query_key_value=self._projection(layer.query_key_value),
            output=self._projection(layer.output),
            feed_forward=feed_forward,
            rotary=ctypes.pointer(rotary) if rotary is not None else None,
            window=layer.window or 0,
        )

    def _block(self, feed_forward: FeedForwardWeights) -> _FeedForward:
        contract = self._projection(Projection(feed_forward.contract_FD, feed_forward.contract_bias))
        gate = self._projection(feed_forward.expand)
        if not feed_forward.gated:
            return _FeedForward(gate, _Projection(), contract, stride=1)
        gate.rows = contract.rows
        weight_PD, bias_P = feed_forward.expand.weight, feed_forward.expand.bias
        up_FD, up_bias = weight_PD[gate.rows :], None if bias_P is None else bias_P[gate.rows :]
        return _FeedForward(gate, self._projection(Projection(up_FD, up_bias)), contract, stride=1)

    def _projection(self, projection: Projection) -> _Projection:
        weight = projection.weight
        self._held.append(weight)
        return _Projection(weight.data_ptr(), self._float(projection.bias), *weight.shape)

    def _norm(self, norm: Norm | None) -> _Norm:
        if norm is None:
            return _Norm()
        width = len(norm.weight)
        return _Norm(self._float(norm.weight), self._float(norm.bias), width, norm.eps, norm.centred)

    def _rotary(self, rotary: Rotary) -> _Rotary:
        frequencies_R = rotary.frequencies_R
        pointers = [self._float(tensor) for tensor in (frequencies_R, *torch.empty(2, len(frequencies_R)))]
        return _Rotary(*pointers, len(frequencies_R), rotary.scaling)

    def _float(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        held = tensor.float().contiguous()
        self._held.append(held)
        return held.data_ptr()


def _untouched(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Tensors that take no memory before they are written to; then in huge pages, where the system has them.

    Rows are hopped between, and with pages of 4 KiB a step takes up to 10 % longer, by chance of where those lie.

    Raises:
        MemoryError: the system does not promise as much.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    starts = list(accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0))
    try:
        memory = mmap.mmap(-1, starts[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        raise MemoryError(f"no {starts[-1] / 1e9:.1f} GB for kept neurons: {error.strerror}") from error
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return [
        torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
        for shape, start in zip(shapes, starts[:-1], strict=True)
    ]


class _Room:
    """Room for the kept neurons of every layer, at most all, and for what stands for the others."""

    def __init__(self, weights: Weights) -> None:
        blocks = [layer.feed_forward for layer in weights.layers]
        shapes = [(2 + block.gated, *block.contract_FD.shape) for block in blocks]
        rows = _untouched(shapes, weights.embedding_VD.dtype)
        self._gate = [rows_PFD[0] for rows_PFD in rows]
        # What is multiplied by the gate, if there is one, and the contracting rows.
        self._others = [rows_PFD[1:] for rows_PFD in rows]
        self._bias = [None if b.expand.bias is None else torch.empty(len(b.expand.bias)) for b in blocks]
        self._own_bias_LD = weights.contract_bias()
        self._contract_bias_LD = self._own_bias_LD.clone()
        # Thresholds, and what neurons at rest give.
        self._gating = [[torch.empty(0)] * len(blocks) for _ in range(2)]

    def describe(self, kept: Kept, all_neurons: "ctypes.Array[_FeedForward]") -> "ctypes.Array[_FeedForward]":
        described = (_FeedForward * len(self._gate))()
        for number, (block, whole, count) in enumerate(zip(described, all_neurons, kept.counts, strict=True)):
            self._describe(block, whole, number, count, kept)
        return described

    def _describe(self, block: _FeedForward, whole: _FeedForward, number: int, count: int, kept: Kept) -> None:
        width, contract_kD = whole.contract.columns, self._contract(number, count, kept)
        bias, contract_bias = self._bias[number], whole.contract.bias
        if kept.offset_LD is not None:
            torch.add(self._own_bias_LD[number], kept.offset_LD[number], out=self._contract_bias_LD[number])
            contract_bias = self._contract_bias_LD[number].data_ptr()
        gate_bias = None if bias is None else bias.data_ptr()
        block.gate = _Projection(self._gate[number].data_ptr(), gate_bias, count, width)
        if len(self._others[number]) > 1:
            up_bias = None if bias is None else bias[count:].data_ptr()
            block.up = _Projection(self._others[number].data_ptr(), up_bias, count, width)
        block.contract = _Projection(contract_kD.data_ptr(), contract_bias, count, width)
        block.stride = contract_kD.stride(0) // width
        if kept.acting is not None:
            # The selection's own may go while its neurons are still in use.
            for held, values_k in zip(self._gating, (kept.acting.thresholds, kept.acting.resting), strict=True):
                held[number] = values_k[number][kept.acting.order[number]].float().contiguous()
            block.thresholds, block.resting = (held[number].data_ptr() for held in self._gating)

    def _contract(self, number: int, count: int, kept: Kept) -> Tensor:
        """Where the contracting rows are, ``(k, D)``.

        Of neurons that act now and then, beside the rows that their gates multiply: of each it is read in one go.
        """
        others_PFD = self._others[number]
        parts, width = len(others_PFD), others_PFD.shape[-1]
        if kept.acting is None:
            return others_PFD.view(-1, width)[(parts - 1) * count :][:count]
        return others_PFD.view(-1, parts, width)[:count, parts - 1]

    def correct(self, kept: Kept) -> None:
        """Once the kept rows are there."""
        if kept.correction is not None:
            for number, count in enumerate(kept.counts):
                order_k = kept.acting.order[number] if kept.acting else None
                kept.correction.add_to_(number, self._contract(number, count, kept), order_k)
