"""SQuAD's exact match and token F1, in the module from which lm-eval's CoQA imports them.

lm-eval 0.4.13 imports them from transformers, which dropped them in version 5. Until lm-eval changes, ``provide`` puts
the missing module in its place.
"""

import importlib.util
import sys
from types import ModuleType

from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer  # type: ignore[import-untyped]

METRICS = "transformers.data.metrics"
MISSING = f"{METRICS}.squad_metrics"


def compute_exact(accepted: str, answer: str) -> int:
    """1 if they differ only in case, punctuation, articles or spaces; else 0."""
    return int(normalize_answer(accepted) == normalize_answer(answer))


def compute_f1(accepted: str, answer: str) -> float:
    """The harmonic mean of precision and recall over words. If one text has no words: 1 if both have none, else 0."""
    if not normalize_answer(accepted) or not normalize_answer(answer):
        return float(compute_exact(accepted, answer))
    return float(f1_abstractive([answer], [accepted]))


def provide() -> None:
    """Let ``import transformers.data.metrics.squad_metrics`` succeed."""
    if MISSING in sys.modules or _exists():
        return
    package, module = ModuleType(METRICS), ModuleType(MISSING)
    module.__dict__.update(compute_exact=compute_exact, compute_f1=compute_f1, normalize_answer=normalize_answer)
    package.__dict__.update(__path__=[], squad_metrics=module)
    sys.modules.update({METRICS: package, MISSING: module})


def _exists() -> bool:
    try:
        return importlib.util.find_spec(MISSING) is not None
    except ModuleNotFoundError:
        return False
