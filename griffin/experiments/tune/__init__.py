"""Which sparsity do my prompts allow? ``python -m griffin tune``.

The command is here because it uses the code that experiments share. ``griffin/__main__.py`` is its command line. May
import ``common`` and ``speed``.
"""

from griffin.experiments.common.commandline import Runnable
from griffin.experiments.tune import command

COMMANDS: dict[str, Runnable] = {"tune": command}
