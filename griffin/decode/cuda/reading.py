"""Reading: the neurons that a recorded step or pass reads, at fixed addresses.

Shapes: L layers, D model width, F feed-forward neurons.
"""

import torch

from griffin.model.weights import Weights
from griffin.neurons import Kept
from griffin.thresholds import Thresholds


class Reading:
    """The choice for all feed-forward blocks. At first all neurons are read.

    index_LF, kept_L: int32, the kept neurons: the first ``kept_L[layer]`` of each row.
    contract_bias_LD: fp32, the contracting projections' own biases. If tokens pick, plus the output of resting neurons.
    picks: int32 ``(1,)``, not 0 if tokens pick by thresholds.
    """

    def __init__(self, weights: Weights) -> None:
        layers, device = len(weights.layers), weights.device
        neurons = weights.layers[0].feed_forward.contract.row_count
        self._layers = weights.layers
        self._everything_F = torch.arange(neurons, dtype=torch.int32, device=device)
        self._own_bias_LD = weights.contract_bias()
        self.index_LF = self._everything_F.repeat(layers, 1)
        self.kept_L = torch.full((layers,), neurons, dtype=torch.int32, device=device)
        self.contract_bias_LD = self._own_bias_LD.clone()
        self.picks = torch.zeros(1, dtype=torch.int32, device=device)

    def everything(self) -> None:
        """Read all neurons."""
        self.index_LF.copy_(self._everything_F)
        self.kept_L.fill_(len(self._everything_F))
        self.contract_bias_LD.copy_(self._own_bias_LD)
        self.picks.zero_()

    def keep(self, kept: Kept) -> None:
        """Read these neurons."""
        self.everything()
        for index_F, kept_k in zip(self.index_LF, kept.layers, strict=True):
            index_F[: len(kept_k)] = kept_k
        self.kept_L.copy_(torch.tensor(kept.counts, dtype=torch.int32))

    def pick(self, thresholds: Thresholds) -> None:
        """Let tokens pick by these thresholds; see ``PickingBuffers.load`` too."""
        self.everything()
        for layer, bias_D, resting_F in zip(self._layers, self.contract_bias_LD, thresholds.resting_LF, strict=True):
            bias_D.copy_(layer.feed_forward.at_rest(resting_F.to(bias_D.device)))
        self.picks.fill_(1)

    def follow(self, other: "Reading") -> None:
        """Make the same choice as another ``Reading``. Thresholds are shared already."""
        self.index_LF.copy_(other.index_LF)
        self.kept_L.copy_(other.kept_L)
        self.contract_bias_LD.copy_(other.contract_bias_LD)
        self.picks.copy_(other.picks)
