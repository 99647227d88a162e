"""Ahead: single steps of a decoder. A device may start the next step before the host knows this step's token."""

from collections.abc import Callable

from griffin.decode.decoder import Decoder
from griffin.decode.sampler import Drawn


class Ahead:
    """Takes one token after the other. A device that works ahead computes the next one in the meantime.

    taken: number of tokens taken so far.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._launched: Callable[[], Drawn] | None = None
        self.taken = 0

    @property
    def waiting(self) -> bool:
        """Whether a step was started whose token was not taken. Only ``take`` may follow."""
        return self._launched is not None

    def take(self, *, another: bool) -> Drawn:
        """The next token.

        Args:
            another: a single step follows, whatever this token is. A device that works ahead starts it at once.
        """
        pending = self._launched or self._decoder.advance()
        self._launched = self._decoder.advance() if another and self._decoder.ahead else None
        self.taken += 1
        return pending()
