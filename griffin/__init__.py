"""GRIFFIN as a library: feed-forward neurons chosen per sequence, from its prompt (Dong, Chen, Chi 2024)."""

from griffin.accounting import Accounting
from griffin.engine import Engine, build_engines
from griffin.errors import GriffinError
from griffin.kept import Selection
from griffin.loading import Checkpoint, load, load_each
from griffin.prompt import Prompt, Scoring, Token
from griffin.pruning import Pruning
from griffin.sampling import Logprobs, Sampling
from griffin.verification import Comparison, Verification, Verified

__all__ = [
    "Accounting",
    "Checkpoint",
    "Comparison",
    "Engine",
    "GriffinError",
    "Logprobs",
    "Prompt",
    "Pruning",
    "Sampling",
    "Scoring",
    "Selection",
    "Token",
    "Verification",
    "Verified",
    "build_engines",
    "load",
    "load_each",
]
