"""Equation 1 by hand, and as a running sum."""

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedModel

from griffin.method.statistic import PromptStatistic, magnitude, relative_energy, sum_of_squares
from griffin.model.families import feed_forwards
from tests.griffin import oracle
from tests.tiny import tiny_model


def test_worked_example() -> None:
    """(3, 4, 0, 0) and (0, 5, 0, 12) have unit rows (.6, .8, 0, 0), (0, 5/13, 0, 12/13). Then norms by column."""
    z_TF = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 5.0, 0.0, 12.0]])

    expected = torch.tensor([0.6, (0.64 + 25 / 169) ** 0.5, 0.0, 12 / 13])
    assert_close(relative_energy(z_TF).sqrt(), expected)


def test_all_zero_token_counts_nothing() -> None:
    """A token that activates no neuron has no direction, and does not change the others."""
    z_TF = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, -4.0, 0.0, 0.0]])

    assert_close(relative_energy(z_TF), torch.tensor([0.36, 0.64, 0.0, 0.0]))


def test_vanishing_tokens_count_nothing() -> None:
    """Activations whose squares underflow in fp32 count as zero."""
    z_TF = torch.tensor([[1e-20, 0.0, 2e-20, 0.0], [3.0, -4.0, 0.0, 0.0]])

    assert_close(relative_energy(z_TF), torch.tensor([0.36, 0.64, 0.0, 0.0]))


