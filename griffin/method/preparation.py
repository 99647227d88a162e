"""What was measured once of a model and is kept in the user's cache: its calibration, and what sparsities cost it.

Some methods need the calibration, sparsity auto needs the losses. Neither changes while an engine lives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs
import torch
from transformers import PreTrainedModel

from griffin.errors import InvalidRequest
from griffin.method.auto import LossTable
from griffin.method.methods import METHODS
from griffin.method.plus.calibration import Calibration
from griffin.model.host import HostWeights
from griffin.model.identity import identity
from griffin.request import METHOD_NAMES, MethodName, Pruning


@dataclass(frozen=True, slots=True)
class Preparation:
    """
    calibration: for the methods that need one; None if the model was not calibrated.
    losses: for sparsity auto, a table for each method that was measured.
    """

    calibration: Calibration | None = None
    losses: Sequence[LossTable] = ()

    @classmethod
    def read(cls, model: PreTrainedModel, cache_dir: Path | None = None) -> "Preparation":
        """What the cache holds for a model.

        Raises:
            LoadError: a file there is damaged.
        """
        calibration = None
        if HostWeights.of(model) is None:
            path = calibration_path(model, cache_dir)
            calibration = Calibration.read(path, path.stem)
        found = [
            LossTable.read(losses_path(model, method, cache_dir), measured_as(model, method, calibration))
            for method in METHOD_NAMES
        ]
        return cls(calibration, [table for table in found if table is not None])

    def to(self, device: torch.device) -> "Preparation":
        return replace(self, calibration=self.calibration and self.calibration.to(device))

    @property
    def measured(self) -> list[str]:
        """The methods that sparsity auto can use."""
        return [table.method for table in self.losses]

    def allows(self, method: MethodName) -> bool:
        """Whether neurons can be chosen by this method."""
        return METHODS[method].allows(self.calibration)

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned so.
        """
        METHODS[pruning.method].require(self.calibration)
        if pruning.auto is not None and pruning.method not in self.measured:
            method = pruning.method
            other = "".join(f" (it was with {known}, but not with {method})" for known in self.measured)
            raise InvalidRequest(
                f"sparsity: 'auto' needs this model to be measured once{other}: "
                f"python -m griffin tune --method {method} --model MODEL --prompts FILE",
                "sparsity",
            )


def calibration_path(model: PreTrainedModel, cache_dir: Path | None = None) -> Path:
    """Where a model's calibration is kept."""
    return _folder(cache_dir, "calibrations") / f"{identity(model)}.safetensors"


def losses_path(model: PreTrainedModel, method: MethodName, cache_dir: Path | None = None) -> Path:
    """Where the table of a model's losses by a method is kept."""
    return _folder(cache_dir, "losses") / f"{identity(model)}-{method}.json"


def measured_as(model: PreTrainedModel, method: MethodName, calibration: Calibration | None) -> str:
    """A name for everything that losses depend on, except the prompts."""
    name = identity(model)
    return f"{name} {calibration.name()}" if METHODS[method].needs_calibration and calibration else name


def _folder(cache_dir: Path | None, name: str) -> Path:
    return (cache_dir or platformdirs.user_cache_path("griffin")) / name
