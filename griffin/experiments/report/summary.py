"""Summary: the verdict on one model in words and tables, as Markdown. It comes first in a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from griffin.experiments.common.results import Claim, Table, escaped
from griffin.experiments.report.readings import Grade, Reach, Reading, of_all, reaches, readings
from griffin.experiments.tasks.scores import METRICS, TITLES

PAPERS_SPARSITY = 0.5


def summary(
    founds: Mapping[str, Mapping[str, Any]], claims: Mapping[str, Sequence[Claim]], titles: Mapping[str, str]
) -> str:
    """
    Args:
        founds, claims: the results and the paper's claims, by the name of the experiment.
        titles: the titles of the experiments, by name.
    """
    parts = [f"> **{headline(founds)}**", *_of_tasks(of_all(founds))]
    if "sparsity" in founds:
        parts += _of_sweep(readings(founds["sparsity"]))
    lines = [f"- **Perplexity**: {_of_perplexity(founds['perplexity'])}"] if "perplexity" in founds else []
    if speed := claims.get("latency"):
        lines.append(f"- **Speed**: {' '.join(escaped(claim.here) for claim in speed)}")
    if any(claims.values()):
        lines.append(_counted(claims, titles))
    return "\n\n".join([*parts, "\n".join(lines)]).strip()


def headline(founds: Mapping[str, Mapping[str, Any]]) -> str:
    """The verdict in a sentence or two, at 50 % sparsity or the nearest one that was measured."""
    shown = at_sparsity(of_all(founds))
    return _headline(shown) if shown else "No task was run, so this report cannot judge quality."


def at_sparsity(found: Sequence[Reading], wanted: float = PAPERS_SPARSITY) -> list[Reading]:
    """The readings at this sparsity, or at the nearest one that was measured."""
    nearest = min((reading.sparsity for reading in found), key=lambda sparsity: abs(sparsity - wanted), default=wanted)
    return [reading for reading in found if reading.sparsity == nearest]


def _of_tasks(found: Sequence[Reading]) -> list[str]:
    if not found:
        return []
    shown = at_sparsity(found)
    return ["\n".join(_grades(shown)), _detail(shown).markdown()]


def _headline(shown: Sequence[Reading]) -> str:
    where = f"At {percent(shown[0].sparsity)} sparsity"
    judged = [reading for reading in shown if not reading.mute]
    if not judged:
        return f"{where}: no verdict, because the full model is no better than guessing in any of these tasks."
    near, tolerable, broken = (sum(r.grade == grade for r in judged) for grade in ("near", "tolerable", "broken"))
    faint = sum(reading.within(2) for reading in judged)
    return (
        f"{where}, {near} of {len(judged)} task{'s' * (len(judged) > 1)} stay{'s' * (near == 1)} within 1 % of the "
        f"full model, {tolerable} lose{'s' * (tolerable == 1)} 1 to 5 %, and {broken} lose{'s' * (broken == 1)} more. "
        f"{_caution(faint, len(judged))}"
    ).strip()


def _caution(faint: int, tasks: int) -> str:
    if not faint:
        return ""
    if faint == 1:
        which = "The change" if tasks == 1 else f"1 of the {tasks} changes"
        return f"{which} is within two standard errors, so it may be chance."
    which = f"All {tasks}" if faint == tasks else f"{faint} of the {tasks}"
    return f"{which} changes are within two standard errors, so they may be chance."


def _grades(shown: Sequence[Reading]) -> list[str]:
    heads: dict[Grade, str] = {
        "near": "Within 1 % of the full model",
        "tolerable": "Loses 1 to 5 %",
        "broken": "Loses more than 5 %",
    }
    lines = [f"- **{head}**: {_listed(shown, grade)}" for grade, head in heads.items()]
    mute = [f"{TITLES[r.task]} ({METRICS[r.metric]} {percent(r.full)}{_guessing(r)})" for r in shown if r.mute]
    if mute:
        lines.append(
            "- **Not judged**, because the full model is not two standard errors above guessing (or above 0): "
            f"{', '.join(mute)}"
        )
    return [*lines, *_noise([reading for reading in shown if not reading.mute])]


def _guessing(reading: Reading) -> str:
    return f", guessing {percent(reading.chance)}" if reading.chance else ""


def _listed(shown: Sequence[Reading], grade: Grade) -> str:
    return ", ".join(f"{TITLES[r.task]} ({signed(r.change)})" for r in shown if r.grade == grade) or "none"


def _noise(judged: Sequence[Reading]) -> list[str]:
    """Lines on the changes that may be chance, because the items are so few."""
    # An error of 0 means that all items had equal answers: it does not measure chance.
    known = [(reading, reading.error) for reading in judged if reading.error]
    if not known:
        return []
    one = [reading for reading in judged if reading.within(1)]
    two = [reading for reading in judged if reading.within(2) and not reading.within(1)]
    lines = [
        f"- **May be chance**, because the change is {size}: {_by_items(own)}"
        for size, own in (("within one standard error", one), ("between one and two standard errors", two))
        if own
    ]
    finest, coarsest = min(known, key=lambda pair: pair[1]), max(known, key=lambda pair: pair[1])
    span = f"{percent(2 * finest[1])} in {_by_items([finest[0]])}"
    if coarsest is not finest:
        span = f"from {span} to {percent(2 * coarsest[1])} in {_by_items([coarsest[0]])}"
    return [*lines, f"- **Smallest change that this run can show** (two standard errors): {span}"]


def _by_items(own: Sequence[Reading]) -> str:
    """The tasks, grouped by their number of items."""
    groups: dict[int | None, list[str]] = {}
    for reading in own:
        groups.setdefault(reading.items, []).append(TITLES[reading.task])
    return "; ".join(", ".join(names) + (f" ({items} items)" if items else "") for items, names in groups.items())


def _detail(shown: Sequence[Reading]) -> Table:
    return Table(
        ["task", "metric", "items", "full", "GRIFFIN", "change", "two standard errors"],
        [
            [
                TITLES[r.task], METRICS[r.metric], str(r.items or "-"),
                fixed(r.full), fixed(r.pruned), signed(r.change), "-" if r.error is None else fixed(2 * r.error),
            ]
            for r in shown
        ],
        f"Scores at {percent(shown[0].sparsity)} sparsity. The change is relative to the full model. Its standard "
        "error comes from pairs, because both models answer the same items. Where no pair differs, it is computed as "
        "if the items were different ones, and is too large.",
        words=2,
    )  # fmt: skip


def _of_sweep(found: Sequence[Reading]) -> list[str]:
    if not found:
        return []
    return [_common(reaches(found)), _sweep(found).markdown()]


def _common(reached: Sequence[Reach]) -> str:
    """The sparsity up to which all judged tasks stay within the limits."""
    if not reached:
        return "No task of the sweep over sparsities can be judged."
    near = _reached(_lowest([reach.near for reach in reached]))
    tolerable = _reached(_lowest([reach.tolerable for reach in reached]))
    return (
        "Largest measured sparsity up to which all judged tasks stay within 1 % of the full model: "
        f"{near}. Within 5 %: {tolerable}."
    )


def _lowest(reached: Sequence[float | None]) -> float | None:
    """The lowest of these sparsities; None if any task reaches none."""
    return min(sparsity or 0.0 for sparsity in reached) or None


def _sweep(found: Sequence[Reading]) -> Table:
    sparsities = sorted({reading.sparsity for reading in found})
    reached = {reach.task: reach for reach in reaches(found)}
    rows = []
    for task in dict.fromkeys(reading.task for reading in found):
        own = {reading.sparsity: reading for reading in found if reading.task == task}
        errors = [reading.error for reading in own.values() if reading.error is not None]
        limits = [_reached(getattr(reached[task], name)) for name in ("near", "tolerable")] if task in reached else []
        rows.append(
            [
                TITLES[task],
                *(limits or ["not judged", "not judged"]),
                *(_kept(own.get(sparsity)) for sparsity in sparsities),
                fixed(2 * max(errors)) if errors else "-",
            ]
        )
    return Table(
        ["task", "within 1 % up to", "within 5 % up to", *map(percent, sparsities), "two standard errors"],
        rows,
        "Scores in percent of the full model's. A task is within 1 % up to a sparsity if its score is within 1 % there "
        "and at all smaller measured sparsities. This does not consider standard errors. The last column is the "
        "largest of the row.",
    )


def _kept(reading: Reading | None) -> str:
    return f"{reading.kept * 100:.1f}" if reading and reading.full else "-"


def _reached(sparsity: float | None) -> str:
    return "none" if sparsity is None else percent(sparsity)


def _of_perplexity(found: Mapping[str, Any]) -> str:
    """The smallest and the largest increase over the full model's perplexity, and where they are."""
    increases = [
        (griffin / full - 1, f"{length} tokens generated after a prompt of {prompt}")
        for prompt, fulls, griffins in zip(found["prompts"], found["full"], found["griffin"], strict=True)
        for length, full, griffin in zip(found["generations"], fulls, griffins, strict=True)
    ]
    (least, easiest), (most, hardest) = min(increases), max(increases)
    return (
        f"at {percent(found['sparsity'])} sparsity it changes by {signed(least)} at best ({easiest}) and by "
        f"{signed(most)} at worst ({hardest})."
    )


def _counted(claims: Mapping[str, Sequence[Claim]], titles: Mapping[str, str]) -> str:
    """How many of the paper's findings hold here, and the titles of the experiments where some do not."""
    where: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, own in claims.items():
        for claim in own:
            where[claim.holds].append(escaped(titles.get(name, name)))
    yes, no, unclear = (len(where[answer]) for answer in (True, False, None))
    text = (
        f"- **The paper's findings**: of {yes + no + unclear} that were tested, {yes} hold{'s' * (yes == 1)} here. "
        f"{no} do{'es' * (no == 1)} not hold{_there(where[False])}."
    )
    return f"{text} This run cannot judge {unclear}{_there(where[None])}." if unclear else text


def _there(titles: Sequence[str]) -> str:
    return f": {'; '.join(dict.fromkeys(titles))}" if titles else ""


def percent(fraction: float) -> str:
    """A fraction in percent, with one digit after the point unless it is 0."""
    return f"{fraction * 100:.1f}".removesuffix(".0") + " %"


def fixed(fraction: float) -> str:
    """A fraction in percent, always with one digit after the point, for columns of figures."""
    return f"{fraction * 100:.1f} %"


def signed(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{fraction * 100:+.1f} %"
