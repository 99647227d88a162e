"""Plots: samples as inline SVG by matplotlib, in colours that a dark page exchanges."""

import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtest.sample import UNFINISHED, Sample, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#1f2328", "#d8dee4"
# Visible on both backgrounds.
GREY = "#808890"
# Okabe and Ito's colours: everybody can tell them apart, on both backgrounds.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
DASHES = ("-", "--", "-.", ":")
# Points of a curve; more would not be visible.
MOST_POINTS = 400
# More points than these are drawn as pixels, not as shapes.
MOST_MARKS = 2_000
# If the largest value is this many times the smallest, the axis is logarithmic.
WIDE = 30

Series = dict[float | None, list[Sample]]


@dataclass(frozen=True, slots=True)
class Plot:
    """
    text: describes the plot for those who do not see it.
    svg: an element, without prologue.
    """

    title: str
    text: str
    svg: str


def missing() -> str | None:
    """Why plots are not possible, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "plots need matplotlib; run: pip install matplotlib"
    return None


def plots(samples: Sequence[Sample], sparsities: Sequence[float | None]) -> Iterator[Plot]:
    """The plots for which there are values. Sparsities come in this order."""
    series: Series = {key: [sample for sample in samples if sample.sparsity == key] for key in sparsities}
    answered = {key: [sample for sample in found if sample.answered] for key, found in series.items()}
    for name, title, values in (
        ("ttft", "Time to first token", lambda s: [] if s.ttft_s is None else [s.ttft_s]),
        ("itl", "Inter-token latency", lambda s: s.gaps_s),
        ("e2e", "End-to-end latency", lambda s: [s.e2e_s]),
    ):
        if plot := _curves(name, title, answered, values):
            yield plot
    if plot := _speeds(answered):
        yield plot
    if plot := _timeline(series):
        yield plot


def _curves(name: str, title: str, series: Series, values: Callable[[Sample], list[float]]) -> Plot | None:
    """The share of requests, or of gaps, that took no longer."""
    found = {key: sorted(v * 1e3 for sample in samples for v in values(sample)) for key, samples in series.items()}
    found = {key: times for key, times in found.items() if times}
    if not found:
        return None
    figure, axes = _axes()
    for number, (key, times) in enumerate(found.items()):
        every = max(1, len(times) // MOST_POINTS)
        ranks = sorted({*range(0, len(times), every), len(times) - 1})
        axes.step([times[0], *(times[rank] for rank in ranks)], [0, *((rank + 1) / len(times) for rank in ranks)],
                  where="post", color=COLOURS[number % len(COLOURS)], linestyle=DASHES[number % len(DASHES)],
                  label=f"sparsity {label(key)}")  # fmt: skip
    lowest, highest = min(t[0] for t in found.values()), max(t[-1] for t in found.values())
    if lowest > 0 and highest / lowest > WIDE:
        axes.set_xscale("log")
    for share in (0.5, 0.95):
        axes.axhline(share, color=INK, linewidth=0.5, linestyle=":")
    axes.set(xlabel="ms", ylabel="share that took no longer", ylim=(0, 1.02))
    _legend(axes)
    return Plot(title, f"{title}: cumulative distribution for each sparsity", _svg(figure, name))


def _speeds(series: Series) -> Plot | None:
    """Tokens a second of each request, between its first token and its last."""
    found = {label(key): [1 / s.tpot_s for s in samples if s.tpot_s] for key, samples in series.items()}
    found = {name: speeds for name, speeds in found.items() if speeds}
    if not found:
        return None
    figure, axes = _axes()
    boxes = axes.boxplot(list(found.values()), tick_labels=list(found), whis=(5, 95), widths=0.5, showfliers=False)
    for number in range(len(found)):
        colour = COLOURS[number % len(COLOURS)]
        boxes["boxes"][number].set_color(colour)
        boxes["medians"][number].set_color(colour)
        for part in ("whiskers", "caps"):
            for line in boxes[part][2 * number : 2 * number + 2]:
                line.set_color(colour)
    axes.set(xlabel="sparsity", ylabel="tokens/s", ylim=(0, None))
    text = "Tokens a second by sparsity: median, quartiles, and 5 to 95 % of requests"
    return Plot("Tokens a second", text, _svg(figure, "speed"))


def _timeline(series: Series) -> Plot | None:
    """Each request as a point: when it was due, and how long it took."""
    ended = {key: [s for s in samples if s.error != UNFINISHED] for key, samples in series.items()}
    count = sum(map(len, ended.values()))
    if not count:
        return None
    figure, axes = _axes()
    raster = {"rasterized": count > MOST_MARKS}
    for number, (key, samples) in enumerate(ended.items()):
        good = [sample for sample in samples if sample.answered]
        axes.scatter([s.due_s for s in good], [s.e2e_s * 1e3 for s in good], s=9, label=f"sparsity {label(key)}",
                     color=COLOURS[number % len(COLOURS)], **raster)  # fmt: skip
    if failed := [sample for samples in ended.values() for sample in samples if not sample.answered]:
        axes.scatter([s.due_s for s in failed], [s.e2e_s * 1e3 for s in failed], s=16, marker="x", color=GREY,
                     linewidths=0.8, label="failed", **raster)  # fmt: skip
    axes.set(xlabel="intended start, seconds into the run", ylabel="end-to-end ms", ylim=(0, None))
    _legend(axes)
    return Plot("Over time", "End-to-end latency of each request over its intended start", _svg(figure, "time"))


def _axes() -> tuple["Figure", Any]:
    """A figure with one panel, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.1), facecolor="none", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.grid(color=GRID, linewidth=0.6, zorder=0)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=INK, fontsize=9)
    return figure, axes


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _svg(figure: "Figure", name: str) -> str:
    """The figure as an SVG element. Its ids begin with ``name``, because one page has several plots."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", dpi=150, facecolor="none", metadata={"Date": None})
    svg = stream.getvalue().decode()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
