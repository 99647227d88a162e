"""Prepare a model for requests that need it: ``python -m griffin tune``.

tune  measures your own prompts: it recommends a sparsity, and requests with sparsity "auto" use its results

The server is started by 'python -m server'. The paper's experiments are 'python -m griffin.experiments'.

examples:
  python -m griffin tune --model Qwen/Qwen3-0.6B --prompts my_prompts.jsonl
"""

import argparse
import sys

from griffin.experiments.common import commandline
from griffin.experiments.tune import COMMANDS


def command_line() -> argparse.ArgumentParser:
    return commandline.parser_of("python -m griffin", __doc__, COMMANDS)


def main() -> int:
    """The exit code: 0, 1 after an error, 2 for a wrong flag, 130 after Ctrl-C."""
    return commandline.run(command_line().parse_args(), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
