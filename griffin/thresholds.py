"""Thresholds: what a token reads of each feed-forward (FF) block, as method griffin+ has fixed it on a prompt.

A block computes g = act(W_g x), z = g (W_u x), y = W_d z; all biases are implied. A token reads of it, in three stages:

1. of W_g, the inputs i whose x_i is far enough from its mean m_i. All others count with their mean:
   g = act(W_g m + sum over those of W_g[:, i] (x_i - m_i)).
2. of W_u, the neurons j whose |g_j| is large enough.
3. of W_d, those of them whose z_j is far enough from its resting value h_j. All others give that:
   y = W_d h + sum over those of W_d[:, j] (z_j - h_j).

A block without a gate, y = W_d act(W_1 x), has W_1 in the place of W_g, and no stage 2.

Shapes: L layers, D model width, F feed-forward neurons.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shares:
    """The fraction of its weights that a token reads, for each kind of FF matrix.

    gate: W_g; in blocks without a gate, W_1.
    up: W_u; in blocks without a gate it means nothing.
    down: W_d.
    """

    gate: float
    up: float
    down: float

    @classmethod
    def counted(cls, reads: Sequence[int], tokens: int, inputs: int, neurons: int, *, gated: bool) -> "Shares | None":
        """What tokens have read on average, by counts; None if there was no token.

        Args:
            reads: inputs that stage 1 read, and neurons that stages 2 and 3 read, in all layers.
            inputs, neurons: how many all layers have.
        """
        if not tokens:
            return None
        read, acting, giving = reads
        gate = read / (tokens * inputs)
        return cls(gate, acting / (tokens * neurons) if gated else gate, giving / (tokens * neurons))


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """The thresholds of one prompt. All tensors are fp32 and on one device.

    planned: what they let a token read, on average, by the tokens that they were found on.
    means_LD: m.
    input_limits_LD: an input is read where |x - m| exceeds this.
    offsets_LF: W_g m and the gate's bias.
    gate_limits_LF: a neuron goes on where |g| exceeds this; None without a gate.
    resting_LF: h.
    output_limits_LF: a neuron gives something where |z - h| exceeds this as well.
    """

    planned: Shares
    means_LD: Tensor
    input_limits_LD: Tensor
    offsets_LF: Tensor
    gate_limits_LF: Tensor | None
    resting_LF: Tensor
    output_limits_LF: Tensor

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in self._present())

    def shares(self, width: int) -> Shares:
        """What a token reads of the FF weights, of F neurons in each layer; as it was planned."""
        return self.planned

    def require(self, layers: int, width: int, neurons: int) -> None:
        """
        Raises:
            ValueError: they are of a model of other sizes.
        """
        by_input = (self.means_LD, self.input_limits_LD)
        by_neuron = (self.offsets_LF, self.resting_LF, self.output_limits_LF, self.gate_limits_LF)
        for values, size in (*((v, width) for v in by_input), *((v, neurons) for v in by_neuron)):
            if values is not None and values.shape != (layers, size):
                raise ValueError(f"thresholds must be ({layers}, {size}), but are {tuple(values.shape)}")

    def layer(self, number: int, device: torch.device) -> "LayerThresholds":
        """Those of one layer, where its weights are."""
        gate_limits = None if self.gate_limits_LF is None else self.gate_limits_LF[number].to(device)
        return LayerThresholds(
            means=self.means_LD[number].to(device),
            input_limits=self.input_limits_LD[number].to(device),
            offsets=self.offsets_LF[number].to(device),
            gate_limits=gate_limits,
            resting=self.resting_LF[number].to(device),
            output_limits=self.output_limits_LF[number].to(device),
            reads=torch.zeros(4, dtype=torch.int64, device=device),
        )

    def to(self, device: torch.device) -> "Thresholds":
        return self._each(lambda values: values.to(device))

    def to_host(self) -> "Thresholds":
        """On the host; from CUDA they arrive later, see ``pending``."""
        return self._each(lambda values: values.to("cpu", non_blocking=True))

    def clone(self) -> "Thresholds":
        return self._each(torch.clone)

    def name(self) -> str:
        """Equal for equal thresholds; on the host."""
        digest = hashlib.sha256()
        for values in self._present():
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _present(self) -> list[Tensor]:
        return [values for values in (getattr(self, field.name) for field in fields(self)[1:]) if values is not None]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Thresholds":
        gate_limits_LF = None if self.gate_limits_LF is None else change(self.gate_limits_LF)
        return Thresholds(
            self.planned,
            change(self.means_LD),
            change(self.input_limits_LD),
            change(self.offsets_LF),
            gate_limits_LF,
            change(self.resting_LF),
            change(self.output_limits_LF),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LayerThresholds:
    """The thresholds of one layer: ``(D,)`` and ``(F,)``. Names mean what they mean in ``Thresholds``.

    The three functions take any number of tokens, ``(..., D)`` or ``(..., F)``. They mask, and skip nothing: for
    steps in plain torch. They compute in fp32, and return the dtype that they were given.

    reads: counted so far: inputs that stage 1 read, neurons that stages 2 and 3 read, and tokens; int64 ``(4,)``.
    """

    means: Tensor
    input_limits: Tensor
    offsets: Tensor
    gate_limits: Tensor | None
    resting: Tensor
    output_limits: Tensor
    reads: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        """Stage 1: how far the inputs that are read are from their means; 0 for all others."""
        far = x.float() - self.means
        read = far.abs() > self.input_limits
        self.reads[0] += read.sum()
        self.reads[3] += x.numel() // x.shape[-1]
        return torch.where(read, far, 0).to(x.dtype)

    def gate(self, product: Tensor) -> Tensor:
        """Before its activation function, from what W_g times ``inputs`` is."""
        return (product.float() + self.offsets).to(product.dtype)

    def outputs(self, given: Tensor, z: Tensor) -> Tensor:
        """Stages 2 and 3: how far the z of neurons that give something are from their resting values; else 0.

        Args:
            given: what the activation function gives; in a block without a gate that is z.
        """
        far = z.float() - self.resting
        gives = far.abs() > self.output_limits
        if self.gate_limits is not None:
            acts = given.float().abs() > self.gate_limits
            self.reads[1] += acts.sum()
            gives &= acts
        self.reads[2] += gives.sum()
        return torch.where(gives, far, 0).to(z.dtype)


def shares_read(layers: Sequence[LayerThresholds]) -> Shares | None:
    """What tokens have read on average, over all layers; None if there was none."""
    *reads, tokens = (sum(column) for column in zip(*(layer.reads.tolist() for layer in layers), strict=True))
    first, count = layers[0], len(layers)
    inputs, neurons, gated = count * len(first.means), count * len(first.resting), first.gate_limits is not None
    return Shares.counted(reads, tokens // count, inputs, neurons, gated=gated)
