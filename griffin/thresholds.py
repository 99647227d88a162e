"""Thresholds: what a token reads of each feed-forward (FF) block. Method griffin+ fixes them on a prompt.

A block computes g = act(W_g x), z = g (W_u x), y = W_d z; all biases are implied. A token reads it in three stages:

1. W_g: the inputs i whose x_i is far enough from its mean m_i. All other inputs count with their mean:
   g = act(W_g m + sum over the far i of W_g[:, i] (x_i - m_i)).
2. W_u: the neurons j whose |g_j| is large enough.
3. W_d: among these, the neurons whose z_j is far enough from its resting value h_j. All others count with h_j:
   y = W_d h + sum over the far j of W_d[:, j] (z_j - h_j).

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
    """The fraction of the weights that a token reads, for each kind of FF matrix.

    gate: W_g; in blocks without a gate, W_1.
    up: W_u; without meaning in blocks without a gate.
    down: W_d.
    """

    gate: float
    up: float
    down: float

    @classmethod
    def counted(cls, reads: Sequence[int], tokens: int, inputs: int, neurons: int, *, gated: bool) -> "Shares | None":
        """The mean shares that tokens have read, from counts; None if there was no token.

        Args:
            reads: inputs read in stage 1, and neurons read in stages 2 and 3, over all layers.
            inputs, neurons: numbers over all layers.
        """
        if not tokens:
            return None
        read, acting, giving = reads
        gate = read / (tokens * inputs)
        return cls(gate, acting / (tokens * neurons) if gated else gate, giving / (tokens * neurons))


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """The thresholds of one prompt. All tensors are fp32 and on one device.

    planned: mean shares that the thresholds let a token read, on the tokens on which they were found.
    means_LD: m.
    input_limits_LD: an input is read if |x - m| exceeds this.
    offsets_LF: W_g m plus the gate's bias.
    gate_limits_LF: a neuron passes stage 2 if |g| exceeds this; None without a gate.
    resting_LF: h.
    output_limits_LF: a neuron passes stage 3 if |z - h| exceeds this as well.
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
        """The planned shares of the FF weights that a token reads, of ``width`` = F neurons in each layer."""
        return self.planned

    def require(self, layers: int, width: int, neurons: int) -> None:
        """
        Raises:
            ValueError: the thresholds belong to a model of other sizes.
        """
        by_input = (self.means_LD, self.input_limits_LD)
        by_neuron = (self.offsets_LF, self.resting_LF, self.output_limits_LF, self.gate_limits_LF)
        for values, size in (*((v, width) for v in by_input), *((v, neurons) for v in by_neuron)):
            if values is not None and values.shape != (layers, size):
                raise ValueError(f"thresholds must be ({layers}, {size}), but are {tuple(values.shape)}")

    def layer(self, number: int, device: torch.device) -> "LayerThresholds":
        """The thresholds of one layer, on the device of its weights."""
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
        """A copy on the host; from CUDA it arrives later, see ``pending``."""
        return self._each(lambda values: values.to("cpu", non_blocking=True))

    def clone(self) -> "Thresholds":
        return self._each(torch.clone)

    def name(self) -> str:
        """A name that is equal for equal thresholds; call it on the host."""
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
    """The thresholds of one layer: ``(D,)`` and ``(F,)``. Names have the meaning of ``Thresholds``.

    The three functions take any number of tokens, ``(..., D)`` or ``(..., F)``. They mask and skip nothing, for steps
    in plain torch. They compute in fp32 and return the dtype of their input.

    reads: counts so far: inputs read in stage 1, neurons read in stages 2 and 3, and tokens; int64 ``(4,)``.
    """

    means: Tensor
    input_limits: Tensor
    offsets: Tensor
    gate_limits: Tensor | None
    resting: Tensor
    output_limits: Tensor
    reads: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        """Stage 1: distance of the inputs that are read from their means; 0 for all others."""
        far = x.float() - self.means
        read = far.abs() > self.input_limits
        self.reads[0] += read.sum()
        self.reads[3] += x.numel() // x.shape[-1]
        return torch.where(read, far, 0).to(x.dtype)

    def gate(self, product: Tensor) -> Tensor:
        """The gate before its activation function, given W_g times ``inputs``."""
        return (product.float() + self.offsets).to(product.dtype)

    def outputs(self, given: Tensor, z: Tensor) -> Tensor:
        """Stages 2 and 3: distance of the z of passing neurons from their resting values; 0 for all others.

        Args:
            given: the activation function's value; in a block without a gate that is z.
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
    """Mean shares that tokens have read, over all layers; None if there was no token."""
    *reads, tokens = (sum(column) for column in zip(*(layer.reads.tolist() for layer in layers), strict=True))
    first, count = layers[0], len(layers)
    inputs, neurons, gated = count * len(first.means), count * len(first.resting), first.gate_limits is not None
    return Shares.counted(reads, tokens // count, inputs, neurons, gated=gated)
