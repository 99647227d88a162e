"""The figures of ``latency`` as tables: for a terminal of 120 columns, for a report, and in the form of Table 3."""

from collections.abc import Mapping, Sequence
from typing import Any

from griffin.experiments.common.results import Table
from griffin.experiments.speed.rows import Row, Spread

LEGEND = """\
ms/token: from the second token on. GB/token: active weights, and keys and values at the mean context. GB/s: GB/token
over the time of a token. of limit: the time to read GB/token at the read bandwidth, over ms/token. ideal: the speed-up
over full if only bytes counted. generation: from the first token to the last, with the selection. break-even: the
number of tokens after which the selection has saved the time that it took. peak GB: memory of the process, with all
models in it. All figures are medians over the rounds. Ranges are the lowest and the highest."""


def speed_table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'':<18}{'sparsity':>8}{'ms/token':>10}{'low - high':>17}{'tokens/s':>9}{'GB/token':>9}{'GB/s':>8}"
        f"{'of limit':>9}{'vs full':>9}{'vs generate':>12}{'ideal':>8}"
    ]
    for row in rows:
        lines.append(
            f"{row.name:<18}{_percent(row.sparsity):>8}{_short(row.seconds_per_token.median * 1e3):>10}"
            f"{_range(row.seconds_per_token, 1e3):>17}{row.tokens_per_second:>9.1f}{row.bytes_per_step / 1e9:>9.3f}"
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
    """The paper's Table 3 from (``P+G``, rows): seconds of the generation phase, one cell for all sparsities."""
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


def report_tables(found: Mapping[str, Any]) -> list[Table]:
    """One table for each pair of lengths, from the JSON of ``latency``."""
    return [_report_table(setting) for setting in found["settings"]]


def _report_table(setting: Mapping[str, Any]) -> Table:
    return Table(
        [
            "", "ms/token", "lowest - highest", "tokens/s", "x full", "x by bytes", "of limit", "selection ms",
            "break-even tokens", "generation s",
        ],
        [_report_cells(row) for row in setting["rows"]],
        f"A prompt of {setting['prompt_tokens']} tokens and {setting['tokens']} generated tokens: medians of "
        f"{setting['rounds']} rounds. x full: the speed-up over the full model. x by bytes: the same if only the bytes "
        "that are read counted. Of limit: the shortest time in which memory can give a token's bytes, over its "
        "measured time. Break-even: the number of tokens after which the selection has saved the time that it took. "
        "Generation: from the first token to the last, with the selection.",
    )  # fmt: skip


def _report_cells(row: Mapping[str, Any]) -> list[str]:
    token, selection = row["seconds_per_token"], row["selection_seconds"]
    even = row["break_even_tokens"]
    return [
        f"{row['name']} {row['sparsity'] * 100:.3g} %" if row["sparsity"] else str(row["name"]),
        f"{token['median'] * 1e3:.2f}",
        f"{token['lowest'] * 1e3:.2f} - {token['highest'] * 1e3:.2f}",
        f"{row['tokens_per_second']:.1f}",
        f"{row['speedup_over_full']:.2f}x",
        f"{row['ideal_speedup']:.2f}x",
        f"{row['of_limit'] * 100:.0f} %",
        f"{selection['median'] * 1e3:.1f}" if selection else "-",
        "-" if not selection else "never" if even is None else f"{even:.1f}",
        f"{row['generation_seconds']['median']:.2f}",
    ]


def _full(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.name == "full")


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.3g} %" if fraction else "-"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _range(spread: Spread, unit: float) -> str:
    return f"{_short(spread.lowest * unit)} - {_short(spread.highest * unit)}"


def _short(value: float) -> str:
    """At least three digits; at most seven characters for values below a million."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
