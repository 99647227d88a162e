"""The step of a model whose FF weights stay on the host: two steps, one for all neurons and one for the kept ones."""

import logging

from torch import Tensor

from griffin.decode.decoder import Step
from griffin.neurons import Kept

logger = logging.getLogger("griffin")


class StreamedStep:
    """Reads kept neurons on the device. All neurons together are read from the host again for each token."""

    def __init__(self, streaming: Step, resident: Step) -> None:
        """
        Args:
            streaming: reads all neurons.
            resident: reads the kept neurons.
        """
        self._streaming, self._resident = streaming, resident
        self._step = streaming
        self._told = False

    def keep(self, kept: Kept | None) -> None:
        """Use these neurons from now on, or all."""
        self._step = self._streaming if kept is None else self._resident
        if kept is None and not self._told:
            self._told = True
            logger.warning(
                "a request without sparsity: each of its tokens reads all feed-forward weights from the host"
            )
        self._step.keep(kept)

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``."""
        return self._step(id)
