"""NativeStep: one token, or a pass of several, through the compiled step ``step.c``, which reads weights in place.

Shapes: L layers, T tokens, D model width, F feed-forward neurons, k of them kept, V vocabulary.
"""

import ctypes
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.decode.c.description import Description, supported
from griffin.decode.c.library import MOST_TOKENS, CFeedForward, CObserved, library
from griffin.decode.c.picking import PickingBlocks
from griffin.decode.c.room import Room
from griffin.method.statistic import Activations
from griffin.model.cache import KVCache
from griffin.model.weights import Weights
from griffin.neurons import Chosen, Kept
from griffin.thresholds import Shares, Thresholds


class NativeStep:
    """Runs tokens through the full model, or through kept neurons. One thread at a time may use it."""

    def __init__(self, weights: Weights, cache: KVCache, threads: int) -> None:
        """
        Args:
            weights: must be ``supported``. They are read in place, so their tensors must not move.
            cache: in the weights' dtype, or with its own dtype.
            threads: number of computing threads, including the caller.

        Raises:
            ValueError: unsupported weights, or fewer than one thread.
        """
        compiled = library()
        if compiled is None:
            raise RuntimeError("the compiled decode step is not available")
        if not supported(weights):
            raise ValueError("the compiled decode step cannot read weights of this form")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, but is {threads}")
        self._library, self._weights, self._cache = compiled, weights, cache
        self._cache_dtype = cache.dtype or weights.dtype
        self._description = Description(weights, self._cache_dtype)
        self._in_use = self._description.blocks
        # The cache's tensors, as the step knows them. They are passed again whenever the cache has moved.
        self._keys_values: list[tuple[Tensor, Tensor]] = []
        # Room for kept neurons, made when it is first needed. Pages that are never written to take no memory.
        self._kept: Room | None = None
        # The gates by input, also made when they are first needed.
        self._picking: PickingBlocks | None = None
        # The numbers of inputs and neurons that tokens have read by thresholds, and the number of tokens.
        self._reads: Tensor | None = None
        self._unread, self._tokens = torch.zeros(3, dtype=torch.int64), 0
        # Again, pages that are never written to take no memory.
        self._logits_TV = torch.empty(MOST_TOKENS, weights.head.outputs, dtype=torch.float32)
        self._handle: int | None = compiled.griffin_open(self._description.model, threads)
        if self._handle is None:
            raise MemoryError("no memory or no threads for the compiled decode step")
        self._finalizer = weakref.finalize(self, compiled.griffin_close, self._handle)
        # The end of a process ends its threads. A forked process has no such threads, and must not wait for them.
        self._finalizer.atexit = False

    def close(self) -> None:
        """End its threads. It may be closed again, but not used."""
        self._handle = None
        self._finalizer()

    @torch.inference_mode()
    def keep(self, chosen: Chosen | None) -> None:
        """Decode with this choice from here on, or with all neurons (None).

        All threads copy the weights of kept neurons next to each other, because reading them in place would be slower
        than reading all neurons, see ``step.c``. With thresholds, weights are read in place.
        """
        handle, all_neurons = self._open(), self._description.blocks
        # All neurons until the new choice is ready. If that fails, the old choice is lost.
        self._use(all_neurons)
        self._reads, self._tokens = None, 0
        if isinstance(chosen, Kept):
            self._keep(handle, chosen)
        elif chosen is not None:
            self._pick(handle, chosen)

    def _keep(self, handle: int, kept: Kept) -> None:
        all_neurons = self._description.blocks
        _require(kept, len(all_neurons), int(all_neurons[0].gate.matrix.rows))
        if self._kept is None:
            self._kept = Room(self._weights)
        room, which = self._kept.describe(kept, all_neurons), torch.cat(tuple(kept.layers))
        self._library.griffin_keep(handle, all_neurons, room, which.data_ptr())
        self._use(room)

    def _pick(self, handle: int, thresholds: Thresholds) -> None:
        weights, blocks = self._weights, self._description.blocks
        thresholds.require(len(blocks), weights.width, int(blocks[0].gate.matrix.rows))
        if self._picking is None:
            self._picking = PickingBlocks(weights, blocks)
        picking = self._picking.describe(thresholds)
        self._library.griffin_rest(handle, picking)
        self._use(picking)
        self._reads = torch.zeros(3, dtype=torch.int64)

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``keep``; None without thresholds or tokens."""
        if self._reads is None:
            return None
        weights, layers = self._weights, len(self._weights.layers)
        block = weights.layers[0].feed_forward
        inputs, neurons = layers * weights.width, layers * block.contract.row_count
        return Shares.counted(self._reads.tolist(), self._tokens, inputs, neurons, gated=block.gated)

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)`` in fp32; its key and value are added to the cache.

        The next call overwrites them.
        """
        return self._run((id,), 1)[0]

    def read(self, ids: Sequence[int], *, full: bool = False) -> Tensor:
        """See ``PassingStep``. One pass takes at most ``MOST_TOKENS``; more tokens take several passes."""
        if len(ids) > MOST_TOKENS:
            first_TV = self.read(ids[:MOST_TOKENS], full=full).clone()
            return torch.cat((first_TV, self.read(ids[MOST_TOKENS:], full=full)))
        return self._whole(ids, len(ids), None) if full else self._run(ids, len(ids))

    def observe(self, ids: Sequence[int], wanted: int) -> tuple[Tensor, list[Activations]]:
        """See ``PassingStep``: in fp32."""
        if len(ids) > MOST_TOKENS:
            first = len(ids) - MOST_TOKENS
            logits, seen = self.observe(ids[:first], max(0, wanted - MOST_TOKENS))
            logits = logits.clone()
            own, rest = self.observe(ids[first:], min(wanted, MOST_TOKENS))
            joined = [Activations.joined(pair) for pair in zip(seen, rest, strict=True)]
            return torch.cat((logits, own)), joined
        layers, tokens, weights = len(self._weights.layers), len(ids), self._weights
        neurons, gated = weights.layers[0].feed_forward.contract.row_count, weights.layers[0].feed_forward.gated
        x_LTD = torch.empty(layers, tokens, weights.width)
        gate_LTF, z_LTF = torch.empty(2, layers, tokens, neurons)
        up_LTF = torch.empty(layers, tokens, neurons) if gated else None
        pointers = (None if values is None else values.data_ptr() for values in (x_LTD, gate_LTF, up_LTF, z_LTF))
        logits = self._whole(ids, wanted, CObserved(*pointers))
        ups = [None] * layers if up_LTF is None else up_LTF
        return logits, [Activations(*each) for each in zip(x_LTD, z_LTF, gate_LTF, ups, strict=True)]

    def _whole(self, ids: Sequence[int], wanted: int, observed: CObserved | None) -> Tensor:
        """A pass through all neurons, even if others are in use. It does not count."""
        in_use, tokens = self._in_use, self._tokens
        self._use(self._description.blocks)
        try:
            return self._run(ids, wanted, observed)
        finally:
            self._use(in_use)
            self._tokens = tokens

    def _run(self, ids: Sequence[int], wanted: int, observed: CObserved | None = None) -> Tensor:
        handle, position, count = self._open(), self._cache.length, len(ids)
        if not 1 <= count <= MOST_TOKENS:
            raise ValueError(f"a pass has 1 to {MOST_TOKENS} tokens, not {count}")
        for id in ids:
            if not 0 <= id < self._weights.embedding.row_count:
                raise IndexError(f"no token has the id {id}")
        if self._weights.positions is not None and position + count > len(self._weights.positions):
            raise IndexError(f"no position embedding for position {position + count - 1}")
        if not position:
            self._cache.begin(self._weights.kv_heads, self._weights.head_size, self._cache_dtype)
        self._follow(self._cache.reserve(position + count))
        reads = self._unread if self._reads is None else self._reads
        self._library.griffin_pass(
            handle, (ctypes.c_int64 * count)(*ids), count, position, self._logits_TV.data_ptr(), wanted,
            reads.data_ptr(), observed,
        )  # fmt: skip
        self._tokens += count
        self._cache.length = position + count
        return self._logits_TV[:wanted]

    def _open(self) -> int:
        if self._handle is None:
            raise RuntimeError("the compiled decode step is closed")
        return self._handle

    def _use(self, blocks: "ctypes.Array[CFeedForward]") -> None:
        if blocks is self._in_use:
            return
        self._in_use = blocks
        for layer, block in zip(self._description.layers, blocks, strict=True):
            layer.feed_forward = block

    def _follow(self, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        """Tell the step the cache's current place in memory."""
        held = self._keys_values
        if len(held) == len(keys_values) and all(
            keys is held_keys and values is held_values
            for (keys, values), (held_keys, held_values) in zip(keys_values, held, strict=True)
        ):
            return
        shape = (1, self._weights.kv_heads, keys_values[0][0].shape[2], self._weights.head_size)
        for tensor in (tensor for pair in keys_values for tensor in pair):
            if tensor.dtype != self._cache_dtype or tensor.shape != shape or not tensor.is_contiguous():
                raise ValueError(f"the cache is not {shape} in {self._cache_dtype}, but {tensor.dtype} {tensor.shape}")
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
        if (kept_k.diff() <= 0).any():
            raise ValueError("neurons must be in ascending order, each once")
