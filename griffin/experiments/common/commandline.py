"""A command line with several commands: its parser, its log, and errors as one line."""

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import NoReturn, Protocol

from griffin.errors import GriffinError, is_out_of_memory
from griffin.experiments.common.pictures import INSTALL

# Packages that only the extra 'experiments' installs.
OF_THE_EXTRA = ("datasets", "lm_eval", "markdown_it", "matplotlib")


class Runnable(Protocol):
    """A command: a module, or an experiment as a command.

    Its docstring is the text of ``NAME --help``, and the first line is its summary. The help ends before a paragraph
    that begins with ``Shapes:``, which is for readers of the code.
    """

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line that names the flag, without the usage: that has many lines and is in --help."""
        self.exit(2, f"griffin: {message}\n")


def parser_of(prog: str, description: str | None, commands: Mapping[str, Runnable]) -> argparse.ArgumentParser:
    """A parser of all commands with their flags. The parsed ``name`` is the name of the command."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=prog, description=_shown(description), formatter_class=as_written)
    subparsers = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, command in commands.items():
        text = _shown(command.__doc__)
        command.add_arguments(
            subparsers.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=as_written)
        )
    return parser


def run(arguments: argparse.Namespace, commands: Mapping[str, Runnable]) -> int:
    """Run the command that ``arguments.name`` names.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C.
    """
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("griffin").setLevel(logging.INFO)
    try:
        commands[arguments.name].run(arguments)
    except (GriffinError, ValueError) as error:
        print(f"griffin: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OF_THE_EXTRA:
            raise
        print(f"griffin: this needs {error.name}, of the extra 'experiments'; {INSTALL}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("griffin: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print("griffin: out of memory; try a smaller --dtype or a larger device", file=sys.stderr)
        return 1
    return 0


def _shown(docstring: str | None) -> str:
    """A docstring as help: with quotes instead of backticks, and without the part for readers of the code."""
    return (docstring or "").partition("\n\nShapes:")[0].strip().replace("``", "'")
