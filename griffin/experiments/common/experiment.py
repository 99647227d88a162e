"""Experiment: its protocol, and how it runs. It is measured, written as JSON, shown as tables, and drawn."""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from griffin.experiments.common.pictures import NEEDED, can_draw, redraw
from griffin.experiments.common.results import Claim, Table, write_json
from griffin.experiments.common.study import Study, add_study_arguments, open_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]


class Experiment(Protocol):
    """A module. Its docstring is its help, and the first line is its summary.

    TITLE: its heading in the report, with the paper's table or figure.
    SEE: what to look for in its picture or table, in one to three sentences.
    QUICK: the values that ``--quick`` gives to its own flags, for a first look in a minute or two.
    """

    __doc__: str | None

    @property
    def TITLE(self) -> str: ...

    @property
    def SEE(self) -> str: ...

    @property
    def QUICK(self) -> Mapping[str, object]: ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its own flags, each with a default. The parser already has those of ``add_study_arguments``."""

    def measure(self, study: Study, arguments: argparse.Namespace) -> Found:
        """The figures, as JSON can hold them. Slow work goes through the study's ledger and shows progress."""

    def tables(self, found: Found) -> list[Table]:
        """The figures as tables, if there are any."""

    @property
    def draw(self) -> "Callable[[Found], Figure] | None":
        """A function that draws the figures as a picture; None: the experiment has no picture."""

    def claims(self, found: Found) -> list[Claim]:
        """The paper's claims about this experiment, and whether they hold here."""


class Command:
    """An experiment as a command of ``python -m griffin.experiments``."""

    def __init__(self, name: str, experiment: Experiment) -> None:
        self.name, self._experiment = name, experiment
        self.__doc__ = experiment.__doc__

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_study_arguments(parser)
        parser.add_argument("--quick", action="store_true", help="a first look: fewer samples, shorter texts")
        self._experiment.add_arguments(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        """Measure, and print tables and the names of the files.

        Raises:
            GriffinError, ValueError: one line for the user. Everything computed so far is kept.
        """
        study = open_study(arguments)
        if arguments.quick:
            hasten(self._experiment, arguments)
        found = conduct(self.name, self._experiment, study, arguments)
        for table in self._experiment.tables(found):
            print(table.text(), end="\n\n")
        print(f"results: {', '.join(str(path) for path in written(self.name, study.folder))}")
        if self._experiment.draw is not None and not can_draw():
            print(f"no picture was drawn: {NEEDED}")


def defaults(experiment: Experiment) -> argparse.Namespace:
    """The default values of its own flags."""
    parser = argparse.ArgumentParser()
    experiment.add_arguments(parser)
    return parser.parse_args([])


def hasten(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """Set its flags as ``--quick`` does, except flags whose values are not their defaults."""
    standard = defaults(experiment)
    for name, value in experiment.QUICK.items():
        if getattr(arguments, name) == getattr(standard, name):
            setattr(arguments, name, value)


def command_line(name: str, experiment: Experiment, arguments: argparse.Namespace) -> str:
    """The command that repeats this run, without flags that have their defaults."""
    parser = argparse.ArgumentParser()
    # An experiment with ``run`` is itself a command, and adds all its flags.
    command = experiment if hasattr(experiment, "run") else Command(name, experiment)
    command.add_arguments(parser)
    # --out changes no result, and the values of --quick stand in the other flags.
    return spelled(name, parser, arguments, silent=("out", "quick"))


def spelled(
    name: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace, silent: Sequence[str] = ()
) -> str:
    """As ``command_line``, from a parser of all flags. ``silent``: flags to leave out."""
    words = ["python", "-m", "griffin.experiments", name]
    for flag, standard in vars(parser.parse_args([])).items():
        value = getattr(arguments, flag, standard)
        if flag in silent or (value == standard and flag != "model"):
            continue
        words.append(f"--{flag.replace('_', '-')}")
        if value is not True:
            words += [str(one) for one in (value if isinstance(value, list) else [value])]
    return shlex.join(words)


def conduct(name: str, experiment: Experiment, study: Study, arguments: argparse.Namespace) -> Found:
    """Measure, and write NAME.json and, with matplotlib, NAME.svg into the study's folder.

    Returns:
        The contents of NAME.json.
    """
    facts = {"experiment": name, "command": command_line(name, experiment, arguments), **study.facts()}
    found = {**facts, **experiment.measure(study, arguments)}
    write_json(study.folder / f"{name}.json", found)
    if experiment.draw is not None:
        redraw(study.folder / f"{name}.svg", partial(experiment.draw, found))
    return found


def written(name: str, folder: Path) -> list[Path]:
    """The files that ``conduct`` has written."""
    return [path for path in (folder / f"{name}.json", folder / f"{name}.svg") if path.exists()]
