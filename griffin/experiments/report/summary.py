"""Summary: the verdict on one model in words and tables, as Markdown. It stands first in a report."""

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
    return _headline(shown) if shown else "No task was run, so nothing is said here about quality."


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
    telling = [reading for reading in shown if not reading.mute]
    if not telling:
        return f"{where}: no verdict; the full model is no better than guessing in any of these tasks."
    near, tolerable, broken = (sum(r.grade == grade for r in telling) for grade in ("near", "tolerable", "broken"))
    faint = sum(reading.within(2) for reading in telling)
    return (
        f"{where}, of {len(telling)} task{'s' * (len(telling) > 1)}: {near} within 1 % of the full model, "
        f"{tolerable} with 1 to 5 % lost, {broken} with more lost. {_caution(faint, len(telling))}"
    ).strip()


def _caution(faint: int, tasks: int) -> str:
    if not faint:
        return ""
    which = ("All" if tasks > 1 else "It") if faint == tasks else f"{faint} of them"
    verb = "is" if faint == 1 else "are"
    return f"{which} {verb} within two standard errors of no change, and cannot be told from it."


def _grades(shown: Sequence[Reading]) -> list[str]:
    heads: dict[Grade, str] = {
        "near": "Within 1 %",
        "tolerable": "Within 5 %",
        "broken": "Breaks, more than 5 % lost",
    }
    lines = [f"- **{head}**: {_listed(shown, grade)}" for grade, head in heads.items()]
    mute = [f"{TITLES[r.task]} ({METRICS[r.metric]} {percent(r.full)}{_guessing(r)})" for r in shown if r.mute]
    if mute:
        lines.append(
            "- **Says nothing about this model**, whose full form is no better there than guessing, or than 0, by two "
            f"standard errors: {', '.join(mute)}"
        )
    return [*lines, *_noise([reading for reading in shown if not reading.mute])]


def _guessing(reading: Reading) -> str:
    return f", guessing {percent(reading.chance)}" if reading.chance else ""


def _listed(shown: Sequence[Reading], grade: Grade) -> str:
    return ", ".join(f"{TITLES[r.task]} ({signed(r.change)})" for r in shown if r.grade == grade) or "none"


def _noise(telling: Sequence[Reading]) -> list[str]:
    """Lines on what so few items cannot show."""
    # An error of 0 means that all items had equal answers: it does not measure chance.
    known = [(reading, reading.error) for reading in telling if reading.error]
    if not known:
        return []
    one = [reading for reading in telling if reading.within(1)]
    two = [reading for reading in telling if reading.within(2) and not reading.within(1)]
    lines = [
        f"- **Cannot be told from no change**, {size} of the difference: {_by_items(own)}"
        for size, own in (("being within one standard error", one), ("being within two standard errors", two))
        if own
    ]
    finest, coarsest = min(known, key=lambda pair: pair[1]), max(known, key=lambda pair: pair[1])
    span = f"{percent(2 * finest[1])} in {_by_items([finest[0]])}"
    if coarsest is not finest:
        span += f" to {percent(2 * coarsest[1])} in {_by_items([coarsest[0]])}"
    return [*lines, f"- **What this run can show**: changes larger than two standard errors, here {span}"]


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
        f"At {percent(shown[0].sparsity)} sparsity. The change is relative to the full model; its standard error is "
        "of pairs, since both answer the same items (as of separate items where no pair differs).",
        words=2,
    )  # fmt: skip


def _of_sweep(found: Sequence[Reading]) -> list[str]:
    if not found:
        return []
    return [_common(reaches(found)), _sweep(found).markdown()]


def _common(reached: Sequence[Reach]) -> str:
    """The sparsity up to which all tasks stay within the limits."""
    if not reached:
        return "No task says anything about this model at any sparsity."
    near = _up_to([reach.near for reach in reached])
    tolerable = _up_to([reach.tolerable for reach in reached])
    return f"All tasks that say something stay within 1 % {near}, and within 5 % {tolerable}."


def _up_to(reached: Sequence[float | None]) -> str:
    lowest = min(sparsity or 0.0 for sparsity in reached)
    return f"up to {percent(lowest)} sparsity" if lowest else "at no sparsity measured"


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
                *(limits or ["says nothing", "says nothing"]),
                *(_kept(own.get(sparsity)) for sparsity in sparsities),
                fixed(2 * max(errors)) if errors else "-",
            ]
        )
    return Table(
        ["task", "within 1 % up to", "within 5 % up to", *map(percent, sparsities), "two standard errors"],
        rows,
        "Score at each sparsity in percent of the full model's, and the largest sparsity up to which all measured "
        "ones keep within 1 % and 5 % of it (by the scores as they are; two standard errors: the largest in the row).",
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
        f"at {percent(found['sparsity'])} sparsity {signed(least)} over the full model's at best ({easiest}), "
        f"{signed(most)} at worst ({hardest})."
    )


def _counted(claims: Mapping[str, Sequence[Claim]], titles: Mapping[str, str]) -> str:
    """How many of the paper's findings hold here."""
    answers = {"hold here": True, "do not hold": False, "cannot be told": None}
    parts = [f"- **The paper's findings**: tested: {sum(map(len, claims.values()))}"]
    for words, answer in answers.items():
        where = [titles.get(name, name) for name, own in claims.items() for claim in own if claim.holds is answer]
        names = f", in: {', '.join(map(escaped, dict.fromkeys(where)))}" if where and not answer else ""
        parts.append(f"{words}: {len(where)}{names}")
    return "; ".join(parts) + "."


def percent(fraction: float) -> str:
    """A fraction in percent, with one digit after the point unless it is 0."""
    return f"{fraction * 100:.1f}".removesuffix(".0") + " %"


def fixed(fraction: float) -> str:
    """A fraction in percent, always with one digit after the point, for columns of figures."""
    return f"{fraction * 100:.1f} %"


def signed(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{fraction * 100:+.1f} %"
