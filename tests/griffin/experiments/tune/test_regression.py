"""The regression for sparsity auto finds the powers behind made-up data, and gives no result for too few."""

import math

import pytest
import torch

from griffin.experiments.tune.losses import Loss
from griffin.experiments.tune.regression import Measured, fit, sentence

LENGTHS = (32, 64, 128, 256)


def made(prompts: int, *, length: float, position: float, removed: float, noise: float = 0.0) -> list[Measured]:
    """Measurements of 64 tokens each that follow the powers, with noise in the logarithm."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for prompt in range(prompts):
        for cut in LENGTHS:
            for sparsity, constant in ((0.25, 0.1), (0.5, 0.7)):
                share = float(torch.rand((), generator=generator)) * sparsity + 0.01
                halves = [
                    32 * constant * cut**length * place**position * share**removed
                    * math.exp(noise * float(torch.randn((), generator=generator)))
                    for place in (16, 48)
                ]  # fmt: skip
                loss = Loss(64, 0.0, sum(halves), 0, 32, halves[1], share * 64)
                found.append(Measured(f"file:{prompt}", cut, sparsity, loss))
    return found


def test_the_powers_are_found() -> None:
    """Without noise they are exact, and so are predictions for prompts that were left out."""
    measured = made(10, length=-0.4, position=0.2, removed=0.6)
    table = fit(measured, "griffin")

    assert table is not None
    least = [min(one.loss.removed / 64 for one in measured if one.sparsity == at) for at in (0.25, 0.5)]
    assert table.least_removed == pytest.approx(least)
    assert (table.length, table.position, table.removed) == pytest.approx((-0.4, 0.2, 0.6), abs=1e-6)
    assert [math.exp(constant) for constant in table.constants] == pytest.approx([0.1, 0.7], rel=1e-6)
    assert (table.sparsities, list(table.prompt_tokens), table.prompts) == ([0.25, 0.5], [32, 256], 10)
    assert table.spread == pytest.approx(0, abs=1e-6)


def test_predictions_are_means() -> None:
    """They are means of losses, not of logarithms. The spread is that of the noise."""
    table = fit(made(60, length=-0.4, position=0.2, removed=0.6, noise=0.8), "griffin")

    assert table is not None
    assert table.spread == pytest.approx(0.8, rel=0.1)
    (low, _) = (math.exp(constant - 0.8**2 / 2) for constant in table.constants)
    assert low == pytest.approx(0.1, rel=0.5)


def test_a_wrong_sign_is_chance() -> None:
    """If longer prompts seem to lose more, the length gets the power 0; the other powers stay."""
    table = fit(made(10, length=0.3, position=0.2, removed=0.6), "griffin+")

    assert table is not None
    assert table.length == 0
    assert table.position == pytest.approx(0.2, abs=0.05)
    assert table.method == "griffin+"


def test_all_prompts_of_one_length() -> None:
    """They give no power of the length, and no error."""
    found = [one for one in made(10, length=-0.4, position=0.2, removed=0.6) if one.prompt_tokens == 64]
    table = fit(found, "griffin")

    assert table is not None
    share = found[0].loss.removed / 64
    predicted = table.divergences(64, 64, [share, share])[0]
    assert predicted == pytest.approx(found[0].loss.divergence / 64, rel=0.1)


def test_a_sparsity_that_loses_nothing() -> None:
    """It rounds to no neuron and changes no other. If no sparsity loses anything, there is no table."""
    found = made(10, length=-0.4, position=0.2, removed=0.6)
    nothing = [Measured(one.prompt, one.prompt_tokens, 0.001, Loss(64, 0.0, 0.0, 64, 32)) for one in found]
    table = fit([*nothing, *found], "griffin")

    assert table is not None
    assert table == fit(found, "griffin")
    assert fit(nothing, "griffin") is None


def test_too_few_prompts() -> None:
    """They make no table, whatever the number of measurements."""
    assert fit(made(7, length=-0.4, position=0.2, removed=0.6), "griffin") is None
    assert "nothing was kept" in sentence(None)
