"""Ahead: single steps of a decoder, the next one launched before the token of this one is known."""

from collections.abc import Callable

from griffin.decode.decoder import Decoder
from griffin.decode.sampler import Drawn


class Ahead:
    """Takes one token after the other. A device that works ahead has the next one on its way meanwhile.

    taken: how many tokens so far.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._launched: Callable[[], Drawn] | None = None
        self.taken = 0

    @property
    def waiting(self) -> bool:
        """Whether a step was launched whose token was not taken. Only ``take`` may follow."""
        return self._launched is not None

    def take(self, *, another: bool) -> Drawn:
        """The next token.

        Args:
            another: a single step follows, whatever this token is. A device that works ahead begins it now.
        """
        pending = self._launched or self._decoder.advance()
        self._launched = self._decoder.advance() if another and self._decoder.ahead else None
        self.taken += 1
        return pending()
