"""Run one experiment: ``python -m griffin.experiments NAME``. ``NAME --help`` explains it and lists its flags.

With ``--quick``, most take a minute or two on a small model. A stopped run goes on when it is started again.

examples:
  python -m griffin.experiments flocking --quick
  python -m griffin.experiments report --model Qwen/Qwen3-0.6B --data DIR
"""

import argparse
import sys

from griffin.experiments.common import commandline
from griffin.experiments.common.commandline import Runnable
from griffin.experiments.common.experiment import Command
from griffin.experiments.quality import acceptance, drift, fidelity, pareto
from griffin.experiments.registry import EXPERIMENTS
from griffin.experiments.report import command as report
from griffin.experiments.speed import latency, offload, pace
from griffin.experiments.speed.drafts import experiment as drafts
from griffin.experiments.tune import COMMANDS as TUNE

COMMANDS: dict[str, Runnable] = {
    **{name: Command(name, experiment) for name, experiment in EXPERIMENTS.items()},
    "pareto": Command("pareto", pareto),
    "acceptance": Command("acceptance", acceptance),
    "drift": Command("drift", drift),
    "fidelity": Command("fidelity", fidelity),
    "pace": Command("pace", pace),
    "drafts": Command("drafts", drafts),
    "latency": latency,
    "offload": offload,
    "report": report,
}
# These commands now belong to python -m griffin. The old spelling is removed after the next release.
MOVED = TUNE


def command_line() -> argparse.ArgumentParser:
    return commandline.parser_of("python -m griffin.experiments", __doc__, COMMANDS)


def main() -> int:
    if len(sys.argv) > 1 and (name := sys.argv[1]) in MOVED:
        print(f"griffin: this command is called: python -m griffin {name}", file=sys.stderr)
        moved = commandline.parser_of("python -m griffin", None, MOVED)
        return commandline.run(moved.parse_args(), MOVED)
    return commandline.run(command_line().parse_args(), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
