"""What an experiment is, and how one is run: measured, kept as JSON, shown as tables, drawn."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from griffin.experiments.common.pictures import require_matplotlib, save
from griffin.experiments.common.results import Claim, Table, write_json
from griffin.experiments.common.study import Study, add_study_arguments, open_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]


class Experiment(Protocol):
    """A module. Its docstring's first line is its summary.

    TITLE: for the report, with the paper's table or figure.
    SEE: one sentence: what to look for in its picture or table.
    QUICK: flags of its own as ``--quick`` sets them, for a first look in a minute or two.
    """

    __doc__: str | None

    @property
    def TITLE(self) -> str: ...

    @property
    def SEE(self) -> str: ...

    @property
    def QUICK(self) -> Mapping[str, object]: ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its own flags, each with a default; those of ``add_study_arguments`` are there already."""

    def measure(self, study: Study, arguments: argparse.Namespace) -> Found:
        """Figures that JSON can hold. What takes long is asked of the study's ledger, and shows progress."""

    def tables(self, found: Found) -> list[Table]:
        """The figures as tables; may be none."""

    def draw(self, found: Found) -> "Figure | None":
        """The figures as a picture, if there is one."""

    def claims(self, found: Found) -> list[Claim]:
        """What the paper found in this experiment, and whether it is so here."""


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
        """Raises: GriffinError, ValueError: with one line for the user; what was computed is kept."""
        require_matplotlib()
        study = open_study(arguments)
        if arguments.quick:
            hasten(self._experiment, arguments)
        found = conduct(self.name, self._experiment, study, arguments)
        for table in self._experiment.tables(found):
            print(table.text(), end="\n\n")
        print(f"results: {', '.join(str(path) for path in written(self.name, study.folder))}")


def defaults(experiment: Experiment) -> argparse.Namespace:
    """Its own flags, as they are when none is given."""
    parser = argparse.ArgumentParser()
    experiment.add_arguments(parser)
    return parser.parse_args([])


def hasten(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """Make its flags those of ``--quick``, but for those that were given another value than they have anyway."""
    standard = defaults(experiment)
    for name, value in experiment.QUICK.items():
        if getattr(arguments, name) == getattr(standard, name):
            setattr(arguments, name, value)


def command_line(name: str, experiment: Experiment, arguments: argparse.Namespace) -> str:
    """The command that finds the same again, without the flags that say what would be so anyway."""
    parser = argparse.ArgumentParser()
    # One that is a command of its own has all its flags.
    command = experiment if hasattr(experiment, "run") else Command(name, experiment)
    command.add_arguments(parser)
    # Where results go changes none of them; --quick has become what it stands for.
    return spelled(name, parser, arguments, silent=("out", "quick"))


def spelled(
    name: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace, silent: Sequence[str] = ()
) -> str:
    """As ``command_line``, from a parser of all flags, of which some are left out."""
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
    """Measure, and write NAME.json and NAME.svg into the study's folder; what was found."""
    facts = {"experiment": name, "command": command_line(name, experiment, arguments), **study.facts()}
    found = {**facts, **experiment.measure(study, arguments)}
    write_json(study.folder / f"{name}.json", found)
    if figure := experiment.draw(found):
        save(figure, study.folder / f"{name}.svg")
    return found


def written(name: str, folder: Path) -> list[Path]:
    return [path for path in (folder / f"{name}.json", folder / f"{name}.svg") if path.exists()]
