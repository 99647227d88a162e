"""Decoding: from a prompt's logits to one token after the other, by the fastest step there is for a model.

native   NativeStep: compiled C, on a CPU                                  (griffin/native.py)
graph    FusedStep: Triton kernels, in one CUDA graph with the sampler     (griffin/fused.py, griffin/graph.py)
lean     LeanStep: plain torch, for the common block anywhere              (griffin/lean.py)
twin     TwinStep: the model's own forward pass, for every other family    (here)

On a CPU kept neurons are gathered: read where they lie, half of them take as long as all, because the hardware
fetches what is skipped as well. On CUDA they are read in place, through an index.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.c.description import supported
from griffin.decode.c.library import available
from griffin.decode.c.step import NativeStep
from griffin.decode.sampler import Drawn, Sampler
from griffin.decode.torch_step import LeanStep
from griffin.decode.twin import DecodeTwin
from griffin.model.cache import KVCache
from griffin.model.forward import logits
from griffin.model.host import HostWeights
from griffin.model.placement import across_devices
from griffin.model.weights import Weights
from griffin.neurons import Kept
from griffin.request import Sampling

logger = logging.getLogger("griffin")

StepName = Literal["auto", "native", "graph", "lean", "twin"]
STEPS: tuple[StepName, ...] = get_args(StepName)


class Step(Protocol):
    """One token through the model, all of it or the kept neurons, behind what the cache holds."""

    def keep(self, kept: Kept | None) -> None:
        """Use these neurons from now on, or all (None)."""

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``, good until the next call."""


class Decoder(Protocol):
    """Makes one sequence at a time. Whatever it compiles, captures or tunes, it does when it is made.

    name: of its step, for people.
    ahead: the device works on the next token before the host knows the one before.
    skips: a token reads no more than the gates of neurons that rest, see ``kept.Gating``.
    """

    name: str
    ahead: bool
    skips: bool

    def keep(self, kept: Kept | None) -> None:
        """Use these neurons from now on, or all (None)."""

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        """Draw the first token of a sequence. What comes back waits for it, and is called once."""

    def advance(self) -> Callable[[], Drawn]:
        """Run the latest token and draw the one behind it, likewise."""

    def logits(self) -> Tensor:
        """What the latest token was drawn from, ``(V,)``."""

    def mark(self) -> None:
        """A place in the sequence to come back to."""

    def back(self) -> None:
        """Forget the tokens drawn since the mark; the next one is told by ``draw`` or ``take``."""

    def draw(self, logits_V: Tensor) -> Callable[[], Drawn]:
        """Draw the next token, likewise, from logits that something else computed, behind what the cache holds."""

    def take(self, id: int, logits_V: Tensor) -> Callable[[], Drawn]:
        """Let this be the next token, as if it had been drawn from such logits."""


class TwinStep:
    """The forward pass of transformers, through the model or its decode twin."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, twin: DecodeTwin) -> None:
        self._model, self._cache, self._twin = model, cache, twin
        self._decoder = model

    def keep(self, kept: Kept | None) -> None:
        self._decoder = self._model
        if kept is not None:
            self._twin.load(kept)
            self._decoder = self._twin.model

    def __call__(self, id: int) -> Tensor:
        return logits(self._decoder, torch.tensor([id], device=self._model.device), self._cache)[-1]


class StreamedStep:
    """Of a model whose FF weights stay on the host: kept neurons are resident, all of them come anew for each token."""

    def __init__(self, streaming: Step, resident: Step) -> None:
        self._streaming, self._resident = streaming, resident
        self._step = streaming
        self._told = False

    def keep(self, kept: Kept | None) -> None:
        self._step = self._streaming if kept is None else self._resident
        if kept is None and not self._told:
            self._told = True
            logger.warning(
                "a request without sparsity: each of its tokens reads all feed-forward weights from the host"
            )
        self._step.keep(kept)

    def __call__(self, id: int) -> Tensor:
        return self._step(id)


class StepDecoder:
    """A step, then a draw, with the host between them."""

    ahead = False

    def __init__(self, name: StepName, step: Step, vocabulary: int, device: torch.device) -> None:
        self.name: str = name
        self._step = step
        self._sampler = Sampler(vocabulary, device)
        # Threads of torch's that were woken for a draw would still be spinning when the compiled step's own start.
        self._draws_alone = self.skips = name == "native"
        self._logits_V: Tensor | None = None
        self._drawn: Drawn | None = None

    def keep(self, kept: Kept | None) -> None:
        self._step.keep(kept)

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        self._sampler.load(sampling, prompt_ids, end_ids)
        return self.draw(logits_V)

    def advance(self) -> Callable[[], Drawn]:
        assert self._drawn is not None
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


def make_decoder(
    name: StepName,
    model: PreTrainedModel,
    weights: Weights | None,
    twin: DecodeTwin,
    cache: KVCache,
    context_length: int,
) -> Decoder:
    """The decoder of that name, or (auto) the fastest that this model, device and installation have.

    Raises:
        ValueError: it was named, and cannot run here.
    """
    host, named = HostWeights.of(model), name != "auto"
    _require(name != "graph" or host is None, "graph: this model's feed-forward weights stay on the host")
    _require(name != "graph" or model.device.type == "cuda", "graph: needs a CUDA device")
    if across_devices(model):
        _require(name in ("auto", "twin"), f"{name}: this model is across several devices")
        name = "twin"
    elif weights is None:
        _require(name in ("auto", "twin"), f"{name}: a '{model.config.model_type}' model has no common block")
        name = "twin"
    elif name == "auto" and model.device.type == "cuda":
        name = "graph" if host is None else "lean"
    elif name == "auto":
        name = "native" if available() and supported(weights) else "lean"
    if name == "graph" and weights is not None:
        try:
            return _graph_decoder(weights, cache, context_length)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Triton is missing, or finds no compiler on this machine, or does not know this device.
            _require(not named, f"graph: cannot run here: {error}")
            logger.warning("decoding without CUDA graphs, several times slower: %s", str(error).splitlines()[0])
        name = "lean"
    step = _step(name, model, weights, twin, cache)
    if host is not None:
        step = StreamedStep(TwinStep(model, cache, twin), step)
    return StepDecoder(name, step, int(model.config.vocab_size), model.device)


def _step(name: StepName, model: PreTrainedModel, weights: Weights | None, twin: DecodeTwin, cache: KVCache) -> Step:
    if name == "twin" or weights is None:
        return TwinStep(model, cache, twin)
    if name == "lean":
        return LeanStep(weights, cache, twin)
    can = available() and supported(weights)
    _require(can, "native: the compiled step is not installed, or does not run this dtype or device")
    return NativeStep(weights, cache, torch.get_num_threads())


def _graph_decoder(weights: Weights, cache: KVCache, context_length: int) -> Decoder:
    # Where no CUDA is, Triton may be missing, and nothing of it is imported.
    from griffin.decode.cuda.graph import GraphDecoder

    return GraphDecoder(weights, cache, context_length)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
