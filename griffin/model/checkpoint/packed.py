"""One projection of a GPTQ or AWQ checkpoint: codes of 4 bits, eight in a word, that represent exact numbers.

A number is scale (code - zero). Groups of inputs, usually 128, share scales and zeros. With act-order the inputs of a
group are not neighbours.

Shapes: R outputs, C inputs, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from griffin.errors import LoadError
from griffin.model.checkpoint.refusals import PLAIN, QUANTISERS
from griffin.model.matrix.grouping import BLOCK

BITS = 4
IN_WORD = 32 // BITS
# AWQ's order: the position among eight neighbours of each code in a word, from the lowest bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Names of layouts in checkpoints. GPTQ's first layout stores zeros that are one less.
LAYOUTS = {"gptq": {"gptq": 1, "gptq_v2": 0}, "awq": {"gemm": 0}}
# Endings of a projection's tensors; AWQ checkpoints have no g_idx.
TENSORS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint packs its projections.

    method: gptq or awq.
    zero_offset: what is added to the stored zeros.
    """

    method: str
    zero_offset: int

    @classmethod
    def of(cls, config: Mapping[str, Any], source: str) -> "Scheme | None":
        """The scheme that a ``config.json`` names; None if it names another method, or none.

        Raises:
            LoadError: the method is known, but not this variant.
        """
        quantised = config.get("quantization_config")
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        if not isinstance(quantised, Mapping) or method not in LAYOUTS:
            return None
        layout = quantised.get("checkpoint_format") or quantised.get("version") or next(iter(LAYOUTS[method]))
        offset, bits = LAYOUTS[method].get(str(layout).lower()), quantised.get("bits")
        if bits != BITS or offset is None:
            what = f"{bits} bits" if bits != BITS else f"the layout '{layout}'"
            known = f"{BITS} bits in the layout {' or '.join(LAYOUTS[method])}"
            raise LoadError(
                f"'{source}' has weights quantised by {QUANTISERS[method]} with {what}; supported: {known}; {PLAIN}"
            )
        return cls(method, offset)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One projection's numbers.

    codes: uint8 ``(R, C)``.
    scales: as stored, ``(R, G)``.
    zeros: uint8 ``(R, G)``.
    groups: int64 ``(C,)``, the group of each input.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    groups: Tensor

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, int]) -> "Packed":
        """
        Args:
            tensors: by the endings ``TENSORS``; g_idx may be missing.
            shape: that the projection must have, ``(R, C)``.

        Raises:
            ValueError: a tensor is missing, has another type or shape, or values that it cannot have.
        """
        if missing := [name for name in TENSORS[:3] if name not in tensors]:
            raise ValueError(f"has no {missing[0]}")
        rows, columns = shape
        count = len(tensors["scales"])
        along_inputs = scheme.method == "gptq"
        words = (columns // IN_WORD, rows) if along_inputs else (columns, rows // IN_WORD)
        for name, wanted in zip(TENSORS, (words, (count, rows // IN_WORD), (count, rows), (columns,)), strict=True):
            if name in tensors and tuple(tensors[name].shape) != wanted:
                raise ValueError(f"has {name} of {tuple(tensors[name].shape)} but should have {wanted}")
        if {tensors[name].dtype for name in TENSORS[:2]} != {torch.int32}:
            raise ValueError("has codes that are not packed in words of 32 bits")
        order = range(IN_WORD) if along_inputs else AWQ_ORDER
        codes = _unpacked(tensors["qweight"].t(), order) if along_inputs else _unpacked(tensors["qweight"], order).t()
        zeros = _unpacked(tensors["qzeros"], order).t() + scheme.zero_offset
        if not bool(tensors["scales"].isfinite().all()):
            raise ValueError("has scales that are infinite or not a number")
        groups = _groups(tensors.get("g_idx"), columns, count)
        return cls(codes, tensors["scales"].t(), zeros, groups)

    def outputs(self, order_R: Tensor) -> "Packed":
        """With outputs in another order."""
        return Packed(self.codes[order_R], self.scales[order_R], self.zeros[order_R], self.groups)

    def inputs(self, order_C: Tensor) -> "Packed":
        """With inputs in another order."""
        return replace(self, codes=self.codes[:, order_C], groups=self.groups[order_C])

    def plain(self) -> Tensor:
        """The numbers, fp32 ``(R, C)``: exact, since a float16 times five bits has 16 bits at most."""
        steps = self.codes.float() - self.zeros[:, self.groups].float()
        return steps * self.scales.float()[:, self.groups]

    def blocks(self) -> tuple[GGMLQuantizationType, Tensor] | None:
        """The same numbers as blocks of a GGUF type, uint8 ``(R, bytes)``; None if they cannot be written so.

        Where all zeros are 8, codes stay as they are: Q4_0. Otherwise a code less its zero has five bits: Q5_0.
        """
        rows, columns = self.codes.shape
        if columns % BLOCK or not _exact_in_half(self.scales):
            return None
        groups = self.groups.view(-1, BLOCK)
        if not bool((groups == groups[:, :1]).all()):
            return None
        first = groups[:, 0]
        scales = self.scales[:, first].half()[..., None].view(torch.uint8)
        codes = self.codes.reshape(rows, -1, BLOCK)
        if bool((self.zeros == 8).all()):
            return GGMLQuantizationType.Q4_0, torch.cat([scales, _nibbles(codes)], dim=2).view(rows, -1)
        codes = codes + 16 - self.zeros[:, first][..., None]
        fifth = ((codes >> 4).view(rows, -1, 4, 8) << torch.arange(8, dtype=torch.uint8)).sum(dim=3, dtype=torch.uint8)
        return GGMLQuantizationType.Q5_0, torch.cat([scales, fifth, _nibbles(codes & 15)], dim=2).view(rows, -1)


def order_of(groups: Tensor) -> Tensor | None:
    """An order of inputs in which groups follow each other, int64 ``(C,)``; None if they do so already."""
    return None if bool((groups.diff() >= 0).all()) else groups.argsort(stable=True)


def _unpacked(words: Tensor, order: "range | tuple[int, ...]") -> Tensor:
    """Words int32 ``(rows, columns)`` to codes uint8 ``(rows, 8 columns)``."""
    codes = torch.empty(*words.shape, IN_WORD, dtype=torch.uint8)
    for place, which in enumerate(order):
        codes[..., which] = words >> BITS * place & 15
    return codes.view(len(words), -1)


def _groups(stored: Tensor | None, columns: int, count: int) -> Tensor:
    if stored is None:
        return torch.arange(columns) // -(-columns // count)
    if len(stored) and not 0 <= int(stored.min()) <= int(stored.max()) < count:
        raise ValueError(f"has g_idx beyond its {count} groups")
    return stored.long()


def _exact_in_half(scales: Tensor) -> bool:
    return bool(scales.half().float().equal(scales.float()))


def _nibbles(codes: Tensor) -> Tensor:
    """Codes below 16, ``(..., 32)``: the first 16 in low halves of bytes, the second in high ones."""
    return codes[..., :16] | codes[..., 16:] << 4
