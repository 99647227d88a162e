"""What a neuron is worth: to one prompt (flocking), or by its weights alone (magnitude).

Shapes: L layers, T tokens, F feed-forward neurons.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from griffin.families import FeedForward, linear_weight

StatisticName = Literal["flocking", "magnitude"]
STATISTICS: tuple[StatisticName, ...] = get_args(StatisticName)


def relative_energy(z_TF: Tensor) -> Tensor:
    """Sum over tokens of the squared activations, each token scaled to unit length: fp32 ``(F,)``.

    This is s squared of equation 1 in the paper. It adds up over any split of the tokens.
    Tokens whose activations are all zero have no direction and count nothing.
    """
    # Of a copy in fp32 in place: to touch new memory is most of the cost.
    squares_TF = z_TF.square() if z_TF.dtype == torch.float32 else z_TF.float().square_()
    norms_T = squares_TF.sum(dim=1)
    # Below the smallest normal number the reciprocal is infinite.
    weights_T = torch.where(norms_T > torch.finfo(torch.float32).tiny, norms_T.reciprocal(), 0.0)
    return weights_T @ squares_TF


class FlockingStatistic:
    """The running statistic of one prompt, collected from the inputs of the contracting projections."""

    def __init__(self, blocks: Sequence[FeedForward]) -> None:
        device = linear_weight(blocks[0].contract).device
        self._contracts = [block.contract for block in blocks]
        self._energy_LF = torch.zeros(len(blocks), blocks[0].width, dtype=torch.float32, device=device)

    def reset(self) -> None:
        self._energy_LF.zero_()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While open, every token that passes through the model's FF blocks is counted."""
        hooks = [
            contract.register_forward_pre_hook(self._hook(self._energy_LF[layer]))
            for layer, contract in enumerate(self._contracts)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def energy(self) -> Tensor:
        """A copy of the running sum, s squared: fp32 ``(L, F)``."""
        return self._energy_LF.clone()

    @torch.inference_mode()
    def resume(self, energy_LF: Tensor) -> None:
        """Go on from such a copy."""
        self._energy_LF.copy_(energy_LF)

    def value(self) -> Tensor:
        """s of equation 1: fp32 ``(L, F)``."""
        return self._energy_LF.sqrt()

    @staticmethod
    def _hook(row_F: Tensor) -> Any:
        def accumulate(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Some families flatten to (T, F) before the projection, others keep (1, T, F).
            energy_F = relative_energy(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))
            # Across devices, each layer counts on its own.
            row_F.add_(energy_F.to(row_F.device))

        return accumulate


def magnitude(blocks: Sequence[FeedForward]) -> Tensor:
    """The paper's static baseline (5.1): row norms of W_1, times those of W_g where gated. fp32 ``(L, F)``."""
    rows = [_row_norms(block) for block in blocks]
    return torch.stack([row_F.to(rows[0].device) for row_F in rows])


def _row_norms(block: FeedForward) -> Tensor:
    product_F = torch.ones(1)
    for projection in block.expand:
        norms = torch.linalg.vector_norm(linear_weight(projection), dim=1, dtype=torch.float32)
        product_F = product_F.to(norms.device) * norms.view(block.names.fused, block.width).prod(dim=0)
    return product_F
