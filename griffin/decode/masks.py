"""Masks: which tokens the sequence at hand may go on with, found while a step runs.

Shapes: V vocabulary.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from griffin.constraint import Constraint, Grammar


class Masks:
    """The constraint of one sequence after the other."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._constraint: Constraint | None = None
        self._vocabulary, self._device = vocabulary, device
        # Its thread starts with the first mask.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._pending: Future[Tensor] | None = None

    def begin(self, grammar: Grammar | None) -> None:
        """A new sequence."""
        self._pending = None
        self._constraint = None if grammar is None else grammar.begin()

    @property
    def constraint(self) -> Constraint | None:
        """The current sequence's constraint; None once any token may follow."""
        return None if self._constraint is None or self._constraint.done else self._constraint

    def mark(self) -> None:
        """See ``Constraint.mark``."""
        if self._constraint is not None:
            self._constraint.mark()

    def back(self) -> None:
        """See ``Constraint.back``. It may hold again what was done."""
        if self._constraint is not None:
            self._constraint.back()

    def prepare(self) -> None:
        """Begin to find the next token's mask, in a thread. The next call must be ``forced`` or ``allowed``."""
        if (constraint := self.constraint) is not None and not constraint.free and not constraint.forced():
            self._pending = self._thread.submit(self._mask, constraint)

    def forced(self) -> int | None:
        """The next token, if the grammar forces one."""
        if (constraint := self.constraint) is None or self._pending is not None:
            return None
        return next(iter(constraint.forced()), None)

    def allowed(self) -> Tensor | None:
        """Whether each token may follow, ``(V,)`` on the device; None if any may.

        Raises:
            InvalidRequest: see ``Constraint.mask``.
        """
        if (constraint := self.constraint) is None or constraint.free:
            return None
        pending, self._pending = self._pending, None
        allowed_V = self._mask(constraint) if pending is None else pending.result()
        return allowed_V.to(self._device)

    def _mask(self, constraint: Constraint) -> Tensor:
        bits = np.unpackbits(np.frombuffer(constraint.mask(), np.uint8), bitorder="little")
        if len(bits) < self._vocabulary:
            # Tokens that the tokenizer does not have.
            bits = np.pad(bits, (0, self._vocabulary - len(bits)))
        return torch.from_numpy(bits[: self._vocabulary].view(np.bool_))
