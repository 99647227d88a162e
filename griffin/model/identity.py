"""A short name for a model, under which its measurements are stored."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.model.families import FeedForward, feed_forwards
from griffin.model.matrix.modules import by_output

# Numbers taken from each projection: enough to distinguish models, and fast to read.
SAMPLED = 64
# The attribute that keeps a rounded model's earlier name.
ATTRIBUTE = "identity_before_rounding"


def keep_identity_(model: PreTrainedModel) -> None:
    """Make a model keep its name, even if its weights are changed later."""
    setattr(model, ATTRIBUTE, identity(model))


def identity(model: PreTrainedModel) -> str:
    """A short name for this model's FF weights. Dtype, format, device, layout and later rounding do not change it."""
    if (known := getattr(model, ATTRIBUTE, None)) is not None:
        return str(known)
    digest = hashlib.sha256()
    for block in feed_forwards(model):
        for sample_N in _samples(block):
            # In bfloat16, which every served dtype can be rounded to; without the sign of zero.
            numbers = (sample_N.to(torch.bfloat16) + 0.0).contiguous().view(torch.int16).cpu()
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def _samples(block: FeedForward) -> Iterator[Tensor]:
    """About 64 numbers of each projection: of the first input; of the contracting one, of the first neuron."""
    for matrix in map(by_output, block.expand):
        numbers = torch.arange(0, matrix.row_count, max(1, matrix.row_count // SAMPLED))
        yield matrix.rows(numbers).dense()[:, 0]
    first_D = block.down.part(0, 1).dense()[0]
    yield first_D[:: max(1, len(first_D) // SAMPLED)]
