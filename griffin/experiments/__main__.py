"""``python -m griffin.experiments NAME``: one experiment, its flags behind ``NAME --help``."""

import argparse
import logging
import sys
from typing import NoReturn, Protocol

from griffin.errors import GriffinError
from griffin.experiments import acceptance, calibrate, drift, latency, offload, pace, pareto, report, tune
from griffin.experiments.experiment import Command
from griffin.experiments.registry import EXPERIMENTS


class Runnable(Protocol):
    """A command: a module, or an experiment as one."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


COMMANDS: dict[str, Runnable] = {
    **{name: Command(name, experiment) for name, experiment in EXPERIMENTS.items()},
    "pareto": Command("pareto", pareto),
    "acceptance": Command("acceptance", acceptance),
    "drift": Command("drift", drift),
    "pace": Command("pace", pace),
    "calibrate": calibrate,
    "latency": latency,
    "offload": offload,
    "report": report,
    "tune": tune,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line that names the flag; the usage, of many lines, is behind --help."""
        self.exit(2, f"griffin: {message}\n")


def command_line() -> argparse.ArgumentParser:
    """All commands with their flags."""
    parser = _Parser(prog="python -m griffin.experiments", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").strip().splitlines()[0]
        command.add_arguments(commands.add_parser(name, help=summary, description=command.__doc__))
    return parser


def main() -> int:
    arguments = command_line().parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("griffin").setLevel(logging.INFO)
    try:
        COMMANDS[arguments.name].run(arguments)
    except (GriffinError, ValueError) as error:
        print(f"griffin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("griffin: stopped; run the same again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
