"""Neurons chosen from small statistics, where the answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from griffin.method.strategies import STRATEGIES, sample, top_k, top_k_sample
from griffin.neurons import kept_count


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_top_k_keeps_the_highest_in_order_of_index() -> None:
    """In each layer, sorted by index and not by score."""
    statistic = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]])

    assert top_k(statistic, 2, seeded()).tolist() == [[1, 3], [0, 1]]


def test_ties_break_by_index() -> None:
    """If scores are equal at the cut, the lower index stays."""
    statistic = torch.tensor([[0.5, 0.5, 0.9, 0.5], [0.0, 0.0, 0.0, 0.0]])

    assert top_k(statistic, 2, seeded()).tolist() == [[0, 2], [0, 1]]


def test_broken_activations_still_give_k_neurons() -> None:
    """NaN counts as zero, so that the server answers instead of failing."""
    assert top_k(torch.tensor([[float("nan"), 0.2, float("nan"), 0.1]]), 3, seeded()).tolist() == [[0, 1, 3]]


@pytest.mark.parametrize(
    ("width", "sparsity", "kept"),
    [(1536, 0.5, 768), (11008, 0.3, 7706), (100, 0.29, 71), (8, 0.99, 1), (1536, 0.0, 1536), (10, 1e-9, 10)],
)
def test_kept_count_is_rounded_and_at_least_one(width: int, sparsity: float, kept: int) -> None:
    """k = round((1 - sparsity) F); rounding of floats does not remove a neuron."""
    assert kept_count(width, sparsity) == kept


@given(st.integers(1, 40), st.data(), st.sampled_from(sorted(STRATEGIES)), st.integers(0, 99))
def test_every_strategy_gives_k_distinct_sorted_indices(width: int, data: st.DataObject, name: str, seed: int) -> None:
    """For any statistic, also with zeros and equal values."""
    k = data.draw(st.integers(1, width))
    values = st.sampled_from([0.0, 0.5, 0.5, 1.0, 3.0])
    statistic = torch.tensor([data.draw(st.lists(values, min_size=width, max_size=width)) for _ in range(2)])
    chosen = STRATEGIES[name](statistic, k, seeded(seed))

    assert chosen.shape == (2, k)
    assert all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < width for row in chosen.tolist())


def test_sample_draws_by_weight() -> None:
    """Two draws from weights 4 : 2 : 1 : 1 include the first neuron about 8 times in 10."""
    statistic = torch.tensor([[4.0, 2.0, 1.0, 1.0]])
    generator = seeded()
    hits = sum(0 in sample(statistic, 2, generator).tolist()[0] for _ in range(2000))

    # Drawn first: 1/2. Drawn second: after neuron 1, 1/4 * 4/6; after 2 or 3, 1/8 * 4/7 each. Sum: 0.810.
    assert abs(hits / 2000 - 0.810) < 0.03


def test_sample_prefers_any_weight_to_none() -> None:
    """Neurons without weight come last."""
    assert sample(torch.tensor([[0.0, 1e-6, 0.0, 1e-6]]), 2, seeded()).tolist() == [[1, 3]]


def test_top_k_sample_keeps_the_upper_half_for_sure() -> None:
    """The best k/2 always stay; the rest differs from draw to draw."""
    statistic = torch.arange(16.0).view(1, 16) + 1
    draws = [top_k_sample(statistic, 8, seeded(seed)).tolist()[0] for seed in range(20)]

    assert all({12, 13, 14, 15} <= set(draw) for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1
