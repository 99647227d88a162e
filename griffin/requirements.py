"""What a model must have been prepared with for a way of pruning. It never changes while an engine lives."""

from collections.abc import Sequence
from dataclasses import dataclass

from griffin.auto import LossTable
from griffin.calibration import Calibration
from griffin.errors import InvalidRequest
from griffin.pruning import Pruning


@dataclass(frozen=True, slots=True)
class Requirements:
    """Whether a model was calibrated, and the methods it was measured with."""

    calibrated: bool
    measured: tuple[str, ...]

    @classmethod
    def of(cls, calibration: Calibration | None, losses: Sequence[LossTable]) -> "Requirements":
        return cls(calibration is not None, tuple(table.method for table in losses))

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned so.
        """
        if pruning.method == "griffin+" and not self.calibrated:
            raise InvalidRequest(
                "griffin.method: 'griffin+' needs this model to be calibrated once: "
                "python -m griffin.experiments calibrate --model MODEL",
                "griffin.method",
            )
        if pruning.auto is not None and pruning.method not in self.measured:
            method = pruning.method
            other = "".join(f" (it was with {known}, but not with {method})" for known in self.measured)
            raise InvalidRequest(
                f"sparsity: 'auto' needs this model to be measured once{other}: "
                f"python -m griffin.experiments tune --method {method} --model MODEL --prompts FILE",
                "sparsity",
            )
