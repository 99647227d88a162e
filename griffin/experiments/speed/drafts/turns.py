"""Turns: several ways answer the same prompts one after the other. Each row compares a way with its base."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Table, percent
from griffin.experiments.speed.drafts.ways import Answer, Ids, Way

Row = dict[str, Any]
Item = TypeVar("Item")
# The answers to each prompt, by the name of the way.
Answers = list[dict[str, Answer]]


def rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """All items in order. Another item comes first at each turn."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


def in_turns(ways: Sequence[Way], prompts: Sequence[Ids], what: str, kept: Callable[[list[Row]], None]) -> list[Row]:
    """All ways answer each prompt in turn, so that other load on the machine slows all of them equally.

    One more answer to the first prompt comes before and does not count. Another way begins at each prompt.

    Args:
        what: the part's name, for the progress.
        kept: called after each prompt with the rows so far.
    """
    answers: Answers = []
    with Progress(len(ways) * (len(prompts) + 1)) as progress:
        for number, prompt in enumerate([prompts[0], *prompts]):
            found = {}
            for way in rotated(ways, number):
                progress.begin(f"{what}, prompt {number} of {len(prompts)}, {way.name}")
                found[way.name] = way.run(prompt)
                progress.advance()
            if number:
                answers.append(found)
                kept(rows(ways, answers))
    return rows(ways, answers)


def rows(ways: Sequence[Way], answers: Answers) -> list[Row]:
    """One row for each way: medians over the prompts whose answers have a speed."""
    return [_row(way, answers) for way in ways]


def _row(way: Way, answers: Answers) -> Row:
    own, base = ([each[name] for each in answers] for name in (way.name, way.base))
    ratios = [mine.speed / by.speed for mine, by in zip(own, base, strict=True) if mine.timed and by.timed]
    speeds = [each.speed for each in own if each.timed]
    tokens = sum(len(each.ids) for each in own)
    return {
        "name": way.name,
        "base": way.base,
        "answers": len(own),
        "tokens": tokens,
        "seconds": sum(each.seconds for each in own),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "speeds": [each.speed if each.timed else None for each in own],
        "over_base": statistics.median(ratios) if ratios else None,
        "lowest": min(ratios, default=None),
        "highest": max(ratios, default=None),
        "drafted": sum(each.drafted for each in own),
        "accepted": sum(each.accepted for each in own),
        "same": sum(mine.ids == by.ids for mine, by in zip(own, base, strict=True)),
    }


def table(rows: Sequence[Row], caption: str, base: str) -> Table:
    """The rows as a table. ``base``: the name of the way that the others are compared with."""
    heads = ("", "tokens/s", f"x {base}", "lowest - highest", "accepted", "of all tokens", f"as {base}")
    return Table(heads, [_cells(row) for row in rows], caption)


def _cells(row: Row) -> tuple[str, ...]:
    compared = row["base"] != row["name"]
    return (
        row["name"],
        _number(row["tokens_per_second"], 1),
        f"{_number(row['over_base'], 2)}x" if compared else "-",
        f"{_number(row['lowest'], 2)} - {_number(row['highest'], 2)}" if compared else "-",
        f"{row['accepted']} of {row['drafted']}" if row["drafted"] else "-",
        percent(row["accepted"] / row["tokens"]) if row["drafted"] else "-",
        f"{row['same']} of {row['answers']}" if compared else "-",
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["name"]: row for row in rows}
