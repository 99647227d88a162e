"""Which sparsity do my prompts allow? ``python -m griffin tune``.

They use what experiments share, so they stand here. ``griffin/__main__.py`` is their command line. May import
``common`` and ``speed``.
"""

from griffin.experiments.common.commandline import Runnable
from griffin.experiments.tune import command

COMMANDS: dict[str, Runnable] = {"tune": command}