def test_only_zero_tokens_give_zeros() -> None:
    """Without any activation, the statistic is zero, not NaN."""
    assert_close(relative_energy(torch.zeros(3, 4)), torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_fp32(dtype: torch.dtype) -> None:
    """Squares beyond the range of half precision do not overflow."""
    z_TF = torch.full((1, 4), 6e4, dtype=dtype)

    assert_close(relative_energy(z_TF), torch.full((4,), 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_squares_leave_the_activations_as_they_are(dtype: torch.dtype) -> None:
    """They are a view of what the model still multiplies."""
    z_TF = torch.randn(7, 40).to(dtype)
    before_TF = z_TF.clone()

    assert_close(sum_of_squares(z_TF), before_TF.double().square().sum(dim=0).float())
    relative_energy(z_TF)
    assert torch.equal(z_TF, before_TF)


def test_chunks_add_up_to_one_shot(model: PreTrainedModel) -> None:
    """A prompt in chunks has the statistic of the whole prompt, which is equation 1."""
    ids = torch.randint(3, 128, (1, 40), generator=torch.Generator().manual_seed(0))
    statistic = PromptStatistic(feed_forwards(model))
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
    """The hooks are removed after the prompt: generated tokens do not count."""
    model = tiny_model("llama")
    statistic = PromptStatistic(feed_forwards(model))
    with statistic.collecting():
        model(torch.tensor([[5, 6, 7]]))
    before = statistic.value()
    model(torch.tensor([[8, 9]]))

    assert_close(statistic.value(), before, atol=0, rtol=0)


def test_means_of_inputs_gates_and_ups(model: PreTrainedModel) -> None:
    """In every family, over all tokens but the first; in chunks as at once."""
    ids = torch.randint(3, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    statistic = PromptStatistic(feed_forwards(model))
    with torch.no_grad(), oracle.inputs(model) as inputs:
        cache = None
        with statistic.collecting():
            for chunk in ids.split(6, dim=1):
                cache = model(chunk, past_key_values=cache, use_cache=True).past_key_values
        inputs.clear()
        model(ids)

    for layer, (x_TD, block) in enumerate(zip(inputs, feed_forwards(model), strict=True)):
        means = [x_TD[1:].mean(dim=0)]
        with torch.no_grad():
            expanded_TF = torch.cat([projection(x_TD[1:]) for projection in block.expand], dim=-1)
        gate_TF, *up_TF = expanded_TF.split(52, dim=-1)
        sizes_F = torch.zeros(52)
        if up_TF:
            # Nineteen tokens, and four more on which each neuron has the mean of all neurons.
            squares_F = up_TF[0].square().sum(dim=0)
            sizes_F = ((squares_F + 4 * squares_F.mean() / 19) / 23).sqrt()
        means += [gate_TF.mean(dim=0), sizes_F]
        found = (statistic.input_means()[layer], statistic.gate_means()[layer], statistic.up_sizes()[layer])
        for ours, theirs in zip(found, means, strict=True):
            assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_one_token_has_no_means(family: str) -> None:
    """The only token of a prompt does not count for means, so the gates' means are their biases."""
    model = tiny_model(family)
    statistic = PromptStatistic(feed_forwards(model))
    statistic.reset(latest=4)
    with statistic.collecting(), torch.no_grad():
        model(torch.tensor([[5]]))
    biases = [module.bias for module in oracle.first_expands(model)]
    own = [torch.zeros(52) if bias is None else bias[:52].detach() for bias in biases]

    assert statistic.tokens == 1
    assert not statistic.input_means().any()
    assert not statistic.up_sizes().any()
    assert_close(statistic.gate_means(), torch.stack(own))
    assert [len(known) for known in statistic.latest()] == [1] * 3


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_latest_tokens(chunk: int) -> None:
    """With any chunks: the activations of the last tokens, without the first token if there are others."""
    model, ids = tiny_model("llama"), torch.randint(3, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    statistic = PromptStatistic(feed_forwards(model))
    with torch.no_grad(), oracle.inputs(model) as inputs, oracle.recorded(model) as activations:
        model(ids)
    for count in (2, 20):
        for latest in (1, 4, 19, 30):
            statistic.reset(latest)
            cache = None
            with statistic.collecting(), torch.no_grad():
                for part in ids[:, :count].split(chunk, dim=1):
                    cache = model(part, past_key_values=cache, use_cache=True).past_key_values
            for layer, known in enumerate(statistic.latest()):
                for ours, theirs in ((known.x, inputs[layer]), (known.z, activations[layer])):
                    assert_close(ours, theirs[1:count][-latest:], atol=1e-5, rtol=1e-4)


def test_copies_can_be_resumed() -> None:
    """Later tokens do not change a copy. It has the latest tokens only if they were asked for."""
    model, ids = tiny_model("llama"), torch.randint(3, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    statistic, other = (PromptStatistic(feed_forwards(model)) for _ in range(2))
    for each in (statistic, other):
        each.reset(latest=4)

    def count(into: PromptStatistic, part: torch.Tensor) -> None:
        with into.collecting(), torch.no_grad():
            model(part)

    count(statistic, ids[:, :12])
    known, few = statistic.sums(), statistic.sums(latest=False)
    count(statistic, ids[:, 12:])
    other.resume(known)

    assert other.tokens == few.tokens == 12
    assert [len(each) for each in other.latest()] == [4] * 3
    assert not few.latest
    count(other, ids[:, 12:])
    for ours, theirs in zip(other.sums().values, statistic.sums().values, strict=True):
        assert ours.equal(theirs)
    other.resume(few)
    assert other.latest() == ()
    count(other, ids[:, 12:15])
    assert [len(each) for each in other.latest()] == [3] * 3


def test_held_tokens_count_later() -> None:
    """Held tokens count once it is known how many of the first ones stay, also after the block."""
    model, ids = tiny_model("llama"), torch.randint(3, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    statistic, other = (PromptStatistic(feed_forwards(model)) for _ in range(2))
    for each in (statistic, other):
        each.reset(latest=4)
    with statistic.holding() as count, torch.no_grad():
        model(ids)
    assert statistic.tokens == 0
    count(11)
    with other.collecting(), torch.no_grad():
        model(ids[:, :11])

    assert statistic.tokens == 11
    for ours, theirs in zip(statistic.sums().values, other.sums().values, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for held, seen in zip(statistic.latest(), other.latest(), strict=True):
        assert_close(held.z, seen.z, atol=1e-5, rtol=1e-4)


def test_magnitude_of_gated_and_plain_blocks() -> None:
    """Row norms of W_1, times those of W_g if there is a gate; the same in fused and transposed storage."""
    llama, phi3, gpt2 = (tiny_model(name) for name in ("llama", "phi3", "gpt2"))
    mlp = llama.model.layers[0].mlp
    fused = phi3.model.layers[0].mlp.gate_up_proj.weight

    assert_close(magnitude(feed_forwards(llama))[0], mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1))
    assert_close(magnitude(feed_forwards(phi3))[0], fused[:52].norm(dim=1) * fused[52:].norm(dim=1))
    assert_close(magnitude(feed_forwards(gpt2))[0], gpt2.transformer.h[0].mlp.c_fc.weight.norm(dim=0))
