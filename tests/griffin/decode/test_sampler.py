"""Filters on distributions of four numbers, draws by seed, and equal draws in all ways to draw."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from griffin.decode.logprobs import Logprobs, logprobs
from griffin.decode.sampler import EVERYTHING, GREEDY, PLAIN, Kind, Sampler
from griffin.request import Sampling

CPU = torch.device("cpu")
# Only the operations that a request needs; or all operations, as in a graph.
KINDS = pytest.mark.parametrize("kind", [None, EVERYTHING], ids=["needed", "everything"])


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def sample(logits: Tensor, sampling: Sampling, count: int = 1, kind: Kind | None = None) -> list[int]:
    """Ids drawn one after the other from the same logits."""
    sampler = Sampler(len(logits), CPU)
    sampler.load(sampling, (), {0})
    drawn = []
    for _ in range(count):
        sampler.draw(logits, kind)
        drawn.append(sampler.drawn().id)
    return drawn


def frequencies(logits: Tensor, sampling: Sampling, kind: Kind | None, draws: int = 4000) -> Tensor:
    ids = torch.tensor(sample(logits, sampling, draws, kind))
    return torch.bincount(ids, minlength=len(logits)) / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_k=2), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_k=1), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(top_p=0.75), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(top_p=0.01), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(top_p=0), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(top_k=2**63), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(min_p=0.2), [10 / 19, 6 / 19, 3 / 19, 0.0]),
        (Sampling(min_p=1.0), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(top_k=3, top_p=0.6), [0.625, 0.375, 0.0, 0.0]),
    ],
)
@KINDS
def test_filters(sampling: Sampling, expected: list[float], kind: Kind | None) -> None:
    """Each filter on (.5, .3, .15, .05): tokens that pass are drawn at their new probability, others never."""
    found = frequencies(logits_of(0.5, 0.3, 0.15, 0.05), replace(sampling, seed=1), kind)

    # Three standard deviations of 4,000 draws.
    torch.testing.assert_close(found, torch.tensor(expected), atol=0.025, rtol=0)
    assert [value > 0 for value in found.tolist()] == [value > 0 for value in expected]


@KINDS
def test_order_of_ids_does_not_matter_to_top_p(kind: Kind | None) -> None:
    """The most probable tokens form the nucleus, wherever they are in the vocabulary."""
    found = frequencies(logits_of(0.05, 0.5, 0.15, 0.3), Sampling(top_p=0.75, seed=2), kind)

    torch.testing.assert_close(found, torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=0.025, rtol=0)


@KINDS
def test_top_k_of_equals_keeps_k(kind: Kind | None) -> None:
    """Half-precision logits are often equal; top_k=1 is greedy all the same."""
    assert len(set(sample(torch.tensor([2.0, 2.0, 2.0, 1.0]), Sampling(top_k=1, seed=3), 30, kind))) == 1


@KINDS
@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-30, 5e-324])
def test_tiny_temperature_is_greedy_not_broken(temperature: float, kind: Kind | None) -> None:
    """No number overflows on the way to zero."""
    assert sample(torch.tensor([10.0, 11.0, -5.0]), Sampling(temperature=temperature, seed=0), kind=kind) == [1]


@KINDS
def test_temperature_zero_takes_the_most_probable(kind: Kind | None) -> None:
    """Temperature 0 is greedy, whatever else is set."""
    assert sample(torch.tensor([1.0, 3.0, 2.0]), Sampling(temperature=0, top_p=0.1, seed=1), kind=kind) == [1]


def test_seed_repeats_and_does_not_touch_the_global_stream() -> None:
    """Draws come from the request's own stream. Without a seed, they differ each time."""
    logits = torch.zeros(1000)
    state = torch.random.get_rng_state()
    first, second = sample(logits, Sampling(seed=5), 30), sample(logits, Sampling(seed=5), 30)

    assert first == second
    assert len(set(first)) > 20
    assert sample(logits, Sampling(seed=6), 30) != first
    assert sample(logits, Sampling(), 30) != sample(logits, Sampling(), 30)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, -1, 2**40, 2**63 + 5, -(2**70)])
def test_any_integer_is_a_seed(seed: int) -> None:
    """Each gives other draws."""
    logits = torch.zeros(1000)

    assert sample(logits, Sampling(seed=seed), 10) == sample(logits, Sampling(seed=seed), 10)
    assert sample(logits, Sampling(seed=seed), 10) != sample(logits, Sampling(seed=seed + 1), 10)


