"""Decoding: from a prompt's logits to one token after the other, by the fastest step there is for a model.

NativeStep   compiled C, on a CPU; kept neurons are read in place        (griffin/native.py)
FusedStep    Triton kernels in one CUDA graph with the sampler; in place (griffin/fused.py, griffin/graph.py)
LeanStep     plain torch, for the common block anywhere                  (griffin/lean.py)
TwinStep     the model's own forward pass, for every other family        (here)
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin import native
from griffin.cache import KVCache
from griffin.lean import LeanStep
from griffin.pruning import DecodeTwin
from griffin.sampler import Drawn, Sampler
from griffin.sampling import Sampling
from griffin.weights import Weights

logger = logging.getLogger("griffin")

StepName = Literal["auto", "native", "graph", "lean", "twin"]
STEPS: tuple[StepName, ...] = get_args(StepName)


class Step(Protocol):
    """One token through the model, all of it or the kept neurons, behind what the cache holds."""

    def keep(self, experts_Lk: Tensor | None) -> None:
        """Use these neurons from now on, sorted int64 indices, or all (None)."""

    def __call__(self, id: int) -> Tensor:
        """The logits that follow a token, ``(V,)``, good until the next call."""


class Decoder(Protocol):
    """Makes one sequence at a time. Whatever it compiles, captures or tunes, it does when it is made.

    ahead: the device works on the next token before the host knows the one before.
    """

    ahead: bool

    def keep(self, experts_Lk: Tensor | None) -> None:
        """Use these neurons from now on, sorted int64 indices, or all (None)."""

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        """Draw the first token of a sequence. What comes back waits for it, and is called once."""

    def advance(self) -> Callable[[], Drawn]:
        """Run the latest token and draw the one behind it, likewise."""


class TwinStep:
    """The forward pass of transformers, through the model or its decode twin."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, twin: DecodeTwin) -> None:
        self._model, self._cache, self._twin = model, cache, twin
        self._decoder = model

    def keep(self, experts_Lk: Tensor | None) -> None:
        self._decoder = self._model
        if experts_Lk is not None:
            self._twin.load(experts_Lk)
            self._decoder = self._twin.model

    def __call__(self, id: int) -> Tensor:
        return logits(self._decoder, torch.tensor([id], device=self._model.device), self._cache)[-1]


class StepDecoder:
    """A step, then a draw, with the host between them."""

    ahead = False

    def __init__(self, step: Step, vocabulary: int, device: torch.device) -> None:
        self._step = step
        self._sampler = Sampler(vocabulary, device)
        self._drawn: Drawn | None = None

    def keep(self, experts_Lk: Tensor | None) -> None:
        self._step.keep(experts_Lk)

    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        self._sampler.load(sampling, prompt_ids, end_ids)
        return self._draw(logits_V)

    def advance(self) -> Callable[[], Drawn]:
        assert self._drawn is not None
        return self._draw(self._step(self._drawn.id))

    def _draw(self, logits_V: Tensor) -> Callable[[], Drawn]:
        self._sampler.draw(logits_V)
        drawn = self._drawn = self._sampler.drawn()
        return lambda: drawn


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
    vocabulary, device = int(model.config.vocab_size), model.device
    if weights is None:
        _require(name in ("auto", "twin"), f"{name}: a '{model.config.model_type}' model has no common block")
        return StepDecoder(TwinStep(model, cache, twin), vocabulary, device)
    if name == "graph" or (name == "auto" and device.type == "cuda"):
        graph = _graph_decoder(weights, cache, context_length, name)
        if graph is not None:
            return graph
    can = native.available() and native.supported(weights)
    _require(can or name != "native", "native: the compiled step is not there, or does not know this dtype or device")
    if name in ("native", "auto") and can:
        step: Step = native.NativeStep(weights, cache, torch.get_num_threads())
    elif name == "twin":
        step = TwinStep(model, cache, twin)
    else:
        step = LeanStep(weights, cache, twin)
    return StepDecoder(step, vocabulary, device)


def _graph_decoder(weights: Weights, cache: KVCache, context_length: int, name: StepName) -> Decoder | None:
    try:
        # Triton is there where CUDA is, as a rule.
        from griffin.graph import GraphDecoder
    except ImportError as error:
        _require(name != "graph", f"graph: Triton cannot be imported: {error}")
        logger.warning("decoding without CUDA graphs, several times slower: Triton cannot be imported (%s)", error)
        return None
    return GraphDecoder(weights, cache, context_length)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


@torch.inference_mode()
def extend(model: PreTrainedModel, ids_T: Tensor, cache: KVCache) -> None:
    """Run tokens for what they leave in the cache (and in hooks), without their logits."""
    model.base_model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True)


@torch.inference_mode()
def logits(model: PreTrainedModel, ids_T: Tensor, cache: KVCache, wanted: int = 1) -> Tensor:
    """Run tokens; the logits of the last ``wanted`` of them, ``(wanted, vocabulary)``."""
    output = model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True, logits_to_keep=wanted)
    logits_CV: Tensor = output.logits[0]
    return logits_CV
