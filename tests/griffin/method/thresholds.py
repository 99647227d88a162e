"""Thresholds for tests: those of a prompt, and others that rounding cannot cross."""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.method.griffin_plus import GriffinPlus
from griffin.method.statistic import PromptStatistic
from griffin.model.families import feed_forwards
from griffin.neurons import Selection
from griffin.request import Pruning
from griffin.thresholds import Shares, Thresholds

# Larger than every gate, input and activation of the models here.
NEVER = 1e30


@torch.no_grad()
def thresholds_of(model: PreTrainedModel, ids: list[int], sparsity: float = 0.5, chunk: int = 256) -> Thresholds:
    """The thresholds of griffin+ for a prompt, which the model reads in chunks."""
    pruning, blocks = Pruning(sparsity, method="griffin+"), feed_forwards(model)
    statistic, cache = PromptStatistic(blocks), None
    statistic.reset(GriffinPlus.latest_tokens(pruning))
    with statistic.collecting():
        for part in torch.tensor([ids]).split(chunk, dim=1):
            cache = model(part, past_key_values=cache, use_cache=True).past_key_values
    return GriffinPlus(blocks, model.device).choose(statistic, pruning)


def everything(by: Thresholds) -> Thresholds:
    """The same means, but each token reads everything."""
    return _limited(by, lambda limits: torch.full_like(limits, -1))


def nothing(by: Thresholds) -> Thresholds:
    """The same means, but no token reads anything."""
    return _limited(by, lambda limits: torch.full_like(limits, torch.inf))


def sided(by: Thresholds, seed: int = 2, share: float = 0.5) -> Thresholds:
    """The same means, but about ``share`` of inputs and neurons are always read, and all others never."""
    generator = torch.Generator().manual_seed(seed)
    return _limited(by, lambda limits: torch.where(torch.rand(limits.shape, generator=generator) < share, -1, NEVER))


def choices(by: Thresholds) -> dict[str, Thresholds]:
    """Extreme thresholds, and some between."""
    return {"everything": everything(by), "nothing": nothing(by), "sided": sided(by), **stages(by)}


def stages(by: Thresholds) -> dict[str, Thresholds]:
    """In each, one stage leaves something out and the others nothing."""
    whole, some = everything(by), sided(by)
    found = {
        "inputs": replace(whole, input_limits_LD=some.input_limits_LD),
        "outputs": replace(whole, output_limits_LF=some.output_limits_LF),
    }
    if by.gate_limits_LF is not None:
        found["gates"] = replace(whole, gate_limits_LF=some.gate_limits_LF)
    return found


def values(by: Thresholds) -> list[Tensor]:
    """All tensors, in the order of the fields."""
    found = (by.means_LD, by.input_limits_LD, by.offsets_LF, by.gate_limits_LF, by.resting_LF, by.output_limits_LF)
    return [each for each in found if each is not None]


def as_selection(by: Thresholds) -> Selection:
    return Selection(0.0, by.name(), 20, by)


def differences(found: Shares, wanted: Shares) -> float:
    """The largest difference of the three shares."""
    return max(abs(found.gate - wanted.gate), abs(found.up - wanted.up), abs(found.down - wanted.down))


def _limited(by: Thresholds, limits_of) -> Thresholds:  # type: ignore[no-untyped-def]
    gate_limits = None if by.gate_limits_LF is None else limits_of(by.gate_limits_LF)
    return replace(
        by,
        input_limits_LD=limits_of(by.input_limits_LD),
        gate_limits_LF=gate_limits,
        output_limits_LF=limits_of(by.output_limits_LF),
    )
