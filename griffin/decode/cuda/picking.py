"""PickingBuffers: where a recorded step finds a request's thresholds, and counts what tokens read by them.

Shapes: L layers, D model width, F feed-forward neurons.
"""

import torch
from torch import Tensor

from griffin.decode.cuda import kernels
from griffin.model.weights import Weights
from griffin.thresholds import Shares, Thresholds


class PickingBuffers:
    """At fixed addresses, for all layers.

    picks: int32 ``(1,)``, not 0 where tokens pick what they read.
    """

    def __init__(self, weights: Weights) -> None:
        """Takes the gates by input, because a recorded step must know where they are.

        They take as much memory as the gates: of gated blocks a third of the feed-forward weights again, of plain
        blocks half. All engines of a model share them.

        Raises:
            torch.OutOfMemoryError
        """
        gates = [gate.dense() for gate in weights.gates_by_input()]
        layers, (width, neurons), device = len(gates), gates[0].shape, weights.device
        self._gated = weights.layers[0].feed_forward.gated

        def buffer(*shape: int) -> Tensor:
            return torch.zeros(layers, *shape, dtype=torch.float32, device=device)

        self.picks = torch.zeros(1, dtype=torch.int32, device=device)
        self._means_LD, self._input_limits_LD = buffer(width), buffer(width)
        self._offsets_LF, self._resting_LF, self._output_limits_LF = buffer(neurons), buffer(neurons), buffer(neurons)
        self._gate_limits_LF = buffer(neurons) if self._gated else None
        self._in_use = False
        self._reads_L4 = torch.zeros(layers, 4, dtype=torch.int64, device=device)
        partial_PF = buffer(kernels.row_splits(width, neurons), neurons)[0]
        self.layers = [
            kernels.Picking(
                picks=self.picks,
                gate_DF=gate_DF,
                means_D=self._means_LD[number],
                input_limits_D=self._input_limits_LD[number],
                offsets_F=self._offsets_LF[number],
                gate_limits_F=None if self._gate_limits_LF is None else self._gate_limits_LF[number],
                resting_F=self._resting_LF[number],
                output_limits_F=self._output_limits_LF[number],
                partial_PF=partial_PF,
                reads=self._reads_L4[number],
            )
            for number, gate_DF in enumerate(gates)
        ]

    def load(self, thresholds: Thresholds) -> None:
        """Tokens pick by these from now on. The host does not wait if they are on the device.

        Raises:
            ValueError: they are of a model of other sizes.
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
        self.picks.fill_(1)
        self._in_use = True

    def stop(self) -> None:
        """No token picks any more."""
        self._in_use = False
        self.picks.zero_()
        self._reads_L4.zero_()

    def shares(self) -> Shares | None:
        """What tokens have read on average since ``load``, those launched ahead and thrown away among them.

        None before the first token, and where no token picks. It waits for the device.
        """
        if not self._in_use:
            return None
        *reads, tokens = self._reads_L4.sum(dim=0).tolist()
        layers = len(self.layers)
        inputs, neurons = self._means_LD.numel(), self._resting_LF.numel()
        return Shares.counted(reads, tokens // layers, inputs, neurons, gated=self._gated)
