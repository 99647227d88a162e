"""What decodes a sequence, and the plain way to do it: a step, then a draw, with the host between them.

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

# The most tokens that every ``PassingStep`` reads in one pass.
PASS_TOKENS = 16


class Step(Protocol):
    """One token through the model, all of it or the kept neurons. It follows what the cache holds and joins it."""

    def keep(self, chosen: Chosen | None) -> None:
        """Read so from now on, or everything (None)."""

    def shares(self) -> Shares | None:
        """What tokens have read of the FF weights, on average since ``keep``.

        None where that is fixed, or not counted, or before the first token.
        """

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``, good until the next call."""


class PassingStep(Step, Protocol):
    """A step that takes several tokens in one pass, in less time than as many steps.

    Each token's logits, keys and values are bit for bit those of a step of its own. All join the cache.
    """

    def read(self, ids: Sequence[int], *, full: bool = False) -> Tensor:
        """The logits after each token, ``(T, V)``, good until the next call.

        Args:
            full: read with all neurons, whatever is kept. Such tokens are not counted in ``shares``.
        """

    def observe(self, ids: Sequence[int], wanted: int) -> tuple[Tensor, list[Activations]]:
        """Read with all neurons.

        Returns:
            The logits ``(wanted, V)`` after the last ``wanted`` tokens, good until the next call; and for each layer
            what all tokens gave in the FF block.
        """


class Decoder(Protocol):
    """Makes one sequence at a time. Whatever it compiles, captures or tunes, it does when it is made.

    name: of its step, as ``steps.STEPS`` has it.
    ahead: whether the device works on the next token of this sequence before the host knows the one before.
    own_pass: whether a token without sparsity runs through the model's own forward pass.
    passes: the step, if it takes several tokens in one pass.
    constraint: of the sequence at hand, as long as it has a grammar that may refuse a token. All that is drawn or taken
        is told to it.
    """

    name: str
    own_pass: bool
    passes: PassingStep | None

    @property
    def ahead(self) -> bool: ...

    @property
    def constraint(self) -> Constraint | None: ...

    def keep(self, chosen: Chosen | None) -> None:
        """Read so from now on, or everything (None)."""

    def shares(self) -> Shares | None:
        """What tokens have read of the FF weights, on average since ``keep``.

        None where that is fixed, or not counted, or before the first token.
        """

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        """Begin a sequence and draw its first token. The function returned waits for the token; call it once."""

    def advance(self) -> Callable[[], Drawn]:
        """Run the latest token through the model and draw the next one. Returns as ``begin`` does."""

    def logits(self) -> Tensor:
        """The logits that the latest token was drawn from, ``(V,)``."""

    def mark(self) -> None:
        """Remember this place in the sequence, for ``back``."""

    def back(self) -> None:
        """Forget the tokens drawn since the mark; then call ``draw`` or ``take``."""

    def draw(self, logits_V: Tensor) -> Callable[[], Drawn]:
        """Draw the next token from logits that something else computed. It follows what the cache holds."""

    def take(self, id: int, logits_V: Tensor) -> Callable[[], Drawn]:
        """Let this be the next token, as if it had been drawn from such logits."""


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
            draws_alone: whether one thread draws. Threads of torch's that wake up for a draw would still spin while
                the compiled step's own threads start.
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
