"""Filters on four-number distributions, and draws by seed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from griffin.sampling import Logprobs, Sampler, Sampling, filtered_probabilities, logprobs, sample

CPU = torch.device("cpu")


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_k=2), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_k=1), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(top_p=0.75), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(top_p=0.01), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(min_p=0.2), [10 / 19, 6 / 19, 3 / 19, 0.0]),
        (Sampling(min_p=1.0), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(top_k=3, top_p=0.6), [0.625, 0.375, 0.0, 0.0]),
    ],
)
def test_filters(sampling: Sampling, expected: list[float]) -> None:
    """Each filter on (.5, .3, .15, .05)."""
    torch.testing.assert_close(
        filtered_probabilities(logits_of(0.5, 0.3, 0.15, 0.05), sampling), torch.tensor(expected)
    )


def test_order_of_ids_does_not_matter_to_top_p() -> None:
    """The nucleus is by probability, wherever its tokens stand."""
    kept = filtered_probabilities(logits_of(0.05, 0.5, 0.15, 0.3), Sampling(top_p=0.75))

    torch.testing.assert_close(kept, torch.tensor([0.0, 0.625, 0.0, 0.375]))


def test_top_k_of_equals_keeps_k() -> None:
    """Half-precision logits tie often; top_k=1 is greedy all the same."""
    probabilities = filtered_probabilities(torch.tensor([2.0, 2.0, 2.0, 1.0]), Sampling(top_k=1))

    assert sorted(probabilities.tolist()) == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-30, 5e-324])
def test_tiny_temperature_is_greedy_not_broken(temperature: float) -> None:
    """No overflow on the way to zero."""
    sampling = Sampling(temperature=temperature, seed=0)

    assert sample(torch.tensor([10.0, 11.0, -5.0]), sampling, sampling.generator(CPU)) == 1


def test_temperature_zero_takes_the_most_probable() -> None:
    """Greedy whatever else is set."""
    sampling = Sampling(temperature=0, top_p=0.1, seed=1)

    assert sample(torch.tensor([1.0, 3.0, 2.0]), sampling, sampling.generator(CPU)) == 1


def test_seed_repeats_and_does_not_touch_the_global_stream() -> None:
    """Draws come from the request's own generator."""
    logits, sampling = logits_of(0.25, 0.25, 0.25, 0.25), Sampling(seed=5)
    state = torch.random.get_rng_state()
    draws = [[sample(logits, sampling, generator) for _ in range(30)] for generator in
             (sampling.generator(CPU), sampling.generator(CPU))]  # fmt: skip

    assert draws[0] == draws[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_logprobs_are_the_models_own() -> None:
    """Of the token, and of the most probable ones; a most probable token's two values are the same float."""
    logits = torch.stack([logits_of(0.5, 0.3, 0.2) + 7, logits_of(0.1, 0.2, 0.7) - 7])
    first, second = logprobs(logits, torch.tensor([1, 2]), 2)

    assert first.chosen == pytest.approx(math.log(0.3))
    assert first.top == (pytest.approx((0, math.log(0.5))), pytest.approx((1, math.log(0.3))))
    assert second.chosen == second.top[0][1]
    assert logprobs(logits, torch.tensor([1, 2]), 0)[0] == Logprobs(first.chosen)
    assert len(logprobs(logits, torch.tensor([1, 2]), 20)[0].top) == 3


def draws(sampling: Sampling, logits: list[float], count: int, prompt: tuple[int, ...] = ()) -> list[int]:
    """Greedy ids drawn one after the other from the same logits; id 0 ends a sequence."""
    sampler = Sampler(sampling, prompt, {0}, len(logits), CPU)
    return [sampler.draw(torch.tensor(logits)) for _ in range(count)]


@pytest.mark.parametrize(
    ("changes", "prompt", "expected"),
    [
        ({}, (), [1, 1, 1, 1]),
        # 3.0 falls below 2.5 once, and no further.
        ({"presence_penalty": 0.6}, (), [1, 2, 1, 1]),
        # 3.0, 2.4, 1.8 against 2.5, 1.9 and the 2.0 of id 0.
        ({"frequency_penalty": 0.6}, (), [1, 2, 1, 0]),
        ({"frequency_penalty": -1}, (), [1, 1, 1, 1]),
        ({"presence_penalty": 0.6}, (1,), [1, 2, 1, 1]),
        # The prompt counts: 3.0 is 1.5 from the start.
        ({"repetition_penalty": 2.0}, (1,), [2, 0, 1, 1]),
        ({"repetition_penalty": 2.0}, (1, 2), [0, 1, 1, 1]),
        ({"logit_bias": {3: 5.0}}, (), [3, 3, 3, 3]),
        ({"logit_bias": {1: -100.0, 2: -100.0}}, (), [0, 0, 0, 0]),
        ({"logit_bias": {0: 10.0}, "min_tokens": 2}, (), [1, 1, 0, 0]),
    ],
)
def test_adjustments(changes: dict[str, Any], prompt: tuple[int, ...], expected: list[int]) -> None:
    """Each on logits of 2, 3, 2.5 and -1."""
    assert draws(Sampling(temperature=0, **changes), [2.0, 3.0, 2.5, -1.0], 4, prompt) == expected


def test_repetition_makes_negative_logits_smaller() -> None:
    """Divided, they would grow."""
    assert draws(Sampling(temperature=0, repetition_penalty=2.0), [-9.0, -1.0, -1.5], 3, (1,)) == [2, 1, 1]


def test_adjusting_leaves_the_logits_alone() -> None:
    """They are scored as they came."""
    logits = torch.tensor([1.0, 2.0])
    Sampler(Sampling(logit_bias={0: 5.0}), (), (), 2, CPU).draw(logits)

    assert logits.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("top_p", 1.1),
     ("top_k", -1), ("min_p", 1.5), ("max_tokens", 0), ("repetition_penalty", 0.0), ("presence_penalty", math.nan),
     ("frequency_penalty", math.inf), ("min_tokens", 17), ("logprobs", -1), ("logit_bias", {1: math.inf})],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    """The text names the field and what it may be."""
    with pytest.raises(ValueError, match=f"{field} must be .* but is "):
        Sampling(**{field: value})
