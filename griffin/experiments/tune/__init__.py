"""Which sparsity do my prompts allow? And what else prepares a model: ``python -m griffin calibrate`` and ``tune``.

They use what experiments share, so they stand here. ``griffin/__main__.py`` is their command line. May import
``common`` and ``speed``.
"""

from griffin.experiments.common.commandline import Runnable
from griffin.experiments.tune import calibrate, command

COMMANDS: dict[str, Runnable] = {"calibrate": calibrate, "tune": command}
