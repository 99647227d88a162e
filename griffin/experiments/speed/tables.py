"""Figures as tables for a terminal of 120 columns."""

from collections.abc import Sequence

from griffin.experiments.speed.figures import Row, Spread

LEGEND = """\
ms/token: from the second token on. GB/token: active weights, and keys and values at the mean context; GB/s: of these.
of limit: time of GB/token at the read bandwidth, over ms/token. ideal: speed-up over full if only bytes counted.
generation: first token to last, selection included. break-even: tokens after which the selection has paid for itself.
peak GB: of the process, with all models in it. All are medians over the rounds, ranges are the lowest and highest."""


def speed_table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'':<18}{'sparsity':>8}{'ms/token':>10}{'low - high':>17}{'tokens/s':>9}{'GB/token':>9}{'GB/s':>8}"
        f"{'of limit':>9}{'vs full':>9}{'vs generate':>12}{'ideal':>8}"
    ]
    for row in rows:
        lines.append(
            f"{row.name:<18}{_percent(row.sparsity):>8}{_short(row.seconds_per_token.median * 1e3):>10}"
            f"{_range(row.seconds_per_token, 1e3):>17}{row.tokens_per_second:>9.1f}{row.bytes_per_token / 1e9:>9.3f}"
            f"{row.bytes_per_second / 1e9:>8.1f}{_percent(row.of_limit):>9}{_times(row.speedup_over_full):>9}"
            f"{_times(row.speedup_over_generate):>12}{_times(row.ideal_speedup):>8}"
        )
    return "\n".join(lines)


def cost_table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'':<18}{'sparsity':>8}{'prefill s':>11}{'selection ms':>14}{'break-even':>12}{'generation s':>14}"
        f"{'end-to-end s':>14}{'low - high':>17}{'peak GB':>10}"
    ]
    for row in rows:
        selection = f"{row.selection_seconds.median * 1e3:.1f}" if row.selection_seconds else "-"
        even = "-" if row.selection_seconds is None else "never"
        if row.break_even_tokens is not None:
            even = f"{row.break_even_tokens:.1f}"
        peak = f"{row.peak_bytes / 1e9:.2f}" if row.peak_bytes is not None else "-"
        lines.append(
            f"{row.name:<18}{_percent(row.sparsity):>8}{row.prefill_seconds.median:>11.3f}{selection:>14}{even:>12}"
            f"{row.generation_seconds.median:>14.2f}{row.end_to_end_seconds.median:>14.2f}"
            f"{_range(row.end_to_end_seconds, 1):>17}{peak:>10}"
        )
    return "\n".join(lines)


def paper_table(settings: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """The paper's Table 3 from (``P+G``, rows): the generation phase in seconds, sparsities beside each other."""
    names = list(dict.fromkeys(row.name for row in settings[0][1]))
    sparsities = sorted({row.sparsity for row in settings[0][1] if row.sparsity})
    columns = [[f"{length}" for length, _ in settings]]
    columns.append([f"{_full(rows).prefill_seconds.median:.2f}" for _, rows in settings])
    for name in names:
        columns.append(
            [" / ".join(f"{r.generation_seconds.median:.2f}" for r in rows if r.name == name) for _, rows in settings]
        )
    heads = ["", "prompt", *names]
    widths = [max(len(head), *map(len, column)) for head, column in zip(heads, columns, strict=True)]
    lines = ["   ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
             for line in (heads, *zip(*columns, strict=True))]  # fmt: skip
    pruned = f", at {' / '.join(_percent(s) for s in sparsities)} sparsity" if sparsities else ""
    return "\n".join([f"Generation phase in seconds, as in the paper's Table 3{pruned}:", *lines])


def _full(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.name == "full")


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.3g} %" if fraction else "-"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _range(spread: Spread, unit: float) -> str:
    return f"{_short(spread.lowest * unit)} - {_short(spread.highest * unit)}"


def _short(value: float) -> str:
    """Three or more digits, in seven characters or fewer up to a million."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
