"""Heatmaps as bytes, and as pixels."""

import base64
from pathlib import Path

import numpy as np
import torch

from griffin.experiments.common.pictures import new_figure, panels, save
from griffin.experiments.paper.heatmaps import colourbar, decode, draw_heatmaps, encode, pooled


def test_bytes_of_a_heatmap() -> None:
    """The 99.5th percentile of 0..200 is 199. So 0, 100, 199, 200 give 0, round(100 / 199 * 255) = 128, 255, 255."""
    heatmap = encode(torch.arange(201.0)[None])
    values = base64.b64decode(heatmap["values"])

    assert (heatmap["tokens"], heatmap["neurons"], heatmap["scale"]) == (1, 201, 199)
    assert (values[0], values[100], values[199], values[200]) == (0, 128, 255, 255)


def test_a_heatmap_comes_back() -> None:
    """Row by row, up to half a step of 1 / 255."""
    values_TN = torch.rand(7, 300, generator=torch.Generator().manual_seed(0))
    heatmap = encode(values_TN)
    expected = (values_TN / heatmap["scale"]).clamp(max=1).numpy()

    assert np.abs(decode(heatmap) - expected).max() <= 0.5 / 255 + 1e-6


def test_nothing_is_active() -> None:
    """There is no scale, but there are values."""
    assert not decode(encode(torch.zeros(2, 3))).any()


def test_pooling() -> None:
    """Squares of 2 x 2. Five columns in at most two parts are 2 and 3, so no part at the edge is very small."""
    values = np.array([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 4.0]])

    assert pooled(values, 2).tolist() == [[2.0, 0.0], [6.0, 2.0]]
    assert pooled(values, 1).tolist() == [[2.5]]
    assert pooled(values, 4).tolist() == values.tolist()
    assert pooled(np.array([[1.0, 3.0, 3.0, 6.0, 9.0]]), 2).tolist() == [[2.0, 6.0]]


def test_pictures_stay_small(tmp_path: Path) -> None:
    """Three heatmaps of noise, the worst case."""
    noise = [encode(torch.rand(512, 512, generator=torch.Generator().manual_seed(seed))) for seed in range(3)]
    figure = new_figure(10, 3)
    axes = panels(figure, 1, 3)
    draw_heatmaps(axes, noise, ["a", "b", "c"], 3)
    colourbar(figure, axes, 1)
    save(figure, tmp_path / "noise.svg")

    assert 50_000 < (tmp_path / "noise.svg").stat().st_size < 400_000


def test_panels_left_over() -> None:
    """Three heatmaps in rows of two: the fourth panel is removed. Labels are on the left and at the bottom."""
    figure = new_figure(4, 4)
    heatmap = encode(torch.rand(4, 6))
    left = draw_heatmaps(panels(figure, 2, 2), [heatmap] * 3, ["a", "b", "c"], 2)

    assert figure.axes == left
    assert [axes.get_ylabel() for axes in left] == ["token", "", "token"]
    assert [axes.get_xlabel() for axes in left] == ["", "FF neuron", "FF neuron"]
    assert [list(axes.get_xticks()) for axes in left] == [[], [0, 6], [0, 6]]
    assert [list(axes.get_yticks()) for axes in left] == [[0, 4], [], [0, 4]]