def test_draws_are_spread_as_chance_spreads_them() -> None:
    """Chi-squared test of tokens, and of pairs of draws in a row."""
    ids = torch.tensor(sample(torch.zeros(50), Sampling(seed=8), 20_000))
    pairs = ids[:-1] * 50 + ids[1:]
    for values, cells in ((ids, 50), (pairs, 2500)):
        expected = len(values) / cells
        squares = (torch.bincount(values, minlength=cells) - expected).square().sum() / expected

        # Within four standard deviations of the mean, which is the number of degrees of freedom.
        assert abs(float(squares) - (cells - 1)) < 4 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"top_k": 40},
        {"top_k": 2000, "top_p": 0.5},
        {"min_p": 0.02, "temperature": 1.3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {7: 4.0}, "min_tokens": 3, "logprobs": 4},
    ],
)
def test_a_graphs_operations_draw_what_the_needed_ones_draw(changes: dict[str, Any]) -> None:
    """New logits for each token, with more tokens than the sampler first sorts for the nucleus."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(25, 3000, generator=generator) * 3
    sampling = Sampling(seed=9, max_tokens=30, **changes)
    samplers = [Sampler(3000, CPU) for _ in range(2)]
    for sampler in samplers:
        # An earlier sequence must leave no trace.
        sampler.load(Sampling(presence_penalty=1.0, logit_bias={1: 9.0}), (), ())
        sampler.draw(logits[0], EVERYTHING)
        sampler.load(sampling, (5, 6), {0})
    for row in logits:
        samplers[0].draw(row)
        samplers[1].draw(row, EVERYTHING)

        assert samplers[0].drawn() == samplers[1].drawn()


def test_kinds_cover_what_they_should() -> None:
    """A kind covers another if it has all its operations."""
    assert [kind.covers(PLAIN) for kind in (GREEDY, PLAIN, EVERYTHING)] == [False, True, True]


def test_logprobs_are_the_models_own() -> None:
    """Filters do not change them. The chosen token's value equals its value among the most probable tokens."""
    logits = torch.stack([logits_of(0.5, 0.3, 0.2) + 7, logits_of(0.1, 0.2, 0.7) - 7])
    first, second = logprobs(logits, torch.tensor([1, 2]), 2)

    assert first.chosen == pytest.approx(math.log(0.3))
    assert first.top == (pytest.approx((0, math.log(0.5))), pytest.approx((1, math.log(0.3))))
    assert second.chosen == second.top[0][1]
    assert logprobs(logits, torch.tensor([1, 2]), 0)[0] == Logprobs(first.chosen)
    assert len(logprobs(logits, torch.tensor([1, 2]), 20)[0].top) == 3


def draws(sampling: Sampling, logits: list[float], count: int, prompt: tuple[int, ...] = ()) -> list[int]:
    """Greedy ids drawn one after the other from the same logits; id 0 ends a sequence."""
    sampler = Sampler(len(logits), CPU)
    sampler.load(sampling, prompt, {0})
    drawn = []
    for _ in range(count):
        sampler.draw(torch.tensor(logits))
        drawn.append(sampler.drawn().id)
    return drawn


@pytest.mark.parametrize(
    ("changes", "prompt", "expected"),
    [
        ({}, (), [1, 1, 1, 1]),
        # 3.0 becomes 2.4, below 2.5; the penalty counts only once.
        ({"presence_penalty": 0.6}, (), [1, 2, 1, 1]),
        # Id 1 goes from 3.0 to 2.4 and 1.8, id 2 from 2.5 to 1.9; id 0 stays at 2.0.
        ({"frequency_penalty": 0.6}, (), [1, 2, 1, 0]),
        ({"frequency_penalty": -1}, (), [1, 1, 1, 1]),
        ({"presence_penalty": 0.6}, (1,), [1, 2, 1, 1]),
        # The prompt counts: 3.0 becomes 1.5 from the start.
        ({"repetition_penalty": 2.0}, (1,), [2, 0, 1, 1]),
        ({"repetition_penalty": 2.0}, (1, 2), [0, 1, 1, 1]),
        ({"logit_bias": {3: 5.0}}, (), [3, 3, 3, 3]),
        ({"logit_bias": {1: -100.0, 2: -100.0}}, (), [0, 0, 0, 0]),
        ({"logit_bias": {0: 10.0}, "min_tokens": 2}, (), [1, 1, 0, 0]),
    ],
)
def test_adjustments(changes: dict[str, Any], prompt: tuple[int, ...], expected: list[int]) -> None:
    """Each adjustment on logits of 2, 3, 2.5 and -1."""
    assert draws(Sampling(temperature=0, **changes), [2.0, 3.0, 2.5, -1.0], 4, prompt) == expected


