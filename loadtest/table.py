"""Table: a record as lines for a terminal. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtest.reported import ROWS

GROUPS = {"TTFT ms": ("ttft_ms", ("p50", "p95", "p99")), "ITL ms": ("itl_ms", ("p50", "p95", "p99")),
          "TPOT ms": ("tpot_ms", ("p50",)), "end to end ms": ("e2e_ms", ("p50", "p95", "p99"))}  # fmt: skip
# The columns of a figure, with the space before it.
WIDTH = 9


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Headline, latencies, errors, goodput, comparison, the server's own figures, remarks."""
    rows: Mapping[str, Mapping[str, Any]] = record["by_sparsity"]
    yield headline(record)
    yield ""
    yield from _latencies(rows)
    for name, row in rows.items():
        for error, count in row["errors"].items():
            message = row["error_messages"].get(error)
            yield f"  {name}: {count} x {error}" + (f" ({message})" if message else "")
    yield from _goodput(record)
    for line in comparison(record):
        yield ""
        yield line
    yield from _reported(rows)
    for remark in record["remarks"]:
        yield f"note: {remark}"


def printable(line: str) -> str:
    """A line without control characters: a server's words may contain commands for a terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def headline(record: Mapping[str, Any]) -> str:
    """The load and its total result, in one line."""
    options, totals = record["options"], record["totals"]
    loop = (
        f"open loop, {options['rate']:g} requests/s"
        if options["rate"] is not None
        else f"closed loop, {options['concurrency']} at a time"
    )
    way = "streamed" if options["stream"] else "not streamed"
    stopped = f", stopped by {record['stopped_by']}" if record["stopped_by"] else ""
    return (
        f"{record['server']['model']} at {record['server']['url']}, {options['endpoint']}, {way}; {loop}: "
        f"{totals['answered']} of {totals['requests']} requests answered in {record['wall_s']:.1f} s, "
        f"{figure(totals['throughput_tokens_per_second'])} tokens/s in all{stopped}"
    )


def figure(value: float | None) -> str:
    """A figure of at least three digits, with as few as possible after the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _latencies(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    start = 9 + 9 + 8 + 10
    yield " " * start + "".join(f"{title:>{WIDTH * len(points)}}" for title, (_, points) in GROUPS.items())
    points = "".join(f"{point:>{WIDTH}}" for _, names in GROUPS.values() for point in names)
    yield f"{'sparsity':<9}{'requests':>9}{'failed':>8}{'tokens/s':>10}{points}"
    for name, row in rows.items():
        cells = "".join(
            f"{figure(row[key][point] if row[key] else None):>{WIDTH}}"
            for key, names in GROUPS.values()
            for point in names
        )
        failed = sum(row["errors"].values())
        yield f"{name:<9}{row['requests']:>9}{failed:>8}{figure(row['tokens_per_second']):>10}{cells}"


def _goodput(record: Mapping[str, Any]) -> Iterator[str]:
    if not (objective := record["options"]["objective"]):
        return
    yield ""
    yield "goodput, requests with " + ", ".join(f"{name} <= {limit:g} ms" for name, limit in objective.items()) + ":"
    for name, row in record["by_sparsity"].items():
        found = row["goodput"]
        share = "-" if found["share"] is None else f"{found['share'] * 100:.0f} %"
        yield f"  {name:<9}{found['good']:>5} good, {share:>5}, {figure(found['requests_per_second'])} a second"


def comparison(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each sparsity except the first."""
    first = next(iter(record["by_sparsity"]))
    for name, ratios in record["compared"].items():
        titles = {"tokens_per_second": "tokens/s", "ttft_ms": "TTFT p50", "tpot_ms": "TPOT p50", "e2e_ms": "end p50"}
        known = [f"{title} x {ratios[key]:.2f}" for key, title in titles.items() if ratios[key] is not None]
        if known:
            yield f"sparsity {name} against {first}: " + ", ".join(known)


def _reported(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    found = list(reported_rows(rows))
    if found:
        yield ""
        yield f"{'medians':<9}  {'':<26}{'server':>10}{'client':>10}{'difference':>12}"
        for name, title, *cells in found:
            server, client, difference = cells
            yield f"{name:<9}  {title:<26}{server:>10}{client:>10}{difference:>12}"
    for name, row in rows.items():
        if row["griffin"]:
            yield f"{name:<9}  {parameters(row['griffin'])}"


def reported_rows(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """Sparsity, title, and three figures as text: server, client, difference."""
    for name, row in rows.items():
        for kind in ROWS:
            if cells := row["server_reported"].get(kind.name):
                yield name, kind.title, *(figure(cells[side]) for side in ("server", "client", "difference"))


def parameters(griffin: Mapping[str, Any]) -> str:
    """How many parameters were active and how many bytes of weights a token read, in words."""
    active, total = griffin["active_parameters"], griffin["total_parameters"]
    if not active or not total:
        return f"applied sparsity {griffin['sparsity']}"
    read = griffin["bytes_per_token"]
    beside = f", {read / 1e6:,.0f} MB of weights a token" if read else ""
    return f"{active:,.0f} of {total:,.0f} parameters active ({active / total * 100:.0f} %){beside}"
