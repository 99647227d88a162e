"""FF blocks in which each token picks its inputs and neurons, in the form that the compiled step reads.

Shapes: L layers, D model width, F feed-forward neurons.
"""

import ctypes

import torch
from torch import Tensor

from griffin.decode.c.description import described
from griffin.decode.c.library import CFeedForward, CThresholds
from griffin.model.matrix.int8 import Int8Columns
from griffin.model.weights import Weights
from griffin.thresholds import Thresholds


class PickingBlocks:
    """All neurons of a model, and the thresholds of the current request."""

    def __init__(self, weights: Weights, whole: "ctypes.Array[CFeedForward]") -> None:
        """
        Args:
            whole: the blocks with all neurons.

        Raises:
            MemoryError: there is no room for the gates by input.
        """
        self._gates, self._whole = weights.gates_by_input(), whole
        self._own_bias_LD = weights.contract_bias()
        self._bias_LD = self._own_bias_LD.clone()
        self._ones_D = torch.ones(weights.width)
        self._held: list[Tensor] = []

    def describe(self, thresholds: Thresholds) -> "ctypes.Array[CFeedForward]":
        """The blocks with these thresholds. ``griffin_rest`` then adds their output at rest to their biases."""
        self._held = []
        self._bias_LD.copy_(self._own_bias_LD)
        blocks = (CFeedForward * len(self._gates))()
        for number, gate in enumerate(self._gates):
            blocks[number] = self._whole[number]
            blocks[number].contract.bias = self._bias_LD[number].data_ptr()
            by = CThresholds(
                gate=described(gate),
                means=self._address(thresholds.means_LD[number]),
                input_limits=self._address(thresholds.input_limits_LD[number]),
                offsets=self._address(thresholds.offsets_LF[number]),
                resting=self._address(thresholds.resting_LF[number]),
                output_limits=self._address(thresholds.output_limits_LF[number]),
            )
            if isinstance(gate, Int8Columns):
                by.gate.scales, by.factors = self._ones_D.data_ptr(), gate.scales.data_ptr()
            if thresholds.gate_limits_LF is not None:
                by.gate_limits = self._address(thresholds.gate_limits_LF[number])
            blocks[number].thresholds = by
        return blocks

    def _address(self, values: Tensor) -> int:
        values = values.float().contiguous()
        self._held.append(values)
        return values.data_ptr()
