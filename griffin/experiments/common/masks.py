"""Masks: the neurons of a feed-forward (FF) block that each row of a batch reads, in the model's own forward pass.

All neurons are computed. Then the values of those that a token does not read are replaced.

Shapes: B rows of a batch, T tokens, D model width, F feed-forward neurons.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from griffin.model.families import FeedForward
from griffin.neurons import Chosen, Kept
from griffin.thresholds import LayerThresholds

# The neurons that one row reads: those that are kept ``(F,)``, those that each token picks, or all (None).
Row = Tensor | LayerThresholds | None


class BlockMask:
    """One layer's FF block, and the neurons that each row of a batch reads.

    rows: one for each row of the batch.
    """

    def __init__(self, block: FeedForward, number: int, sets: Sequence[Chosen | None]) -> None:
        """
        Args:
            number: the layer's number.
            sets: the choice for each row.
        """
        self.rows = [_row(block, number, chosen) for chosen in sets]
        self._block, self._width, self._gate = block, block.width, block.parts_FD[0]
        # The latest inputs of the gate's activation function, ``(B, T, F)``.
        self._gates: Tensor | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Add the hooks that apply the mask. It applies until they are removed."""
        handles = [self._block.contract.register_forward_pre_hook(self._before_contracting)]
        if any(isinstance(row, LayerThresholds) for row in self.rows):
            handles.append(self._block.expand[0].register_forward_hook(self._after_expanding))
        return handles

    def _after_expanding(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Some families flatten to (B T, D) before the projection.
        x_BTD = inputs[0].reshape(len(self.rows), -1, inputs[0].shape[-1])
        # Where gate and up are stacked, the gate comes first.
        expanded = output.reshape(*x_BTD.shape[:2], -1).clone()
        for row, x_TD, own in zip(self.rows, x_BTD, expanded, strict=True):
            if isinstance(row, LayerThresholds):
                own[:, : self._width] = row.gate(self._gate.product(row.inputs(x_TD)))
        self._gates = expanded[..., : self._width]
        return expanded.reshape(output.shape)

    def _before_contracting(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z_BTF = inputs[0].reshape(len(self.rows), -1, self._width)
        gates_BTF, self._gates = z_BTF if self._gates is None else self._gates, None
        masked = [self._masked(*each) for each in zip(self.rows, gates_BTF, z_BTF, strict=True)]
        return (torch.stack(masked).reshape(inputs[0].shape), *inputs[1:])

    def _masked(self, row: Row, gates_TF: Tensor, z_TF: Tensor) -> Tensor:
        if row is None:
            return z_TF
        if isinstance(row, Tensor):
            return torch.where(row, z_TF, 0)
        given_TF = z_TF if self._block.activation is None else self._block.activation(gates_TF)
        return (row.outputs(given_TF, z_TF).float() + row.resting).to(z_TF.dtype)


def _row(block: FeedForward, number: int, chosen: Chosen | None) -> Row:
    device = block.down.device
    if chosen is None:
        return None
    if not isinstance(chosen, Kept):
        return chosen.layer(number, device)
    stays_F = torch.zeros(block.width, dtype=torch.bool, device=device)
    return stays_F.index_fill_(0, chosen.layers[number].to(device, torch.int64), True)
