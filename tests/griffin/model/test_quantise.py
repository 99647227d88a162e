"""Rounding to codes: how near they are, what is refused, and which form each matrix gets."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from griffin.errors import LoadError
from griffin.model.checkpoint.forms import EightBitRows, EightBits, Form, FourBits
from griffin.model.matrix.modules import MatrixLinear, matrices
from griffin.model.quantise import places, quantise_, rounding
from griffin.model.weights import read_weights
from tests.griffin.instructions import EACH_FOR_WIDENING, restricted
from tests.griffin.model.quantised import round_
from tests.tiny import tiny_model

ROWS, COLUMNS = 128, 96


def numbers(seed: int = 1) -> Tensor:
    """Numbers like weights: normal, with a few outliers."""
    torch.manual_seed(seed)
    normal = torch.randn(ROWS, COLUMNS) * 0.02
    return normal * (1 + 5 * (torch.rand(ROWS, COLUMNS) < 0.01))


def matrix(form: Form, numbers_RC: Tensor, *, by_input: bool = False) -> Tensor:
    """The numbers of the rounded matrix, by output, fp32."""
    shape = (numbers_RC.shape[0], numbers_RC.shape[1])
    room = [torch.empty(size, dtype=torch.uint8) for size in form.sizes(shape, by_input=by_input)]
    held = form.matrix(form.rounded(numbers_RC), shape, room, torch.float32, by_input=by_input).dense()
    return held.t() if by_input else held


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().sum())


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("form", [FourBits(), EightBits(), EightBitRows()], ids=lambda form: type(form).__name__)
def test_a_form_holds_nearly_the_same_numbers(form: Form, by_input: bool) -> None:
    """By output, and by input where the form allows it. 16-bit numbers are rounded exactly as in fp32."""
    if not form.fits((ROWS, COLUMNS), by_input=by_input):
        pytest.skip("this form cannot be stored by input")
    exact = numbers()
    limit = {FourBits: 0.09, EightBits: 0.009, EightBitRows: 0.014}[type(form)]

    assert error(matrix(form, exact, by_input=by_input), exact) < limit**2 * float(exact.square().sum())
    assert torch.equal(matrix(form, exact.bfloat16()), matrix(form, exact.bfloat16().float()))


@EACH_FOR_WIDENING
def test_four_bits_are_as_good_as_a_long_search(instructions: int) -> None:
    """A fifth less squared error than min-max rounding, and near the best of a search with 900 starts."""
    exact = numbers()
    plain = gguf.dequantize(gguf.quantize(exact.numpy(), GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    with restricted(instructions):
        found = error(matrix(FourBits(), exact), exact)

    assert found < 0.8 * error(torch.from_numpy(plain), exact)
    assert found < 1.03 * _searched(exact.view(-1, 32))


@EACH_FOR_WIDENING
def test_four_bits_are_the_same_codes_on_every_processor(instructions: int) -> None:
    """To the last bit, also where the number of blocks does not fill the last vector."""
    exact = torch.stack([numbers(seed)[:45].flatten() for seed in range(3)])
    expected = FourBits().rounded(exact)
    with restricted(instructions):
        found = FourBits().rounded(exact)

    assert torch.equal(found, expected)


def _searched(blocks: Tensor) -> float:
    """The least squared error of a search with many starts and rounds, summed over blocks; in fp64."""
    blocks = blocks.double()
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    for below in np.linspace(-0.05, 0.3, 30):
        for above in np.linspace(-0.05, 0.3, 30):
            minimum, scale = low + below * (high - low), (high - low) * (1 - below - above) / 15
            for _ in range(4):
                codes = ((blocks - minimum) / scale).round().clamp(0, 15)
                centred = codes - codes.mean(1, keepdim=True)
                scale = (centred * blocks).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True)
                minimum = blocks.mean(1, keepdim=True) - scale * codes.mean(1, keepdim=True)
                errors = (codes * scale + minimum - blocks).square().sum(1, keepdim=True)
                best = torch.fmin(best, errors)
    return float(best.sum())


@pytest.mark.parametrize("value", [0.0, 1.0, -0.375, 3e-8, 65504.0])
@pytest.mark.parametrize("form", [FourBits(), EightBits(), EightBitRows()], ids=lambda form: type(form).__name__)
def test_equal_numbers_stay_what_they_are(form: Form, value: float) -> None:
    """Up to the precision of float16."""
    exact = torch.full((3, 64), value)
    torch.testing.assert_close(matrix(form, exact), exact, rtol=1e-3, atol=3e-8)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, -70_000.0])
def test_numbers_without_codes_are_refused(value: float) -> None:
    """They do not become other numbers silently."""
    exact = numbers()
    exact[70, 5] = value
    for form in (FourBits(), EightBits(), EightBitRows()):
        with pytest.raises(ValueError, match="holds numbers that are infinite, not a number, or too large for float16"):
            form.rounded(exact)


def test_a_refused_weight_is_named() -> None:
    """The error names the weight and the checkpoint."""
    model = tiny_model("llama")
    model.get_submodule("model.layers.1.mlp.up_proj").weight.data[0, 0] = torch.nan
    with pytest.raises(LoadError, match=r"'model': model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are inf"):
        round_(model, "int8")


def test_which_matrix_gets_which_form() -> None:
    """A matrix whose shape fits no form stays plain."""
    wide = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    found = {}
    for kind in ("int4", "int8"):
        model = tiny_model("llama", **wide)
        round_(model, kind)
        weights = read_weights(model)
        assert weights is not None
        layer = weights.layers[0]
        found[kind] = [
            (part.format, part.row_bytes)
            for part in (weights.embedding, *layer.query_key_value.parts[:1], layer.feed_forward.contract)
        ]
    odd = tiny_model("llama", **{**wide, "intermediate_size": 52})

    assert found == {
        "int4": [("grouped8", 72), ("grouped4", 40), ("grouped4", 32)],
        "int8": [("int8", 68), ("int8", 68), ("grouped8", 64)],
    }
    assert not [place.path for place in places(odd, "int4") if "down" in place.path]


def test_tied_ends_share_their_codes() -> None:
    """A tied model has one table."""
    model = tiny_model("qwen2")
    round_(model, "int4")
    head = model.get_output_embeddings()

    assert isinstance(head, MatrixLinear)
    assert head.matrix.planes[0].data_ptr() == model.get_input_embeddings().matrix.planes[0].data_ptr()
    assert len(matrices(model)) == 1 + 3 * 6


def test_norms_stay_as_the_checkpoint_has_them() -> None:
    """They stay in fp32 while the model has another dtype, for steps that read them so."""
    model = tiny_model("llama")
    norm = model.get_submodule("model.norm").weight
    norm.data.add_(torch.rand(norm.shape) * 0.01)
    exact = norm.detach().clone()
    quantise_(model, places(model, "int4"), rounding(model, "m"), torch.bfloat16, "m")
    weights = read_weights(model)
    assert weights is not None

    assert model.dtype == weights.dtype == torch.bfloat16
    assert torch.equal(weights.final_norm.weight, exact)
