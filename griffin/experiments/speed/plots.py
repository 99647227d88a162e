"""The figures of ``latency`` as a picture: one bar for each contestant."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from griffin.errors import GriffinError
from griffin.experiments.common.pictures import (
    BLUE,
    GREEN,
    INK,
    NEEDED,
    PAPER,
    RED,
    SKY,
    can_draw,
    new_figure,
    panels,
    save,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"full": BLUE, "GRIFFIN": GREEN, "magnitude": SKY}
OTHER_COLOUR = "#999999"
INCHES_PER_BAR = 0.42


def require_plot() -> None:
    """
    Raises:
        GriffinError: matplotlib is not installed.
    """
    if not can_draw():
        raise GriffinError(f"--plot: {NEEDED}")


def plot_latency(report: dict[str, Any], path: Path) -> None:
    """Write ``latency_figure`` to a file. The suffix gives the format.

    Raises:
        GriffinError: matplotlib is not installed, or the file cannot be written.
    """
    require_plot()
    save(latency_figure(report), path)


def latency_figure(report: dict[str, Any]) -> "Figure":
    """Milliseconds per token of each contestant, with the lowest and the highest. A mark on each bar is the limit.

    ``report`` is the JSON of ``latency``.
    """
    settings = report["settings"]
    bars = [len(setting["rows"]) for setting in settings]
    figure = new_figure(9, 1.3 + sum(INCHES_PER_BAR * count + 0.75 for count in bars))
    axes = panels(figure, len(settings), 1, sharex=True, gridspec_kw={"height_ratios": bars})
    for panel, setting in zip(axes, settings, strict=True):
        _draw_setting(panel, setting)
    axes[-1].set_xlabel("ms per token, median of the rounds; whiskers: lowest and highest")
    figure.suptitle(_title(report), color=INK, fontsize=10, x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _draw_setting(panel: Any, setting: dict[str, Any]) -> None:
    rows = setting["rows"]
    places = range(len(rows))
    median, lowest, highest = (
        [row["seconds_per_token"][key] * 1e3 for row in rows] for key in ("median", "lowest", "highest")
    )
    below = [m - low for m, low in zip(median, lowest, strict=True)]
    above = [high - m for m, high in zip(median, highest, strict=True)]
    limits = [row["limit_seconds"] * 1e3 for row in rows]
    panel.barh(places, median, height=0.68, color=[COLOURS.get(row["name"], OTHER_COLOUR) for row in rows], zorder=2)
    panel.errorbar(median, places, xerr=[below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=3, zorder=3)
    panel.vlines(
        limits, [p - 0.34 for p in places], [p + 0.34 for p in places], colors=RED, linewidth=2.5, zorder=4,
        label="limit: bytes over read bandwidth",
    )  # fmt: skip
    for place, row, end in zip(places, rows, highest, strict=True):
        text = (
            f"{row['tokens_per_second']:.3g} tokens/s, {row['speedup_over_full']:.2f}x full, "
            f"{row['of_limit']:.0%} of limit"
        )
        panel.annotate(
            text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", color=INK, fontsize=8,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1}, zorder=5,
        )  # fmt: skip
    panel.set_yticks(places, [_label(row) for row in rows])
    panel.invert_yaxis()
    # Room for the words after the longest bar.
    panel.set_xlim(0, max(panel.get_xlim()[1], max(highest) * 1.5))
    panel.set_title(f"{setting['prompt_tokens']} + {setting['tokens']} tokens", loc="left", fontsize=9, color=INK)
    panel.grid(axis="y", visible=False)


def _label(row: dict[str, Any]) -> str:
    return f"{row['name']} {row['sparsity'] * 100:.3g} %" if row["sparsity"] else str(row["name"])


def _title(report: dict[str, Any]) -> str:
    threads = f", torch threads: {report['threads']}" if report["device"] == "cpu" else ""
    random = ", random weights" if report["random_weights"] else ""
    return f"{report['model']}{random}, {report['dtype']}\n{report['device_name']}{threads}"
