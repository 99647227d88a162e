"""Layers by flag and by colour."""

import argparse

import pytest

from griffin.experiments.paper.layers import colours, layer, layer_numbers


def test_the_type_of_the_flag() -> None:
    """A number from 0, or all."""
    assert (layer("0"), layer("12"), layer("all")) == (0, 12, "all")
    for text in ("-1", "x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is neither a layer's number from 0 nor all"):
            layer(text)


def test_layers_are_chosen() -> None:
    """Each once and in order. Without a flag, the experiment's own layers."""
    assert layer_numbers([5, 0, 5], 6, [1], "--layers") == [0, 5]
    assert layer_numbers([2, "all"], 3, [1], "--layers") == [0, 1, 2]
    assert layer_numbers(None, 1, [0, 0, 0], "--layers") == [0]
    with pytest.raises(ValueError, match=r"^--layers: this model has no layer 6; its layers are 0 to 5$"):
        layer_numbers([6], 6, [1], "--layers")


def test_every_layer_has_its_colour() -> None:
    """Also a single layer."""
    assert len({tuple(colour) for colour in colours(40)}) == 40
    assert len(colours(1)) == 1
