"""GRIFFIN as a library: each sequence chooses its feed-forward neurons from its prompt (Dong, Chen, Chi 2024)."""

from griffin.decode.logprobs import Logprobs
from griffin.engine.comparison import Comparison
from griffin.engine.continuation import Token
from griffin.engine.engine import Engine, build_engines
from griffin.engine.pass_limit import PassLimit
from griffin.engine.prefix_files import PrefixFiles
from griffin.engine.prompt import Prompt
from griffin.engine.speculation import Verified
from griffin.errors import GriffinError
from griffin.method.preparation import Preparation
from griffin.model.accounting import Accounting
from griffin.model.checkpoint.source import locate
from griffin.model.loading import Checkpoint, load, load_each
from griffin.model.memory import give_memory_back, memory_in_use, threads_at_first
from griffin.neurons import Selection
from griffin.request import Pruning, Sampling, Scoring, Verification

__all__ = [
    "Accounting",
    "Checkpoint",
    "Comparison",
    "Engine",
    "GriffinError",
    "Logprobs",
    "PassLimit",
    "PrefixFiles",
    "Preparation",
    "Prompt",
    "Pruning",
    "Sampling",
    "Scoring",
    "Selection",
    "Token",
    "Verification",
    "Verified",
    "build_engines",
    "give_memory_back",
    "load",
    "load_each",
    "locate",
    "memory_in_use",
    "threads_at_first",
]
