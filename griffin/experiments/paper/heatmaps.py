"""Heatmaps of relative activation magnitudes, small in JSON and small as pictures.

Shapes: T tokens, N neurons.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from griffin.experiments.common.pictures import INK, SEQUENCE

LOWEST_PERCENTILE, HIGHEST_PERCENTILE = 0.5, 99.5
# Pixels of all heatmaps of a picture together, and shades of each pixel. An SVG then stays below some 300 kB.
PIXELS = 200_000
SHADES = 10

Heatmap = dict[str, Any]


def encode(values_TN: Tensor) -> Heatmap:
    """Values ``(T, N)`` in 256 steps from 0 to the 99.5th percentile. Larger ones are clipped, or they darken the rest.

    Returns:
        ``values``: base64 of one byte for each value, row by row. The byte 255 stands for ``scale``.
    """
    array_TN = values_TN.float().cpu().numpy()
    scale = float(np.percentile(array_TN, HIGHEST_PERCENTILE)) or 1.0
    bytes_TN = np.rint(np.clip(array_TN / scale, 0, 1) * 255).astype(np.uint8)
    tokens, neurons = bytes_TN.shape
    return {
        "tokens": tokens, "neurons": neurons, "scale": scale, "values": base64.b64encode(bytes_TN.tobytes()).decode(),
    }  # fmt: skip


def decode(heatmap: Heatmap) -> NDArray[np.float64]:
    """The values over the heatmap's scale, from 0 to 1: ``(T, N)``."""
    values = np.frombuffer(base64.b64decode(heatmap["values"]), np.uint8)
    return values.reshape(heatmap["tokens"], heatmap["neurons"]) / 255


def draw_heatmaps(panels: Sequence[Any], heatmaps: Sequence[Heatmap], titles: Sequence[str], columns: int) -> list[Any]:
    """Draw one heatmap in each panel, in rows of ``columns``. Remove the other panels.

    The shades of a panel run from the 0.5th to the 99.5th percentile of its values.

    Returns:
        The panels that are left.
    """
    side = math.isqrt(PIXELS // len(heatmaps))
    for axes in panels[len(heatmaps) :]:
        axes.remove()
    panels = panels[: len(heatmaps)]
    for number, (axes, heatmap, title) in enumerate(zip(panels, heatmaps, titles, strict=True)):
        _draw(axes, heatmap, side)
        axes.set_title(title, fontsize=9)
        _label(axes, heatmap, left=number % columns == 0, bottom=number + columns >= len(panels))
    return list(panels)


def _draw(axes: Any, heatmap: Heatmap, side: int) -> None:
    values = pooled(decode(heatmap), side)
    lowest, highest = np.percentile(values, [LOWEST_PERCENTILE, HIGHEST_PERCENTILE])
    shades = np.rint(np.clip((values - lowest) / ((highest - lowest) or 1.0), 0, 1) * (SHADES - 1))
    # No interpolation: the reader's program scales the pixels to its screen.
    axes.imshow(
        shades, cmap=SEQUENCE, vmin=0, vmax=SHADES - 1, aspect="auto", interpolation="none",
        extent=(0, heatmap["neurons"], heatmap["tokens"], 0),
    )  # fmt: skip
    axes.grid(False)


def _label(axes: Any, heatmap: Heatmap, left: bool, bottom: bool) -> None:
    """Label each row and each column of panels once, not each panel."""
    axes.set_xticks([0, heatmap["neurons"]] if bottom else [])
    axes.set_yticks([0, heatmap["tokens"]] if left else [])
    # Inside the panel, so that numbers of neighbouring panels do not meet.
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=False):
        label.set_ha(side)
    for label, side in zip(axes.get_yticklabels(), ("top", "bottom"), strict=False):
        label.set_va(side)
    if left:
        axes.set_ylabel("token", labelpad=-8)
    if bottom:
        axes.set_xlabel("FF neuron", labelpad=-4)


def colourbar(figure: Any, panels: Sequence[Any], rows: int) -> None:
    """Show what the shades mean, next to the first row of panels. ``figure``: a figure or a part of one."""
    from matplotlib.cm import ScalarMappable

    mappable = ScalarMappable(cmap=SEQUENCE)
    bar = figure.colorbar(mappable, ax=panels, shrink=0.9 / rows, anchor=(0, 0.95), pad=0.01, aspect=30, ticks=[0, 1])
    bar.ax.set_yticklabels([f"{place:g}th\npercentile" for place in (LOWEST_PERCENTILE, HIGHEST_PERCENTILE)])
    bar.ax.tick_params(colors=INK, length=0, labelsize=8)
    bar.outline.set_visible(False)


def pooled(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Means over rectangles of nearly equal size, so that no row and no column has more than ``side`` of them."""
    for axis in (0, 1):
        size = values.shape[axis]
        # All bins of one size if the axis divides evenly.
        bins = math.ceil(size / math.ceil(size / side))
        edges = np.linspace(0, size, bins + 1).round().astype(int)
        sums = np.add.reduceat(values, edges[:-1], axis=axis)
        values = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return values
