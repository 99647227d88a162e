"""Run all experiments of the paper, on one model or several, and show them on one page: results/report.html.

The experiments run one after the other. Each model's results go to its own folder, as when an experiment runs alone.
The page has a verdict, pictures, tables and the paper's figures beside this run's. It says for each finding of the
paper whether it holds here. report.md is the same as Markdown. A stopped run continues when it is started again. If an
experiment fails, the report says so, and the other experiments still run.
"""

import argparse
import gc
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

from griffin.errors import GriffinError, is_out_of_memory
from griffin.experiments.common.experiment import Experiment, Found, conduct, defaults, hasten, spelled
from griffin.experiments.common.kinds import whole
from griffin.experiments.common.pictures import require_matplotlib
from griffin.experiments.common.results import write_whole
from griffin.experiments.common.study import Study, add_study_arguments, open_study
from griffin.experiments.registry import EXPERIMENTS
from griffin.experiments.report.document import Outcome, Section, Subject, document, title
from griffin.experiments.report.page import page, require_markdown_it

logger = logging.getLogger("griffin.report")

# Flags of the report. An experiment (latency) may have them too, but gets the report's values.
SHARED = ("model", "dtype", "device", "data", "out", "quick")

Experiments = Mapping[str, Experiment]
Open = Callable[[argparse.Namespace], Study]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser, several=True)
    parser.add_argument(
        "--experiments", nargs="+", choices=list(EXPERIMENTS), metavar="NAME",
        help=f"experiments to run: {', '.join(EXPERIMENTS)} (all)",
    )  # fmt: skip
    parser.add_argument(
        "--limit",
        type=partial(whole, lowest=0),
        metavar="N",
        help="items of each task, 0 for all (each task's own number)",
    )
    parser.add_argument("--quick", action="store_true", help="a first look: fewer samples, shorter texts")
    parser.add_argument(
        "--keep", action="store_true",
        help="do not repeat experiments that have results for this model, from a run with any flags",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Run the experiments and write the report.

    Raises:
        GriffinError: something failed; the report of everything else is written.
        ValueError: --data is not a directory.
    """
    names = arguments.experiments or list(EXPERIMENTS)
    make_report(arguments, {name: EXPERIMENTS[name] for name in EXPERIMENTS if name in names}, open_study)


def make_report(arguments: argparse.Namespace, experiments: Experiments, opened: Open) -> None:
    """Run these experiments and write the report, as ``run`` does. ``opened`` makes a study from one model's flags."""
    require_matplotlib()
    require_markdown_it()
    if arguments.data is not None and not arguments.data.is_dir():
        raise ValueError(f"--data: '{arguments.data}' is not a directory")
    subjects: list[Subject] = []
    for model in dict.fromkeys(arguments.model):
        own = argparse.Namespace(**{**vars(arguments), "model": model})
        subjects.append(examine(own, experiments, opened, {subject.name for subject in subjects}))
    if any(subject.facts for subject in subjects):
        _write(arguments, subjects, experiments)
    _raise_failures(subjects)


def examine(arguments: argparse.Namespace, experiments: Experiments, opened: Open, taken: Iterable[str]) -> Subject:
    """Run all experiments on one model. ``taken``: the names of models that already have results."""
    try:
        study = opened(arguments)
    except Exception as error:
        return Subject(arguments.model, failures={"model": _reason(error)})
    if study.name in taken:
        reason = f"another model is called {study.name} too, and results would share a folder; give it another --out"
        return Subject(arguments.model, failures={"model": reason})
    subject = Subject(study.name, study.facts())
    for number, (name, experiment) in enumerate(experiments.items(), start=1):
        kept = kept_results(name, study) if arguments.keep else None
        doing = "results are there" if kept else f"{number} of {len(experiments)}"
        print(f"{study.name}: {name} ({doing})", file=sys.stderr, flush=True)
        try:
            found = kept or conduct(name, experiment, study, settings(experiment, arguments))
            subject.outcomes[name] = _outcome(name, experiment, found, study, arguments.out)
        except Exception as error:
            subject.failures[name] = _reason(error)
    # The next model may need the memory.
    del study
    gc.collect()
    torch.cuda.empty_cache()
    return subject


def settings(experiment: Experiment, arguments: argparse.Namespace) -> argparse.Namespace:
    """All flags of one experiment: the report's, and its own with their defaults, quick or limited."""
    own = defaults(experiment)
    if arguments.quick:
        hasten(experiment, own)
    if arguments.limit is not None and hasattr(own, "limit"):
        own.limit = arguments.limit
    shared = {name: getattr(arguments, name) for name in SHARED}
    return argparse.Namespace(**{**vars(arguments), **vars(own), **shared})


def kept_results(name: str, study: Study) -> Found | None:
    """The results of an earlier run with the same weights; None if there are none, or if they cannot be read."""
    try:
        found = json.loads((study.folder / f"{name}.json").read_text())
        return found if found["command"] and found["identity"] == study.facts()["identity"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _outcome(name: str, experiment: Experiment, found: Found, study: Study, out: Path) -> Outcome:
    picture = study.folder / f"{name}.svg"
    return Outcome(
        found,
        experiment.tables(found),
        experiment.claims(found),
        picture.relative_to(out).as_posix() if picture.exists() else None,
    )


def _reason(error: Exception) -> str:
    """The error in one line. A fault of the program is also logged with its traceback."""
    if is_out_of_memory(error):
        return "out of memory; try a smaller dtype or a larger device"
    if not isinstance(error, GriffinError | ValueError):
        logger.error("this is a fault of the program", exc_info=error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write(arguments: argparse.Namespace, subjects: list[Subject], experiments: Experiments) -> None:
    sections = [Section(name, experiment.TITLE, experiment.SEE) for name, experiment in experiments.items()]
    text = document(subjects, sections, command(arguments), _short(arguments))
    folder: Path = arguments.out
    write_whole(folder / "report.md", text)
    write_whole(folder / "report.html", page(text, title(subjects), folder))
    print(f"report: {folder / 'report.html'}, {folder / 'report.md'}")


def _short(arguments: argparse.Namespace) -> str:
    """One or two sentences, if this run used fewer samples than by default; else empty."""
    parts = ["A first look (--quick): fewer samples and shorter texts than by default."] if arguments.quick else []
    if arguments.limit is not None:
        parts.append(f"At most {arguments.limit} items of each task (--limit).")
    return " ".join(parts)


def command(arguments: argparse.Namespace) -> str:
    """The command that repeats this report, without flags that have their defaults."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return spelled("report", parser, arguments)


def _raise_failures(subjects: list[Subject]) -> None:
    lines = [
        f"{subject.name}: {reason}" if name == "model" else f"{subject.name}, {name}: {reason}"
        for subject in subjects
        for name, reason in subject.failures.items()
    ]
    if len(lines) == 1:
        raise GriffinError(lines[0])
    for line in lines:
        print(f"griffin: {line}", file=sys.stderr)
    if lines:
        raise GriffinError(f"{len(lines)} parts of the report failed")
