"""A command line with several commands: its parser, its log, and errors as one line."""

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import NoReturn, Protocol

from griffin.errors import GriffinError


class Runnable(Protocol):
    """A command: a module, or an experiment as one. Its docstring's first line is its summary."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line that names the flag. The usage, of many lines, stands in --help."""
        self.exit(2, f"griffin: {message}\n")


def parser_of(prog: str, description: str | None, commands: Mapping[str, Runnable]) -> argparse.ArgumentParser:
    """All commands with their flags."""
    parser = _Parser(prog=prog, description=description)
    subparsers = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, command in commands.items():
        summary = (command.__doc__ or "").strip().splitlines()[0]
        command.add_arguments(subparsers.add_parser(name, help=summary, description=command.__doc__))
    return parser


def run(arguments: argparse.Namespace, commands: Mapping[str, Runnable]) -> int:
    """Run the command that was named.

    Returns:
        The exit code.
    """
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("griffin").setLevel(logging.INFO)
    try:
        commands[arguments.name].run(arguments)
    except (GriffinError, ValueError) as error:
        print(f"griffin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("griffin: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
