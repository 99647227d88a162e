"""Calibration: what a model's neurons do on general text, measured once and kept in the user's cache.

It says how much the loss depends on each neuron, and what the neuron's activation usually is. Method griffin+ combines
that with what a prompt shows.

Shapes: L layers, F feed-forward neurons, P directions.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from griffin.errors import LoadError
from griffin.method.statistic import Moments

# Raised when older files would be read wrongly.
EDITION = "4"
TABLES = ("sensitivity_LF", "sum_LF", "square_LF", "unexplained_LF", "reach_LF")
NAMES = (*TABLES, "weight_L", "directions_LPF")


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Means over tokens of general text, fp32. ||z|| is the length of a layer's activations.

    sensitivity_LF: the squared derivative of the loss by a neuron's activation, times ||z||. This is the diagonal of
        Fisher's information, with labels drawn from the model itself. The loss depends more on small activations.
    sum_LF, square_LF: the activation and its square, each divided by ||z||.
    unexplained_LF: the part of each neuron's variance that the directions do not explain.
    reach_LF: the root mean square of the neuron's up projection, which multiplies its gate; 1 where there is no gate.
    weight_L: 1 / ||z||.
    directions_LPF: the principal directions of (z - mean) / sqrt||z||, half precision. The length of each is the
        standard deviation along it.
    """

    sensitivity_LF: Tensor
    sum_LF: Tensor
    square_LF: Tensor
    unexplained_LF: Tensor
    reach_LF: Tensor
    weight_L: Tensor
    directions_LPF: Tensor

    def to(self, device: torch.device) -> "Calibration":
        return Calibration(*(getattr(self, name).to(device) for name in NAMES))

    def name(self) -> str:
        """A short name, equal for equal calibrations."""
        numbers = torch.cat([getattr(self, name).flatten().half() for name in NAMES])
        return hashlib.sha256(numbers.cpu().numpy().tobytes()).hexdigest()[:16]

    def moments(self, tokens: int) -> Moments:
        """The moments of so many tokens of general text."""
        return Moments(self.sum_LF * tokens, self.square_LF * tokens, self.weight_L * tokens, tokens)

    def packed(self, model: str) -> bytes:
        """The bytes of a file in half precision, scaled by layer, for the model of this ``identity``."""
        tensors = {"weight_L": self.weight_L.cpu(), "directions_LPF": self.directions_LPF.cpu()}
        for name in TABLES:
            values_LF = getattr(self, name).cpu()
            scale_L1 = values_LF.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            # As roots, because half precision would lose the smallest squares.
            tensors[name] = (values_LF / scale_L1).abs().sqrt().mul(values_LF.sign()).half()
            tensors[f"{name}_scale"] = scale_L1
        return save(tensors, {"model": model, "edition": EDITION})

    @classmethod
    def read(cls, path: Path, model: str) -> "Calibration | None":
        """The calibration in a file; None if there is no file, or it is another model's.

        Raises:
            LoadError: the file is damaged.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                if (facts.get("model"), facts.get("edition")) != (model, EDITION):
                    return None
                tables = {name: _unpacked(file, name) for name in TABLES}
                # Copies, because the reader gives views of the file, which may change.
                others = {name: file.get_tensor(name).clone() for name in NAMES if name not in TABLES}
                return cls(**tables, **others)
        except (OSError, SafetensorError, ValueError) as error:
            raise LoadError(f"'{path}' is damaged; delete it and calibrate again ({error})") from error


def _unpacked(file: Any, name: str) -> Tensor:
    roots_LF: Tensor = file.get_tensor(name).float()
    scaled_LF: Tensor = roots_LF.square() * roots_LF.sign() * file.get_tensor(f"{name}_scale")
    return scaled_LF
