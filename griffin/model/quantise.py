"""``--quantize``: a loaded model's matrices get a form with fewer bytes, in place.

int4: blocks of 32 codes with a scale and a minimum. The embedding and the head have blocks of 8 bits, as in GGUF files:
in 4 bits, these two would lose as much as all others together.
int8: 8 bits with a scale for each output. The second feed-forward projections have a scale for each 32 neurons: there a
row is a neuron, and one scale for a whole row cost a KL divergence of 0.024 on SmolLM2-135M; all others cost 0.003.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from griffin.errors import LoadError
from griffin.model.checkpoint.built import obstacle
from griffin.model.checkpoint.forms import EightBitRows, EightBits, Form, FourBits
from griffin.model.exact import keep_exact_
from griffin.model.families import feed_forwards
from griffin.model.identity import keep_identity_
from griffin.model.matrix.modules import put_, takes_matrix
from griffin.model.memory import untouched

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class _Forms:
    """The form of each matrix. ends: the embedding and the head. contract: the second FF projections."""

    ends: Form
    contract: Form
    others: Form


FORMS: dict[Kind, _Forms] = {
    "int8": _Forms(ends=EightBitRows(), contract=EightBits(), others=EightBitRows()),
    "int4": _Forms(ends=EightBits(), contract=FourBits(), others=FourBits()),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A module whose matrix is rounded.

    shape: outputs and inputs; of the embedding, vocabulary and width.
    by_input: its rows will belong to its inputs.
    """

    path: str
    shape: tuple[int, int]
    form: Form
    by_input: bool

    @property
    def bytes(self) -> int:
        return self.shape[0] * self.form.row_bytes(self.shape[1])


Codes = Callable[[Place], Tensor]


def require_possible(model_type: str, source: str) -> None:
    """
    Args:
        model_type: one that is supported.

    Raises:
        LoadError: models of this type, or all models, cannot be quantised in this installation.
    """
    if why := obstacle(model_type):
        raise LoadError(f"'{source}' cannot be quantised: {why}; leave --quantize out")


def places(model: PreTrainedModel, kind: Kind) -> list[Place]:
    """The matrices to round. Some shapes do not fit a form; these stay plain, as do norms and biases."""
    forms, embedding, head = FORMS[kind], model.get_input_embeddings(), model.get_output_embeddings()
    contracting = {id(block.contract) for block in feed_forwards(model)}
    tied = head.weight is embedding.weight
    found = []
    for path, module in model.named_modules():
        if not takes_matrix(model, module) or (tied and module is head):
            continue
        by_input = id(module) in contracting
        form = forms.contract if by_input else forms.ends if module in (embedding, head) else forms.others
        rows, columns = module.weight.shape
        if form.fits((rows, columns), by_input=by_input):
            found.append(Place(path, (rows, columns), form, by_input))
    return found


def rounding(model: PreTrainedModel, source: str) -> Codes:
    """The codes of a model's own weights.

    Raises:
        LoadError: a weight cannot be rounded.
    """

    def rounded(place: Place) -> Tensor:
        weight = model.get_submodule(place.path).weight
        assert isinstance(weight, Tensor)
        try:
            return place.form.rounded(weight.detach())
        except ValueError as error:
            raise LoadError(f"'{source}': {place.path}.weight {error}; download it again") from None

    return rounded


@torch.no_grad()
def quantise_(model: PreTrainedModel, places: Sequence[Place], codes: Codes, dtype: torch.dtype, name: str) -> None:
    """Give the modules at these places codes, and everything else plain numbers in its own memory.

    Args:
        model: in the dtype of its checkpoint.
        dtype: of activations, and of weights that stay plain.
        name: for the progress.

    Raises:
        MemoryError: there is not enough memory.
    """
    keep_identity_(model)
    sizes = [place.form.sizes(place.shape, by_input=place.by_input) for place in places]
    rooms = iter(untouched([size for own in sizes for size in own]))
    for place, own in zip(tqdm(places, desc=f"reading {name}", disable=None), sizes, strict=True):
        room = [next(rooms) for _ in own]
        matrix = place.form.matrix(codes(place), place.shape, room, dtype, by_input=place.by_input)
        put_(model, place.path, matrix, by_input=place.by_input)
    _own_(model, dtype)


def _own_(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round parameters to a dtype, in their own memory; norms and biases are also remembered without rounding."""
    for module, name, parameter in _parameters(model):
        values = parameter.detach()
        parameter.data = values.to(dtype, copy=True)
        if values.dim() == 1:
            keep_exact_(module, name, values.float())
    model.config.dtype = dtype


def _parameters(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter
