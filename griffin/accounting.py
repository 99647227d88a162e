"""How many parameters a token uses: all of them, or those left when neurons are removed."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from griffin.families import feed_forwards, linear_weight


@dataclass(frozen=True, slots=True)
class Accounting:
    """Parameter counts of one model; tied weights count once. Works on the meta device.

    total: all parameters.
    layers, width: L and F.
    per_neuron: parameters that one neuron of one layer owns: its row of each expanding projection,
        their biases, and its column of the contracting one.
    """

    total: int
    layers: int
    width: int
    per_neuron: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Accounting":
        blocks = feed_forwards(model)
        expanding = [p for projection in blocks[0].expand for p in projection.parameters()]
        owned = [*expanding, linear_weight(blocks[0].contract)]
        width = blocks[0].width
        return cls(
            total=parameter_count(model),
            layers=len(blocks),
            width=width,
            per_neuron=sum(parameter.numel() for parameter in owned) // width,
        )

    @property
    def neurons(self) -> int:
        """FF neurons of all layers."""
        return self.layers * self.width

    @property
    def feed_forward(self) -> int:
        """Parameters that belong to some neuron."""
        return self.neurons * self.per_neuron

    def active(self, kept_per_layer: int) -> int:
        """Parameters that take part in a token when each layer keeps that many neurons."""
        return self.total - self.layers * (self.width - kept_per_layer) * self.per_neuron


def parameter_count(model: nn.Module) -> int:
    # parameters() yields a tied tensor once.
    return sum(parameter.numel() for parameter in model.parameters())
