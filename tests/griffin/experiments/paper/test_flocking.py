"""Flocking: its figures against every pair of tokens, and its claim."""

import argparse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from griffin.experiments.common.experiment import conduct, defaults
from griffin.experiments.paper import flocking
from griffin.experiments.paper.heatmaps import decode
from tests.griffin import oracle
from tests.griffin.experiments.words import BOS, random_ids, word_study
from tests.tiny import tiny_model


def arguments(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(defaults(flocking)), "tokens": 24, "neurons": 20, **changes})


def test_figures_and_picture(tmp_path: Path) -> None:
    """Similarities of all layers over all neurons. Heatmaps hold the first neurons of the named layers."""
    text, model = random_ids(1, 60), tiny_model("llama")
    study = word_study(tmp_path, text, model=model)
    found = conduct("flocking", flocking, study, arguments(layers=[2, 0]))
    with torch.no_grad(), oracle.recorded(model) as activations:
        model(torch.tensor([[BOS, *text[:23]]]))

    first, second = torch.triu_indices(24, 24, offset=1)
    for layer, z_TF in enumerate(activations):
        unit_TF = (z_TF / z_TF.norm(dim=1, keepdim=True)).abs()
        pairs = (unit_TF @ unit_TF.T)[first, second]
        assert found["similarity"][layer] == pytest.approx(float(pairs.mean()), abs=1e-5)
    assert [heatmap["layer"] for heatmap in found["heatmaps"]] == [0, 2]
    drawn, expected = found["heatmaps"][1], (activations[2] / activations[2].norm(dim=1, keepdim=True)).abs()[:, :20]
    clipped = np.minimum(expected.numpy(), drawn["scale"])
    assert np.abs(decode(drawn) * drawn["scale"] - clipped).max() < drawn["scale"] / 500
    assert ElementTree.parse(tmp_path / "tiny" / "flocking.svg").getroot().tag.endswith("svg")


def test_a_second_run_reads_the_ledger(tmp_path: Path) -> None:
    """The same question is asked only once; other layers are another question."""
    study = word_study(tmp_path, random_ids(1, 60))
    lines = []
    for layers in ([1], [1], [2]):
        flocking.measure(study, arguments(layers=layers))
        lines.append(len((tmp_path / "tiny" / "ledger.jsonl").read_text().splitlines()))

    assert lines == [1, 1, 2]


def test_layers_by_default_and_all(tmp_path: Path) -> None:
    """Three over the depth, or every one; as wide as the model at most."""
    study = word_study(tmp_path, random_ids(1, 60), model=tiny_model("llama", num_hidden_layers=6))
    some, every = (flocking.measure(study, arguments(layers=layers, neurons=99)) for layers in (None, ["all"]))

    assert [heatmap["layer"] for heatmap in some["heatmaps"]] == [1, 3, 5]
    assert [heatmap["layer"] for heatmap in every["heatmaps"]] == [0, 1, 2, 3, 4, 5]
    assert {heatmap["neurons"] for heatmap in every["heatmaps"]} == {52}


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    """The error has the flag and the model's layers."""
    with pytest.raises(ValueError, match="--layers: this model has no layer 3; its layers are 0 to 2"):
        flocking.measure(word_study(tmp_path, random_ids(1, 60)), arguments(layers=[3]))


def found_with(strengths: list[float]) -> dict[str, Any]:
    return {"strength": strengths, "similarity": strengths, "shuffled": [0.0] * len(strengths), "tokens": 9}


@pytest.mark.parametrize(("below", "holds"), [(1, True), (2, False)])
def test_virtually_all_layers(below: int, holds: bool) -> None:
    """Nine of ten are virtually all; eight are not. A layer flocks from a strength of 0.1 on."""
    (claim,) = flocking.claims(found_with([0.099] * below + [0.1] + [0.5] * (9 - below)))

    assert claim.holds is holds
    assert f"{10 - below} of 10 layers flock, and {below} more are above chance but faint" in claim.here
    assert "(strength 0.10 to 0.50, median 0.50)" in claim.here
    assert "A layer flocks if its strength is 0.1 or more." in claim.here
    assert "The finding holds if at least 90 % of the layers flock." in claim.here


def test_below_chance_is_not_faint() -> None:
    """It is nothing."""
    assert flocking.how_many([-0.2, 0.0, 0.05, 0.4]).startswith("1 of 4 layers flock, and 1 more are above chance")


def test_the_table_has_every_layer() -> None:
    """With its three figures."""
    (table,) = flocking.tables({**found_with([0.25, 0.5]), "corpus": "books"})

    assert table.rows == [("0", "0.250", "0.000", "0.250"), ("1", "0.500", "0.000", "0.500")]
