"""Equality: do drafts leave answers as they are, and do lossless answers equal the full model's, token by token?"""

from collections.abc import Callable, Sequence
from typing import Any

from griffin import Engine, Pruning, Sampling
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.speed.drafts.ways import Answer, Ids, Way, lossless, with_and_without

Row = dict[str, Any]
SEED = 26
KINDS = {"greedy": 0.0, "sampled": 1.0}


def measure(
    engine: Engine,
    prompts: Sequence[Ids],
    prunings: dict[str, Pruning],
    tokens: int,
    kept: Callable[[list[Row]], None],
) -> list[Row]:
    """One row for each kind and compared way.

    Args:
        prunings: the full model first.
        tokens: the length of every answer; stop tokens do not end one.
        kept: called after each prompt with the rows so far.
    """
    compared = [(kind, _ways(engine, prunings, temperature, tokens)) for kind, temperature in KINDS.items()]
    rows = {(kind, way.name): _row(kind, way) for kind, own in compared for way in own if way.name != way.base}
    with Progress(len(prompts) * sum(len(own) for _, own in compared)) as progress:
        for place, prompt in enumerate(prompts):
            for kind, own in compared:
                found: dict[str, Answer] = {}
                for way in own:
                    progress.begin(f"equal, prompt {place + 1} of {len(prompts)}, {kind}, {way.name}")
                    found[way.name] = way.run(prompt)
                    if way.name != way.base:
                        _compare(rows[kind, way.name], place, found[way.name], found[way.base])
                    progress.advance()
            kept(list(rows.values()))
    return list(rows.values())


def _ways(engine: Engine, prunings: dict[str, Pruning], temperature: float, tokens: int) -> list[Way]:
    """All ways. Each comes after the way that it is compared with."""
    sampling = Sampling(temperature=temperature, seed=SEED, max_tokens=tokens, ignore_eos=True)
    return [*with_and_without(engine, prunings, sampling), *lossless(engine, prunings, sampling)]


def _row(kind: str, way: Way) -> Row:
    counts = dict.fromkeys(("answers", "same", "tokens", "drafted", "accepted"), 0)
    return {"name": way.name, "base": way.base, "kind": kind, **counts, "parted": []}


def _compare(row: Row, place: int, found: Answer, expected: Answer) -> None:
    """Count an answer. ``parted`` lists each prompt whose answers differ, with the place of the first difference."""
    row["answers"] += 1
    row["tokens"] += len(expected.ids)
    row["drafted"] += found.drafted
    row["accepted"] += found.accepted
    row["same"] += found.ids == expected.ids
    if found.ids != expected.ids:
        pairs = zip(found.ids, expected.ids, strict=False)
        shorter = min(len(found.ids), len(expected.ids))
        first = next((number for number, (own, other) in enumerate(pairs) if own != other), shorter)
        row["parted"].append([place, first])


def table(rows: Sequence[Row], caption: str) -> Table:
    heads = ("equal", "as", "drawn", "accepted", "tokens", "answers equal")
    cells = [
        (
            row["name"],
            row["base"],
            row["kind"],
            f"{row['accepted']} of {row['drafted']}",
            str(row["tokens"]),
            f"{row['same']} of {row['answers']}",
        )
        for row in rows
    ]
    return Table(heads, cells, caption, words=3)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Whether all answers are equal. Unknown if a way drafted no token, because equality then shows nothing."""
    wrong = [f"{row['name']}, {row['kind']}: {row['same']} of {row['answers']}" for row in rows if row["parted"]]
    idle = [f"{row['name']}, {row['kind']}" for row in rows if not row["drafted"]]
    here = f"differ: {'; '.join(wrong)}" if wrong else f"all {sum(row['answers'] for row in rows)} answers"
    if idle:
        here += f"; nothing was drafted: {'; '.join(idle)}"
    statement = "Drafts change no token, and lossless answers have the tokens of sparsity 0."
    return [Claim(statement, False if wrong else None if idle else True, f"{here}.")]
