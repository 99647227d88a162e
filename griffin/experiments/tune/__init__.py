"""The steps that prepare a model: ``python -m griffin calibrate`` and ``tune``, see ``griffin/__main__.py``."""

from griffin.experiments.commandline import Runnable
from griffin.experiments.tune import calibrate, command

COMMANDS: dict[str, Runnable] = {"calibrate": calibrate, "tune": command}
