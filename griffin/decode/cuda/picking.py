"""PickingBuffers: a request's thresholds for recorded steps and passes, and counts of the inputs and neurons read.

Shapes: L layers, M tokens of the largest pass, D model width, F feed-forward neurons.
"""

import torch
from torch import Tensor

from griffin.decode.cuda import kernels
from griffin.decode.cuda.reading import Reading
from griffin.model.weights import Weights
from griffin.thresholds import Shares, Thresholds


class PickingBuffers:
    """Buffers for all layers, at fixed addresses.

    step, several: for the kernels of a step and of a pass, a row for each layer.
    """

    def __init__(self, weights: Weights, step: Reading, several: Reading, count: Tensor, tokens: int) -> None:
        """Make the gates by input, because a recorded step must know their addresses.

        They take as much memory as the gates: a third of the feed-forward weights of gated blocks, half of those of
        plain blocks. All engines of a model share them.

        Args:
            step, several: tell whether tokens pick, in a step and in a pass.
            count: int32 ``(1,)``: the number of first tokens of a pass that are counted.
            tokens: M.

        Raises:
            torch.OutOfMemoryError
        """
        gates = [gate.dense() for gate in weights.gates_by_input()]
        layers, (width, neurons), device = len(gates), gates[0].shape, weights.device
        self._gated = weights.layers[0].feed_forward.gated

        def buffer(*shape: int) -> Tensor:
            return torch.zeros(layers, *shape, dtype=torch.float32, device=device)

        self._means_LD, self._input_limits_LD = buffer(width), buffer(width)
        self._offsets_LF, self._resting_LF, self._output_limits_LF = buffer(neurons), buffer(neurons), buffer(neurons)
        self._gate_limits_LF = buffer(neurons) if self._gated else None
        self._in_use = False
        self._reads_L4 = torch.zeros(layers, 4, dtype=torch.int64, device=device)
        partial_MPF = torch.zeros(tokens, kernels.row_splits(width, neurons), neurons, device=device)

        def layer(number: int, picks: Tensor, count: Tensor | None) -> kernels.Picking:
            return kernels.Picking(
                picks=picks,
                gate_DF=gates[number],
                means_D=self._means_LD[number],
                input_limits_D=self._input_limits_LD[number],
                offsets_F=self._offsets_LF[number],
                gate_limits_F=None if self._gate_limits_LF is None else self._gate_limits_LF[number],
                resting_F=self._resting_LF[number],
                output_limits_F=self._output_limits_LF[number],
                partial_MPF=partial_MPF,
                reads=self._reads_L4[number],
                count=count,
            )

        self.step = [layer(number, step.picks, None) for number in range(layers)]
        self.several = [layer(number, several.picks, count) for number in range(layers)]

    def load(self, thresholds: Thresholds) -> None:
        """Tokens that pick use these thresholds from here on. The host does not wait if they are on the device.

        Raises:
            ValueError: they belong to a model of other sizes.
        """
        (layers, width), neurons = self._means_LD.shape, self._offsets_LF.shape[1]
        thresholds.require(layers, width, neurons)
        self._means_LD.copy_(thresholds.means_LD)
        self._input_limits_LD.copy_(thresholds.input_limits_LD)
        self._offsets_LF.copy_(thresholds.offsets_LF)
        self._resting_LF.copy_(thresholds.resting_LF)
        self._output_limits_LF.copy_(thresholds.output_limits_LF)
        if self._gate_limits_LF is not None:
            assert thresholds.gate_limits_LF is not None
            self._gate_limits_LF.copy_(thresholds.gate_limits_LF)
        self._reads_L4.zero_()
        self._in_use = True

    def stop(self) -> None:
        """Tokens do not pick from here on."""
        self._in_use = False
        self._reads_L4.zero_()

    def shares(self) -> Shares | None:
        """Mean shares that tokens have read since ``load``. Tokens that were launched ahead and dropped also count.

        None before the first token, and if tokens do not pick. It waits for the device.
        """
        if not self._in_use:
            return None
        *reads, tokens = self._reads_L4.sum(dim=0).tolist()
        layers = len(self._means_LD)
        inputs, neurons = self._means_LD.numel(), self._resting_LF.numel()
        return Shares.counted(reads, tokens // layers, inputs, neurons, gated=self._gated)