def test_repetition_makes_negative_logits_smaller() -> None:
    """A negative logit is multiplied by the penalty: to divide it would raise it."""
    assert draws(Sampling(temperature=0, repetition_penalty=2.0), [-9.0, -1.0, -1.5], 3, (1,)) == [2, 1, 1]


def test_adjusting_leaves_the_logits_alone() -> None:
    """The caller's logits do not change: log-probabilities come from them."""
    logits = torch.tensor([1.0, 2.0])
    sample(logits, Sampling(logit_bias={0: 5.0}))

    assert logits.tolist() == [1.0, 2.0]


@KINDS
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=2, top_p=0.9, frequency_penalty=1.0, repetition_penalty=1.5, min_tokens=4, logprobs=2),
    ],
    ids=["greedy", "seeded", "everything"],
)
def test_draws_can_be_taken_back(sampling: Sampling, kind: Kind | None) -> None:
    """After ``back``, draws go on from the mark as if nothing had been drawn since; also a second time."""
    logits = torch.linspace(0, 3, 24).view(3, 8)
    expected = sample(logits[0], sampling, 6, kind)
    sampler = Sampler(8, CPU)
    sampler.load(sampling, (), {0})
    found = []
    for _ in range(6):
        sampler.mark()
        for row in (2, 1):
            sampler.draw(logits[row].flip(0), kind)
        sampler.back()
        sampler.take(7, logits[1])
        sampler.back()
        sampler.draw(logits[0], kind)
        found.append(sampler.drawn().id)

    assert found == expected


def test_a_token_that_is_taken_counts_as_drawn() -> None:
    """For penalties and the position in the sequence. Its log-probability comes from the given logits."""
    sampling = Sampling(seed=3, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2, logprobs=2)
    logits = torch.linspace(0, 1, 12)
    drawing, taking = Sampler(12, CPU), Sampler(12, CPU)
    for sampler in (drawing, taking):
        sampler.load(sampling, (), ())
    for number in range(9):
        drawing.draw(logits)
        if number % 3:
            taking.take(int(drawing.id), logits)
        else:
            taking.draw(logits)

        assert taking.drawn() == drawing.drawn()


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", -0.1), ("top_p", 1.1),
     ("top_k", -1), ("min_p", 1.5), ("max_tokens", 0), ("repetition_penalty", 0.0), ("presence_penalty", math.nan),
     ("frequency_penalty", math.inf), ("min_tokens", 17), ("logprobs", -1), ("logprobs", 21),
     ("logit_bias", {1: math.inf}), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: 1e31}), ("stop_token_ids", {-1}),
     ("temperature", 1e31), ("presence_penalty", -1e31), ("frequency_penalty", 10**400), ("top_p", math.nan),
     ("min_p", math.nan), ("repetition_penalty", math.nan)],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    """The error names the field, its range and its value."""
    with pytest.raises(ValueError, match=f"{field} must be .* but is "):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-5, logit_bias={0: 1e30, 1: -1e30}, repetition_penalty=100),
        Sampling(temperature=1e30, presence_penalty=1e30, frequency_penalty=-1e30),
        Sampling(repetition_penalty=0.01, logit_bias={0: 1e30}, min_p=5e-324, top_p=1 - 2**-53),
        Sampling(temperature=5e-324, top_p=5e-324, min_p=5e-324, top_k=2**100),
        Sampling(min_tokens=2**100, max_tokens=2**100, seed=-(2**100)),
    ],
)
@KINDS
def test_whatever_is_allowed_can_be_drawn(sampling: Sampling, kind: Kind | None) -> None:
    """The largest and smallest numbers cause neither an error nor a NaN."""
    drawn = sample(torch.tensor([80.0, -80.0, 0.0, 1.0]), sampling, 20, kind)

    assert set(drawn) <= {0, 1, 2, 3}
    if sampling.min_tokens:
        assert 0 not in drawn
