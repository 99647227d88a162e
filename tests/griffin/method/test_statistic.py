"""Equation 1 by hand, and as a running sum."""

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedModel

from griffin.method.statistic import FlockingStatistic, magnitude, relative_energy
from griffin.model.families import feed_forwards
from tests.griffin import oracle
from tests.tiny import tiny_model


def test_worked_example() -> None:
    """Two tokens, (3, 4, 0, 0) and (0, 5, 0, 12): unit rows (.6, .8, 0, 0), (0, 5/13, 0, 12/13); norms by column."""
    z_TF = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 5.0, 0.0, 12.0]])

    expected = torch.tensor([0.6, (0.64 + 25 / 169) ** 0.5, 0.0, 12 / 13])
    assert_close(relative_energy(z_TF).sqrt(), expected)


def test_all_zero_token_counts_nothing() -> None:
    """A token that activates no neuron has no direction; the others are not disturbed by it."""
    z_TF = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, -4.0, 0.0, 0.0]])

    assert_close(relative_energy(z_TF), torch.tensor([0.36, 0.64, 0.0, 0.0]))


def test_vanishing_tokens_count_nothing() -> None:
    """Activations whose squares leave the range of fp32 are as good as none."""
    z_TF = torch.tensor([[1e-20, 0.0, 2e-20, 0.0], [3.0, -4.0, 0.0, 0.0]])

    assert_close(relative_energy(z_TF), torch.tensor([0.36, 0.64, 0.0, 0.0]))


def test_only_zero_tokens_give_zeros() -> None:
    """Nothing activated: all neurons are worth nothing, not NaN."""
    assert_close(relative_energy(torch.zeros(3, 4)), torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_fp32(dtype: torch.dtype) -> None:
    """Squares beyond the half range do not overflow."""
    z_TF = torch.full((1, 4), 6e4, dtype=dtype)

    assert_close(relative_energy(z_TF), torch.full((4,), 0.25))


def test_chunks_add_up_to_one_shot(model: PreTrainedModel) -> None:
    """The statistic of a prompt read in chunks is that of the prompt read at once, and equation 1's."""
    ids = torch.randint(3, 128, (1, 40), generator=torch.Generator().manual_seed(0))
    statistic = FlockingStatistic(feed_forwards(model))
    with torch.no_grad():
        with statistic.collecting(), oracle.recorded(model) as activations:
            model(ids)
        one_shot = statistic.value()
        statistic.reset()
        cache = None
        with statistic.collecting():
            for chunk in ids.split(11, dim=1):
                cache = model(chunk, past_key_values=cache, use_cache=True).past_key_values

    assert_close(statistic.value(), one_shot, atol=1e-5, rtol=1e-4)
    assert_close(one_shot, torch.stack([oracle.statistic(z_TF) for z_TF in activations]))


def test_nothing_is_collected_after_the_block() -> None:
    """Hooks are gone once the prompt is read: generated tokens do not count."""
    model = tiny_model("llama")
    statistic = FlockingStatistic(feed_forwards(model))
    with statistic.collecting():
        model(torch.tensor([[5, 6, 7]]))
    before = statistic.value()
    model(torch.tensor([[8, 9]]))

    assert_close(statistic.value(), before, atol=0, rtol=0)


def test_magnitude_of_gated_and_plain_blocks() -> None:
    """Row norms of W_1, times those of W_g where there is one; the same for fused and for transposed storage."""
    llama, phi3, gpt2 = (tiny_model(name) for name in ("llama", "phi3", "gpt2"))
    mlp = llama.model.layers[0].mlp
    fused = phi3.model.layers[0].mlp.gate_up_proj.weight

    assert_close(magnitude(feed_forwards(llama))[0], mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1))
    assert_close(magnitude(feed_forwards(phi3))[0], fused[:52].norm(dim=1) * fused[52:].norm(dim=1))
    assert_close(magnitude(feed_forwards(gpt2))[0], gpt2.transformer.h[0].mlp.c_fc.weight.norm(dim=0))
