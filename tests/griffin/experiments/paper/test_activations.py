"""The similarity of tokens' activations, worked by hand, and the activations of every family."""

import pytest
import torch
from transformers import PreTrainedModel

from griffin.experiments.paper.activations import (
    TOKENS_AT_ONCE,
    Flocking,
    flocking,
    relative_magnitudes,
    visit_activations,
)
from tests.griffin import oracle


def test_relative_magnitudes() -> None:
    """Unit length without signs. A token without activations stays zero."""
    z_TF = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, -2.0]])

    torch.testing.assert_close(relative_magnitudes(z_TF), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]]))


def test_two_tokens() -> None:
    """(1, 0) and (0.6, 0.8): their cosine is 0.6. Over both orders of the second, the mean is (0.6 + 0.8) / 2."""
    found = flocking(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))

    assert found.similarity == pytest.approx(0.6)
    assert found.shuffled == pytest.approx(0.7)
    assert found.strength == pytest.approx((0.6 - 0.7) / (1 - 0.7))


def test_it_is_the_mean_over_all_pairs() -> None:
    """The sums agree with each pair computed alone, and with a mean over many shuffles."""
    generator = torch.Generator().manual_seed(0)
    unit_TF = relative_magnitudes(torch.randn(6, 10, generator=generator).exp() * torch.arange(10))
    first, second = torch.triu_indices(6, 6, offset=1)
    orders = [torch.rand(6, 10, generator=generator).argsort(dim=1) for _ in range(3000)]
    shuffles = torch.stack([unit_TF.gather(1, order) for order in orders])
    found = flocking(unit_TF)

    assert found.similarity == pytest.approx(float((unit_TF @ unit_TF.T)[first, second].mean()), abs=1e-6)
    assert found.shuffled == pytest.approx(float((shuffles @ shuffles.mT)[:, first, second].mean()), abs=0.003)


def test_tokens_that_are_all_the_same() -> None:
    """Their strength is 1. A token without activations does not count."""
    same = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [0.6, 0.8, 0.0]])

    assert flocking(same).strength == pytest.approx(1)
    assert flocking(same) == flocking(same[[0, 1, 3]])


def test_more_tokens_than_are_summed_at_once() -> None:
    """Every pair of tokens counts, except tokens without activations."""
    generator = torch.Generator().manual_seed(0)
    unit_TF = relative_magnitudes(torch.randn(2 * TOKENS_AT_ONCE + 5, 7, generator=generator) * torch.arange(7))
    unit_TF[[0, TOKENS_AT_ONCE, 2 * TOKENS_AT_ONCE + 4]] = 0
    tokens_TF = unit_TF[unit_TF.sum(dim=1) > 0].double()
    first, second = torch.triu_indices(len(tokens_TF), len(tokens_TF), offset=1)
    sums_T = tokens_TF.sum(dim=1)
    found = flocking(unit_TF)

    assert len(tokens_TF) == 2 * TOKENS_AT_ONCE + 2
    assert found.similarity == pytest.approx(float((tokens_TF @ tokens_TF.T)[first, second].mean()), rel=1e-6)
    assert found.shuffled == pytest.approx(float((sums_T[first] * sums_T[second]).mean() / 7), rel=1e-6)


def test_no_two_tokens() -> None:
    """Without a pair, the similarity is 0."""
    assert flocking(torch.zeros(3, 4)) == flocking(torch.tensor([[0.6, 0.8]])) == Flocking(0.0, 0.0)


def test_activations_of_every_family(model: PreTrainedModel) -> None:
    """In order of the layers, ``(T, F)``. Afterwards the model has no hooks."""
    ids = torch.randint(3, 128, (1, 17), generator=torch.Generator().manual_seed(1))
    seen: dict[int, torch.Tensor] = {}
    visit_activations(model, ids[0].tolist(), lambda layer, z_TF: seen.update({layer: z_TF.clone()}))
    with torch.no_grad(), oracle.recorded(model) as expected:
        model(ids)

    assert list(seen) == list(range(3))
    assert len(expected) == 3
    for layer, z_TF in enumerate(expected):
        torch.testing.assert_close(seen[layer], z_TF, atol=1e-5, rtol=1e-4)
