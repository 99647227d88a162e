"""All results of the paper's experiments on one page.

May import ``common``, ``tasks`` and the registry of experiments.
"""
