"""The steps that can run a token, fastest first, and the choice between them.

native   compiled C, on a CPU                                  (griffin/decode/c/step.py)
graph    Triton kernels, in one CUDA graph with the sampler    (griffin/decode/cuda/)
lean     plain torch, for the common block anywhere            (griffin/decode/torch_step.py)
twin     the model's own forward pass, for every family        (griffin/decode/twin.py)

A step on a CPU copies the kept neurons next to each other. Reading half of them in place would take nearly as long as
reading all, because the hardware also fetches what lies between them. The graph reads them in place, by index. If each
token picks what it reads, all steps read in place; the lean step and the twin only mask, and save nothing.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from griffin.decode.c.description import supported
from griffin.decode.c.library import available
from griffin.decode.c.step import NativeStep
from griffin.decode.decoder import Decoder, PassingStep, Step, StepDecoder
from griffin.decode.streamed import StreamedStep
from griffin.decode.torch_step import LeanStep
from griffin.decode.twin import DecodeTwin, TwinStep
from griffin.model.cache import KVCache
from griffin.model.host import HostWeights
from griffin.model.placement import across_devices
from griffin.model.weights import Weights

logger = logging.getLogger("griffin")

StepName = Literal["auto", "native", "graph", "lean", "twin"]
STEP_NAMES: tuple[StepName, ...] = get_args(StepName)


class CannotRun(Exception):
    """A step cannot be made on this machine. The text says why."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is.

    model_type: the name in its configuration.
    device: where it computes; the first one of several devices.
    on_host: its FF weights stay on the host.
    across_devices: its layers are on several devices.
    """

    model_type: str
    device: torch.device
    on_host: bool
    across_devices: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Placement":
        return cls(model.config.model_type, model.device, HostWeights.of(model) is not None, across_devices(model))


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Everything from which a step is made.

    weights: the model's, merged; None if its blocks do not have the common form.
    context_length: in tokens, for steps with buffers of a fixed size.
    """

    model: PreTrainedModel
    weights: Weights | None
    twin: DecodeTwin
    cache: KVCache
    context_length: int

    def stepwise(
        self,
        name: StepName,
        step: Step,
        *,
        own_pass: bool = False,
        draws_alone: bool = False,
        passes: PassingStep | None = None,
    ) -> Decoder:
        """A decoder that runs such steps with the host between them. For the properties see ``StepDecoder``."""
        if HostWeights.of(self.model) is not None:
            step, own_pass, passes = StreamedStep(TwinStep(self.model, self.cache, self.twin), step), True, None
        vocabulary, device = int(self.model.config.vocab_size), self.model.device
        return StepDecoder(name, step, vocabulary, device, own_pass=own_pass, draws_alone=draws_alone, passes=passes)


@dataclass(frozen=True, slots=True)
class Row:
    """One step.

    obstacle: why it cannot run a model with this placement and these weights; None if it can.
    make: makes its decoder; may raise CannotRun.
    """

    name: StepName
    obstacle: Callable[[Placement, Weights | None], str | None]
    make: Callable[[Parts], Decoder]

    def can_run(self, placement: Placement, weights: Weights | None) -> bool:
        return self.obstacle(placement, weights) is None


def make_decoder(name: StepName, parts: Parts) -> Decoder:
    """The decoder of this name, or with auto the fastest one for this model, device and installation.

    Raises:
        ValueError: the named step cannot run here.
    """
    placement = Placement.of(parts.model)
    for row in STEPS:
        if name not in ("auto", row.name):
            continue
        obstacle = row.obstacle(placement, parts.weights)
        if obstacle is None:
            try:
                return row.make(parts)
            except CannotRun as error:
                obstacle = str(error)
                if name == "auto":
                    logger.warning("decoding without the %s step, several times slower: %s", row.name, obstacle)
        if name == row.name:
            raise ValueError(f"{row.name}: {obstacle}")
    raise ValueError(f"no step can run a '{placement.model_type}' model")


def _no_common_block(placement: Placement, weights: Weights | None) -> str | None:
    if placement.across_devices:
        return "this model is across several devices"
    return f"a '{placement.model_type}' model has no common block" if weights is None else None


def _not_native(placement: Placement, weights: Weights | None) -> str | None:
    if weights is None or placement.across_devices:
        return _no_common_block(placement, weights)
    if supported(weights) and available():
        return None
    return "the compiled step is not installed, or does not run this format or device"


def _native(parts: Parts) -> Decoder:
    assert parts.weights is not None
    step = NativeStep(parts.weights, parts.cache, torch.get_num_threads())
    return parts.stepwise("native", step, draws_alone=True, passes=step)


def _not_graph(placement: Placement, weights: Weights | None) -> str | None:
    if placement.on_host:
        return "this model's feed-forward weights stay on the host"
    if placement.device.type != "cuda":
        return "needs a CUDA device"
    return _no_common_block(placement, weights)


def _graph(parts: Parts) -> Decoder:
    assert parts.weights is not None
    try:
        # Imported only here: without CUDA, Triton may be missing.
        from griffin.decode.cuda.graph import GraphDecoder

        return GraphDecoder(parts.weights, parts.cache, parts.context_length)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Triton is missing, or finds no compiler on this machine, or does not know this device.
        raise CannotRun(f"cannot run here: {str(error).splitlines()[0] if str(error) else error!r}") from error


def _lean(parts: Parts) -> Decoder:
    assert parts.weights is not None
    return parts.stepwise("lean", LeanStep(parts.weights, parts.cache, parts.twin))


def _twin(parts: Parts) -> Decoder:
    return parts.stepwise("twin", TwinStep(parts.model, parts.cache, parts.twin), own_pass=True)


# The first step that can run is used.
STEPS = (
    Row("native", _not_native, _native),
    Row("graph", _not_graph, _graph),
    Row("lean", _no_common_block, _lean),
    Row("twin", lambda placement, weights: None, _twin),
)
