"""A chunk of a prompt that was read: its keys, values and sums of the statistic."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from griffin.method.statistic import Sums

# Names of the statistic's sums, in the order of ``Sums``.
SUMS = ("energy", "inputs", "gates", "squares")


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The result of reading one chunk of a prompt after the chunks before it.

    keys_values: ``(layers, 2, G, chunk, S)``.
    sums: the statistic up to the chunk's end.
    """

    keys_values: Tensor
    sums: Sums

    @property
    def bytes(self) -> int:
        return self.keys_values.nbytes + self.sums.bytes

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name. The number of counted tokens is not among them."""
        return {"keys_values": self.keys_values, **dict(zip(SUMS, self.sums.values, strict=True))}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], tokens: int) -> "Chunk":
        """
        Args:
            tensors: see ``tensors``.
            tokens: the number of tokens that were counted up to the chunk's end.

        Raises:
            KeyError: a tensor is missing.
        """
        energy, inputs, gates, squares = (tensors[name] for name in SUMS)
        return cls(tensors["keys_values"], Sums(energy, inputs, gates, squares, tokens))
