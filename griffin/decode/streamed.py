"""The step of a model whose FF weights stay on the host: one step for all neurons, one for the kept ones."""

import logging

from torch import Tensor

from griffin.decode.decoder import Step
from griffin.neurons import Chosen
from griffin.thresholds import Shares

logger = logging.getLogger("griffin")


class StreamedStep:
    """Reads kept neurons on the device. All neurons together are copied from the host again for each token."""

    def __init__(self, streaming: Step, resident: Step) -> None:
        """
        Args:
            streaming: reads all neurons.
            resident: reads the kept neurons.
        """
        self._streaming, self._resident = streaming, resident
        self._step = streaming
        self._told = False

    def keep(self, chosen: Chosen | None) -> None:
        """Read only this from here on, or everything (None)."""
        self._step = self._streaming if chosen is None else self._resident
        if chosen is None and not self._told:
            self._told = True
            logger.warning(
                "a request without sparsity: each of its tokens reads all feed-forward weights from the host"
            )
        self._step.keep(chosen)

    def shares(self) -> Shares | None:
        """See ``Step.shares``."""
        return self._step.shares()

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``."""
        return self._step(id)
