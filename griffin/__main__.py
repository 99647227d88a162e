"""``python -m griffin calibrate | tune``: steps that some requests need a model to have gone through once.

``NAME --help`` lists the flags of a step. The server is ``python -m server``; the paper's experiments are
``python -m griffin.experiments``.
"""

import argparse
import sys

from griffin.experiments.common import commandline
from griffin.experiments.tune import COMMANDS


def command_line() -> argparse.ArgumentParser:
    return commandline.parser_of("python -m griffin", __doc__, COMMANDS)


def main() -> int:
    return commandline.run(command_line().parse_args(), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
