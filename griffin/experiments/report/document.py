"""Document: a report as Markdown. The verdict is first; then each experiment has a section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from griffin.experiments.common.results import Claim, Table, escaped
from griffin.experiments.report.comparison import comparison
from griffin.experiments.report.published import ADDRESS, CITATION
from griffin.experiments.report.summary import headline, summary

ANSWERS = {True: "yes", False: "no", None: "cannot tell"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of one experiment with one model.

    picture: its path from the folder of the document; None if there is none.
    """

    found: Mapping[str, Any]
    tables: Sequence[Table]
    claims: Sequence[Claim]
    picture: str | None


@dataclass(slots=True)
class Subject:
    """One model of a report.

    facts: those of ``Study.facts``; empty if the model could not be loaded.
    outcomes, failures: by experiment. A failure is one line.
    """

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def founds(self) -> dict[str, Mapping[str, Any]]:
        return {name: outcome.found for name, outcome in self.outcomes.items()}


@dataclass(frozen=True, slots=True)
class Section:
    """An experiment's name and texts, see ``Experiment``."""

    name: str
    title: str
    see: str


def title(subjects: Sequence[Subject]) -> str:
    return f"GRIFFIN on {', '.join(subject.name for subject in subjects)}"


def document(subjects: Sequence[Subject], sections: Sequence[Section], command: str, short: str = "") -> str:
    """
    Args:
        subjects: in the order of the report; at least one has facts.
        sections: the experiments that were asked for.
        command: the command that makes this document again.
        short: one or two sentences, if this run used fewer samples than by default; else empty.
    """
    several = len(subjects) > 1
    parts = [
        f"# {escaped(title(subjects))}",
        "GRIFFIN generates with only those feed-forward (FF) neurons that the prompt used most. This page repeats the "
        f"experiments of its paper, [{CITATION}]({ADDRESS}), with this project's own implementation.",
        "## Verdict",
        *_verdicts(subjects, sections, several),
        "## What was run",
        *_run(subjects, command, short),
    ]
    for section in sections:
        parts += _section(section, subjects, several)
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(subjects: Sequence[Subject], sections: Sequence[Section], several: bool) -> list[str]:
    parts = ["\n".join(map(_in_short, subjects))] if several else []
    for subject in subjects:
        if several:
            parts.append(f"### {escaped(subject.name)}")
        if subject.outcomes:
            claims = {name: outcome.claims for name, outcome in subject.outcomes.items()}
            parts.append(summary(subject.founds, claims, {section.name: section.title for section in sections}))
        parts += _missing(subject, sections)
    return parts


def _in_short(subject: Subject) -> str:
    return f"- **{escaped(subject.name)}**: {headline(subject.founds) if subject.outcomes else 'nothing was measured.'}"


def _missing(subject: Subject, sections: Sequence[Section]) -> list[str]:
    """The experiments that failed. Readers of the verdict must know that they are missing."""
    if not subject.facts:
        return [_failed(subject.name, reason) for reason in subject.failures.values()]
    lacking = [section.title for section in sections if section.name in subject.failures]
    if not lacking:
        return []
    return [f"Not part of this verdict, because they failed (see their sections): {escaped('; '.join(lacking))}."]


def _failed(what: str, reason: str) -> str:
    return f"**Failed**: {escaped(what)}: {escaped(reason)}"


def _run(subjects: Sequence[Subject], command: str, short: str) -> list[str]:
    loaded = [subject for subject in subjects if subject.facts]
    heads = ["", *(subject.name for subject in loaded)]
    columns = [_facts(subject.facts) for subject in loaded]
    rows = [[fact, *(column[fact] for column in columns)] for fact in columns[0]]
    return [Table(heads, rows, words=len(heads)).markdown(), short, "To make this report again:", _code(command)]


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    layers, width = facts["layers"], facts["neurons_per_layer"]
    return {
        "architecture": str(facts["model_type"]),
        "parameters": _count(facts["parameters"]),
        "FF neurons": f"{layers} layers of {width:,}",
        "dtype": str(facts["dtype"]),
        "hardware": str(facts["device_name"]),
        "data": str(facts["data"]),
        "date": _date(facts["date"]),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"


def _code(command: str) -> str:
    # A fence must be longer than any run of backticks in the text.
    fence = "`" * max(3, 1 + max((len(run) for run in _runs_of_backticks(command)), default=0))
    return f"{fence}sh\n{command}\n{fence}"


def _runs_of_backticks(text: str) -> list[str]:
    return "".join(mark if mark == "`" else " " for mark in text).split()


def _section(section: Section, subjects: Sequence[Subject], several: bool) -> list[str]:
    parts = [f"## {escaped(section.title)}", escaped(section.see)]
    for subject in subjects:
        if outcome := subject.outcomes.get(section.name):
            if several:
                parts.append(f"### {escaped(subject.name)}")
            parts += _shown(section, subject, outcome)
        elif section.name in subject.failures:
            parts.append(_failed(subject.name, subject.failures[section.name]))
    founds = {s.name: s.outcomes[section.name].found for s in subjects if section.name in s.outcomes}
    if beside := comparison(section.name, founds):
        parts.append(beside.markdown())
    return [*parts, _claims(section, subjects, several)]


def _shown(section: Section, subject: Subject, outcome: Outcome) -> list[str]:
    alternative = escaped(f"{section.title}, {subject.name}")
    picture = [f"![{alternative}]({quote(outcome.picture)})"] if outcome.picture else []
    return [*picture, *(table.markdown() for table in outcome.tables), *_how(outcome.found)]


def _how(found: Mapping[str, Any]) -> list[str]:
    """How the results were made. Kept results may be from another day and machine than the rest."""
    facts = (found["model"], found["dtype"], found["device_name"], f"data: {found['data']}", _date(found["date"]))
    return [escaped(", ".join(map(str, facts))), _code(found["command"])]


def _date(stamp: str) -> str:
    return stamp.replace("T", " ").replace("+00:00", " UTC")


def _claims(section: Section, subjects: Sequence[Subject], several: bool) -> str:
    claims = [
        (subject.name, claim)
        for subject in subjects
        if section.name in subject.outcomes
        for claim in subject.outcomes[section.name].claims
    ]
    if not claims:
        return ""
    heads = ["the paper found", *(["model"] if several else []), "holds here", "what this run shows"]
    rows = [[claim.paper, *([name] if several else []), ANSWERS[claim.holds], claim.here] for name, claim in claims]
    return Table(heads, rows, words=len(heads)).markdown()
