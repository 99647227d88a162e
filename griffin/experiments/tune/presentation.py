"""Presentation: the figures of ``tune`` as a table and as a picture, from its JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from griffin.experiments.common.pictures import COLOURS, INK, MUTED, new_figure, panels
from griffin.experiments.common.results import Table, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = """\
prompt: whole, or cut to its last tokens, after the BOS token if the tokenizer puts one. tokens/s: from the first token
to the last, including the choice of neurons. x full: tokens/s over the full model's. perplexity: above the full model's
on the same continuations. low to high: perplexity minus and plus two standard errors over prompts. KL: KL(full ||
pruned), nats for each token. top-1: tokens where both models have the same most probable token. prompts: how many were
judged, of all; the others are shorter, repeat another, or get a single token as answer."""

Row = Mapping[str, Any]


def table(found: Mapping[str, Any]) -> Table:
    heads = ("prompt", "sparsity", "tokens/s", "x full", "active parameters", "perplexity", "low to high", "KL",
             "top-1", "prompts")  # fmt: skip
    return Table(heads, [_cells(row, found["prompts"]) for row in found["rows"]])


def draw(found: Mapping[str, Any]) -> "Figure":
    """Perplexity and speed-up by sparsity, one line for each prompt length."""
    figure = new_figure(9, 3.6)
    cost, speed = panels(figure, 1, 2)
    for (length, rows), colour in zip(_by_length(found["rows"]).items(), COLOURS * 9, strict=False):
        _draw_length(cost, speed, length_name(length), rows, colour)
    tolerance = found["tolerance_percent"]
    # Linear near zero, logarithmic above: one picture shows 2 % and 2000 %.
    cost.set_yscale("symlog", linthresh=10)
    cost.yaxis.set_major_formatter("{x:g} %")
    cost.axhline(tolerance, color=MUTED, linestyle="--", linewidth=1)
    cost.annotate(f"tolerance {tolerance:g} %", (1, tolerance), xycoords=cost.get_yaxis_transform(), xytext=(-2, 3),
                  textcoords="offset points", ha="right", color=MUTED, fontsize=8)  # fmt: skip
    cost.set_title("Perplexity above the full model's, with two standard errors", fontsize=9)
    speed.axhline(1, color=MUTED, linestyle="--", linewidth=1)
    speed.yaxis.set_major_formatter("{x:g}x")
    speed.set_title(f"Speed-up of {found['tokens']} generated tokens over the full model", fontsize=9)
    for axes in (cost, speed):
        axes.set_xlabel("sparsity")
    speed.legend(frameon=False, labelcolor=INK, fontsize=8, title="prompt", title_fontsize=8).get_title().set_color(INK)
    figure.suptitle(f"{found['model']}, {found['data']}", color=INK, fontsize=10, x=0.01, ha="left")
    return figure


def length_name(prompt_tokens: int | None) -> str:
    return "whole" if prompt_tokens is None else f"last {prompt_tokens}"


def _draw_length(cost: Any, speed: Any, label: str, rows: Sequence[Row], colour: str) -> None:
    sparsities = [row["sparsity"] for row in rows]
    means, lows, highs = ([row[name] for row in rows] for name in ("perplexity_percent", "low_percent", "high_percent"))
    # A single prompt has no spread.
    below = [0.0 if low is None else mean - low for mean, low in zip(means, lows, strict=True)]
    above = [0.0 if high is None else high - mean for mean, high in zip(means, highs, strict=True)]
    cost.errorbar(sparsities, means, yerr=[below, above], color=colour, marker="o", markersize=4, linewidth=1.5,
                  elinewidth=1, capsize=3, zorder=3)  # fmt: skip
    speed.plot(sparsities, [row["speedup"] for row in rows], color=colour, marker="o", markersize=4, label=label,
               zorder=3)  # fmt: skip


def _by_length(rows: Sequence[Row]) -> dict[int | None, list[Row]]:
    found: dict[int | None, list[Row]] = {}
    for row in rows:
        found.setdefault(row["prompt_tokens"], []).append(row)
    return found


def _cells(row: Row, prompts: int) -> list[str]:
    speed = [f"{row['tokens_per_second']:.1f}", f"{row['speedup']:.2f}x"]
    parameters = f"{_count(row['active_parameters'])} of {_count(row['parameters'])}"
    count = f"{row['prompts']} of {prompts}"
    if not row["sparsity"]:
        return [length_name(row["prompt_tokens"]), "full", *speed, parameters, "-", "-", "-", "-", count]
    low, high = row["low_percent"], row["high_percent"]
    return [
        length_name(row["prompt_tokens"]),
        f"{row['sparsity']:g}",
        *speed,
        parameters,
        f"{_short(row['perplexity_percent'], '+')} %",
        "-" if low is None else f"{_short(low)} to {_short(high)} %",
        f"{row['kl']:.3f}",
        percent(row["agreement"], 1),
        count,
    ]


def _short(percent: float, sign: str = "") -> str:
    return f"{percent:{sign}.{0 if abs(percent) >= 100 else 1}f}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
