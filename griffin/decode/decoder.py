"""The interfaces of steps and decoders, and the plain decoder: a step, then a draw, with the host between them.

Shapes: T tokens of a pass, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from griffin.constraint import Constraint
from griffin.decode.sampler import Drawn, Sampler
from griffin.method.statistic import Activations
from griffin.neurons import Chosen
from griffin.request import Sampling
from griffin.thresholds import Shares

# Tokens that every ``PassingStep`` can read in one pass.
PASS_TOKENS = 16


class Step(Protocol):
    """Runs one token through the whole model or the kept neurons. The token follows the cache and is added to it."""

    def keep(self, chosen: Chosen | None) -> None:
        """Read only this from here on, or everything (None)."""

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``keep``.

        None if the shares are fixed or not counted, or before the first token.
        """

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``, valid until the next call."""


class PassingStep(Step, Protocol):
    """A step that takes several tokens in one pass, faster than as many single steps.

    Each token's logits, keys and values have the same bits as those of a single step. All tokens are added to the
    cache.
    """

    def read(self, ids: Sequence[int], *, full: bool = False) -> Tensor:
        """The logits after each token, ``(T, V)``, valid until the next call.

        Args:
            full: read with all neurons, whatever is kept. These tokens are not counted in ``shares``.
        """

    def observe(self, ids: Sequence[int], wanted: int) -> tuple[Tensor, list[Activations]]:
        """Read with all neurons.

        Returns:
            The logits ``(wanted, V)`` after the last ``wanted`` tokens, valid until the next call; and for each layer
            the FF activations of all tokens.
        """


class Decoder(Protocol):
    """Makes one sequence at a time. It compiles, captures and tunes everything when it is created.

    name: its step's name, as in ``steps.STEPS``.
    ahead: whether the device works on the next token of this sequence before the host knows the previous one.
    own_pass: whether a token without sparsity runs through the model's own forward pass.
    passes: the step, if it takes several tokens in one pass.
    constraint: the current sequence's constraint, if it has a grammar that may still refuse a token. It is told all
        drawn and taken tokens.
    """

    name: str
    own_pass: bool
    passes: PassingStep | None

    @property
    def ahead(self) -> bool: ...

    @property
    def constraint(self) -> Constraint | None: ...

    def keep(self, chosen: Chosen | None) -> None:
        """Read only this from here on, or everything (None)."""

    def shares(self) -> Shares | None:
        """Mean shares of the FF weights that tokens have read since ``keep``.

        None if the shares are fixed or not counted, or before the first token.
        """

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        """Begin a sequence and draw its first token. The returned function waits for the token; call it once."""

    def advance(self) -> Callable[[], Drawn]:
        """Run the latest token through the model and draw the next one. Returns the same as ``begin``."""

    def logits(self) -> Tensor:
        """The logits from which the latest token was drawn, ``(V,)``."""

    def mark(self) -> None:
        """Remember this place in the sequence, for ``back``."""

    def back(self) -> None:
        """Forget the tokens drawn since the mark; then call ``draw`` or ``take``."""

    def draw(self, logits_V: Tensor) -> Callable[[], Drawn]:
        """Draw the next token from logits computed elsewhere. It follows the tokens in the cache."""

    def take(self, id: int, logits_V: Tensor) -> Callable[[], Drawn]:
        """Use this as the next token, as if it had been drawn from these logits."""


class StepDecoder:
    """A step, then a draw, with the host between them."""

    ahead = False

    def __init__(
        self,
        name: str,
        step: Step,
        vocabulary: int,
        device: torch.device,
        *,
        own_pass: bool = False,
        draws_alone: bool = False,
        passes: PassingStep | None = None,
    ) -> None:
        """
        Args:
            name, own_pass, passes: see ``Decoder``.
            draws_alone: draw with one thread. If a draw woke torch's threads, they would still spin while the compiled
                step's own threads start.
        """
        self.name, self.own_pass, self.passes = name, own_pass, passes
        self._step, self._draws_alone = step, draws_alone
        self._sampler = Sampler(vocabulary, device)
        self._logits_V: Tensor | None = None
        self._drawn: Drawn | None = None

    @property
    def constraint(self) -> Constraint | None:
        return self._sampler.constraint

    def keep(self, chosen: Chosen | None) -> None:
        self._step.keep(chosen)

    def shares(self) -> Shares | None:
        return self._step.shares()

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        self._sampler.load(sampling, prompt_ids, end_ids)
        return self.draw(logits_V)

    def advance(self) -> Callable[[], Drawn]:
        assert self._drawn is not None
        self._sampler.prepare()
        return self.draw(self._step(self._drawn.id))

    def logits(self) -> Tensor:
        assert self._logits_V is not None
        return self._logits_V

    def mark(self) -> None:
        self._sampler.mark()

    def back(self) -> None:
        self._sampler.back()

    def draw(self, logits_V: Tensor) -> Callable[[], Drawn]:
        return self._next(logits_V, self._sampler.draw)

    def take(self, id: int, logits_V: Tensor) -> Callable[[], Drawn]:
        return self._next(logits_V, partial(self._sampler.take, id))

    def _next(self, logits_V: Tensor, settle: Callable[[Tensor], None]) -> Callable[[], Drawn]:
        self._logits_V = logits_V
        with _one_thread() if self._draws_alone else nullcontext():
            settle(logits_V)
            drawn = self._drawn = self._sampler.drawn()
        return lambda: drawn


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
