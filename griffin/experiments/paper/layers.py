"""Layers: how flags name them, and how pictures colour them by depth."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from griffin.experiments.common.kinds import whole
from griffin.experiments.common.pictures import INK, SEQUENCE, style

if TYPE_CHECKING:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# The ends of the colour map are hard to see on white and on black.
DARKEST, BRIGHTEST = 0.12, 0.92

Layer = int | str


def layer(text: str) -> Layer:
    """The type of a flag: a layer's number from 0, or ``all``."""
    if text == "all":
        return text
    try:
        return whole(text, 0)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a layer's number from 0 nor all") from None


def layer_numbers(wanted: Sequence[Layer] | None, layers: int, default: Sequence[int], flag: str) -> list[int]:
    """The layers that a flag names, in order.

    Args:
        wanted: the flag's value; None takes ``default``.
        layers: the number of the model's layers.
        flag: for the error.

    Raises:
        ValueError: the model does not have such a layer.
    """
    if wanted is None:
        return sorted(set(default))
    if "all" in wanted:
        return list(range(layers))
    numbers = sorted({int(number) for number in wanted})
    if numbers[-1] >= layers:
        raise ValueError(f"{flag}: this model has no layer {numbers[-1]}; its layers are 0 to {layers - 1}")
    return numbers


def colours(layers: int) -> list[Any]:
    """One colour for each layer, from the first to the last."""
    from matplotlib import colormaps

    step = (BRIGHTEST - DARKEST) / max(1, layers - 1)
    return [colormaps[SEQUENCE](DARKEST + number * step) for number in range(layers)]


def colourbar(figure: "Figure", axes: Any, layers: int) -> None:
    """Show which colour is which layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(-0.5, layers - 0.5), _colormap(layers))
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, aspect=30, ticks=[0, layers - 1])
    bar.set_label("layer", color=INK, fontsize=9, labelpad=-6)
    bar.ax.tick_params(colors=INK, length=0, labelsize=8)
    bar.outline.set_visible(False)


def _colormap(layers: int) -> "ListedColormap":
    from matplotlib.colors import ListedColormap

    return ListedColormap(colours(layers))


def draw_layers(axes: Any, x: Sequence[float], lines: Sequence[Sequence[float]]) -> None:
    """Draw one line for each layer."""
    for line, colour in zip(lines, colours(len(lines)), strict=True):
        axes.plot(x, line, color=colour, linewidth=1.1)


def draw_by_layer(axes: Any, lines: Mapping[str, tuple[Sequence[float], str]], what: str) -> None:
    """Draw figures from 0 to 1 over the layers.

    Args:
        lines: by name, the figures of all layers and a colour.
        what: the label of the axis.
    """
    style(axes)
    for name, (values, colour) in lines.items():
        axes.plot(range(len(values)), values, color=colour, marker="o", markersize=4, label=name)
    axes.set_ylim(0, 1)
    axes.set_xlabel("layer")
    axes.set_ylabel(what)
    axes.xaxis.get_major_locator().set_params(integer=True)
    # Above the panel, where no line can be.
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=8, ncols=len(lines), loc="lower right", bbox_to_anchor=(1, 1.01),
        borderaxespad=0,
    )  # fmt: skip
