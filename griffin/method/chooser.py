"""Chooser: which neurons stay, by a request's choices and by what was counted of its prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.method.auto import LossTable, Outlook
from griffin.method.methods import METHODS
from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import FlockingStatistic
from griffin.model.families import FeedForward
from griffin.neurons import Kept, kept_count
from griffin.request import Pruning


class Chooser:
    """Chooses neurons of one model by any method. Knows what is the same for all methods: reuse and sparsity auto."""

    def __init__(
        self,
        blocks: Sequence[FeedForward],
        device: torch.device,
        calibration: Calibration | None = None,
        losses: Sequence[LossTable] = (),
    ) -> None:
        """
        Args:
            blocks: the model's FF blocks, whose weights never move.
            device: where statistics are, and where kept neurons are needed.
            calibration: for the methods that need one.
            losses: for sparsity auto, a table for each method that was measured.
        """
        self._device, self._layers, self._width = device, len(blocks), blocks[0].width
        self._losses = {table.method: table for table in losses}
        calibration = calibration and calibration.to(device)
        self._methods = {
            name: row(blocks, device, calibration) for name, row in METHODS.items() if row.allows(calibration)
        }

    def latest_tokens(self, pruning: Pruning) -> int:
        """How many of a prompt's last tokens' activations are needed, besides the sums over all tokens."""
        if pruning.reuse is not None or not pruning.prunes(self._width):
            return 0
        return METHODS[pruning.method].latest_tokens(pruning)

    @torch.inference_mode()
    def outlook(self, statistic: FlockingStatistic, pruning: Pruning, prompt_tokens: int) -> Outlook:
        """What sparsity auto comes to for this prompt; ``pruning`` asks for it."""
        assert pruning.auto is not None
        table = self._losses[pruning.method]
        return table.outlook(pruning.auto, prompt_tokens, self.removed(statistic, pruning, table.sparsities))

    @torch.inference_mode()
    def removed(self, statistic: FlockingStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """What each of these sparsities would lose on this prompt, in the method's own unit, see ``Method.worth``."""
        worth_RN = self._methods[pruning.method].worth(statistic, pruning)
        lost_RN = worth_RN.sort(dim=-1).values.cumsum(dim=-1)
        rows, neurons = lost_RN.shape
        found = []
        for sparsity in sparsities:
            kept = kept_count(self._width, sparsity) * self._layers // rows
            found.append(lost_RN[:, neurons - kept - 1].sum() if kept < neurons else lost_RN.new_zeros(()))
        values: list[float] = torch.stack(found).tolist()
        return values

    @torch.inference_mode()
    def neurons(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Sequence[Tensor]:
        """The neurons that stay in each layer, sorted: int64 ``(k,)``. ``choose`` costs more."""
        return self._methods[pruning.method].neurons(statistic, pruning, skips=skips)

    @torch.inference_mode()
    def choose(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool = True) -> Kept:
        """The neurons that stay, when they act, and what replaces the others. ``pruning`` must remove some.

        Args:
            skips: whether the step that will run does not read neurons that rest. If it reads them anyway, all kept
                neurons act on every token.
        """
        if pruning.reuse is not None:
            return pruning.reuse.kept.to(self._device)
        return self._methods[pruning.method].choose(statistic, pruning, skips=skips)
