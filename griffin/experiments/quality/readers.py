"""Readers of a given text: variants of the model, and smaller quants of it. Each counts the bytes that a token reads.

Shapes: T tokens, V vocabulary.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from griffin.errors import GriffinError
from griffin.experiments.common.study import Study, open_model
from griffin.experiments.common.variants import Variant
from griffin.experiments.speed.beside import weight_bytes

FULL_MODEL, METHOD, QUANT = "full", "method", "quant"


class Reader(Protocol):
    """
    name: its name in tables; several sparsities of one method share it.
    sparsity: of the FF weights; 0 reads all.
    kind: FULL_MODEL, METHOD or QUANT.
    """

    name: str
    sparsity: float
    kind: str

    def question(self) -> Any:
        """Everything besides the study that its answers depend on, for the ledger."""

    def read(self, prompt: Sequence[int], inputs: Sequence[int]) -> Iterator[Tensor]:
        """The logits after each of the tokens that follow a prompt, ``(T, V)`` in all."""

    def bytes_per_token(self) -> int:
        """The bytes of weights that a token of the last text has read, on average."""

    def active_parameters(self) -> int:
        """The parameters that a token of the last text has used, on average."""


class VariantReader:
    """The study's model: full, or with the neurons that it chooses on the prompt."""

    def __init__(self, study: Study, variant: Variant) -> None:
        self.name, self.sparsity = variant.name, variant.sparsity
        self.kind = METHOD if variant.sparsity else FULL_MODEL
        self._study, self._variant = study, variant

    def question(self) -> Any:
        return self._variant.question()

    def read(self, prompt: Sequence[int], inputs: Sequence[int]) -> Iterator[Tensor]:
        teacher = self._study.teacher
        teacher.begin_with(prompt)
        self._chosen = teacher.choose(self._variant.pruning(prompt))
        return teacher.follow(inputs, self._chosen, wanted=len(inputs))

    def bytes_per_token(self) -> int:
        return self._study.accounting.bytes_per_token(self._chosen, self._study.teacher.shares())

    def active_parameters(self) -> int:
        accounting, shares = self._study.accounting, self._study.teacher.shares()
        if shares is not None:
            return accounting.active_at(shares)
        return accounting.total if self._chosen is None else accounting.active_with(self._chosen)


class QuantReader:
    """A GGUF file of the same model with fewer bits a weight, read by its full model.

    Its bytes are those of the file, whatever format its weights have in memory here.
    """

    kind, sparsity = QUANT, 0.0

    def __init__(self, study: Study, file: Path) -> None:
        """
        Args:
            study: of the file.
        """
        self.name, self._study, self._bytes = file.name, study, weight_bytes(file)

    @classmethod
    def open(cls, study: Study, file: Path, arguments: argparse.Namespace) -> "QuantReader":
        """
        Args:
            study: of the model that it is a quant of.

        Raises:
            GriffinError: it is no model that can be loaded, or has another vocabulary.
        """
        own = open_model(str(file), arguments.dtype, arguments.device, None, arguments.out)
        if _vocabulary(own) != _vocabulary(study):
            raise GriffinError(
                f"--quants: '{file.name}' has another vocabulary than the model; give quants of its file"
            )
        return cls(own, file)

    def question(self) -> Any:
        return {"quant": self._study.facts()["identity"]}

    def read(self, prompt: Sequence[int], inputs: Sequence[int]) -> Iterator[Tensor]:
        self._study.teacher.begin_with(prompt)
        return self._study.teacher.follow(inputs, None, wanted=len(inputs))

    def bytes_per_token(self) -> int:
        return self._bytes

    def active_parameters(self) -> int:
        return self._study.accounting.total


def _vocabulary(study: Study) -> Any:
    return int(study.checkpoint.model.config.vocab_size), study.tokenizer.get_vocab()
