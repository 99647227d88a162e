"""How does a pruned model score on lm-eval's tasks?

May import ``common``. ``definitions``, ``harness`` and ``evaluation`` import lm-eval, which takes seconds: others
import them inside functions.
"""
