"""Random inputs are random enough, and are compared layer by layer."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from griffin.experiments.common.experiment import conduct, defaults
from griffin.experiments.paper import randomness
from griffin.experiments.paper.flocking import look
from griffin.model.loading import Checkpoint
from tests.griffin.experiments.words import BOS, random_ids, word_study


def test_three_inputs(tmp_path: Path) -> None:
    """Each begins with BOS: the text, its tokens in another order, and random tokens of the vocabulary."""
    text = random_ids(1, 100)
    study = word_study(tmp_path, text)
    inputs = randomness.make_inputs(study, 50, seed=0)
    original, permuted, random = inputs.values()

    assert list(inputs) == ["original", "permuted", "random"]
    assert original == [BOS, *text[:49]]
    assert sorted(permuted) == sorted(original)
    assert permuted[0] == random[0] == BOS
    assert permuted != original
    assert len(random) == 50
    assert set(random[1:]) <= set(range(3, 128))
    assert sorted(random) != sorted(original)


def test_the_seed_decides(tmp_path: Path) -> None:
    """The same seed makes the same inputs; another seed makes others."""
    study = word_study(tmp_path, random_ids(1, 100))
    once, again, other = (randomness.make_inputs(study, 50, seed) for seed in (0, 0, 1))

    assert once == again
    assert once["permuted"] != other["permuted"]
    assert once["random"] != other["random"]


def test_random_tokens_come_from_the_whole_vocabulary(tmp_path: Path, smollm2: Checkpoint) -> None:
    """Except special tokens. SmolLM2's tokenizer names three of these."""
    assert randomness.ordinary_ids(word_study(tmp_path, [3])) == list(range(3, 128))
    study = word_study(tmp_path, [3])
    study.checkpoint = smollm2
    ids = randomness.ordinary_ids(study)

    assert ids[-1] == 49151
    assert not set(smollm2.tokenizer.all_special_ids) & set(ids)
    assert 49_000 < len(ids) <= 49_149


def test_figures_and_picture(tmp_path: Path) -> None:
    """Each input is measured in the same way as in the flocking experiment."""
    study = word_study(tmp_path, random_ids(1, 100))
    arguments = argparse.Namespace(**{**vars(defaults(randomness)), "tokens": 20, "neurons": 16})
    found = conduct("randomness", randomness, study, arguments)
    permuted = randomness.make_inputs(study, 20, 0)["permuted"]

    # The second of three layers is about as deep as the 18th of 28.
    assert found["layer"] == 1
    assert found["inputs"]["permuted"] == look(study, permuted, 16, [1])
    assert (tmp_path / "tiny" / "randomness.svg").stat().st_size > 0
    assert [row[0] for row in randomness.tables(found)[0].rows] == ["0", "1", "2", "median"]


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    """The error has this experiment's flag."""
    arguments = argparse.Namespace(**{**vars(defaults(randomness)), "tokens": 20, "layer": 9})
    with pytest.raises(ValueError, match="--layer: this model has no layer 9; its layers are 0 to 2"):
        randomness.measure(word_study(tmp_path, random_ids(1, 100)), arguments)


def found_with(**strengths: list[float]) -> dict[str, Any]:
    return {"inputs": {name: {"strength": values} for name, values in strengths.items()}, "tokens": 9}


def test_more_consistent_than_text() -> None:
    """Permuted tokens flock more strongly in two of three layers, random tokens in all."""
    exists, stronger = randomness.claims(
        found_with(original=[0.2, 0.2, 0.2], permuted=[0.3, 0.1, 0.3], random=[0.4, 0.4, 0.4])
    )

    assert exists.holds is True
    assert stronger.holds is True
    assert "Of 3 layers, 2 flock more strongly with permuted tokens than with the original, and 3 with" in stronger.here
    assert "Medians: 0.20 original, 0.30 permuted, 0.40 random." in stronger.here


def test_less_consistent_than_text() -> None:
    """Half of the layers are not more than half."""
    exists, stronger = randomness.claims(found_with(original=[0.2, 0.2], permuted=[0.3, 0.1], random=[0.4, 0.3]))

    assert exists.holds is True
    assert stronger.holds is False


@pytest.mark.parametrize(("faint", "holds"), [(1, True), (2, False), (3, False)])
def test_flocking_in_most_layers(faint: int, holds: bool) -> None:
    """Three of four layers are most, two are not. Above chance alone is no flocking."""
    strong = [0.4] * 4
    exists, _ = randomness.claims(
        found_with(original=strong, permuted=strong, random=[0.09] * faint + [0.1] * (4 - faint))
    )

    assert exists.holds is holds
    assert f"Random: {4 - faint} of 4 layers flock, and {faint} more are above chance" in exists.here
    assert "if its strength is 0.1 or more. The finding holds if more than half of the layers flock" in exists.here
