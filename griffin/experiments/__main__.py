"""``python -m griffin.experiments NAME``: one experiment, its flags behind ``NAME --help``."""

import argparse
import logging
import sys
from typing import NoReturn

from griffin.errors import GriffinError
from griffin.experiments import latency, offload

EXPERIMENTS = {"latency": latency, "offload": offload}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line that names the flag; the usage, of many lines, is behind --help."""
        self.exit(2, f"griffin: {message}\n")


def main() -> int:
    parser = _Parser(prog="python -m griffin.experiments", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, experiment in EXPERIMENTS.items():
        summary = (experiment.__doc__ or "").strip().splitlines()[0]
        experiment.add_arguments(commands.add_parser(name, help=summary, description=experiment.__doc__))
    arguments = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("griffin").setLevel(logging.INFO)
    try:
        EXPERIMENTS[arguments.name].run(arguments)
    except (GriffinError, ValueError) as error:
        print(f"griffin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("griffin: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
