"""A short name by which what was measured of a model is found again."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.model.families import FeedForward, feed_forwards
from griffin.model.matrix.modules import by_output

# Numbers of each projection: enough to tell two models apart, and read in no time.
SAMPLED = 64
# The attribute of a model that was rounded: its name before.
ATTRIBUTE = "identity_before_rounding"


def keep_identity_(model: PreTrainedModel) -> None:
    """Have a model keep its name, whatever becomes of its weights."""
    setattr(model, ATTRIBUTE, identity(model))


def identity(model: PreTrainedModel) -> str:
    """A short name for this model's FF weights. Dtype, format, device, layout and later rounding make no difference."""
    if (known := getattr(model, ATTRIBUTE, None)) is not None:
        return str(known)
    digest = hashlib.sha256()
    for block in feed_forwards(model):
        for sample_N in _samples(block):
            # In bfloat16, whose precision every dtype that a model is served in has; without the sign of a zero.
            numbers = (sample_N.to(torch.bfloat16) + 0.0).contiguous().view(torch.int16).cpu()
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def _samples(block: FeedForward) -> Iterator[Tensor]:
    """Some 64 numbers of each projection: of the first input, or, of the contracting one, of the first neuron."""
    for matrix in map(by_output, block.expand):
        numbers = torch.arange(0, matrix.row_count, max(1, matrix.row_count // SAMPLED))
        yield matrix.rows(numbers).dense()[:, 0]
    first_D = block.down.part(0, 1).dense()[0]
    yield first_D[:: max(1, len(first_D) // SAMPLED)]
