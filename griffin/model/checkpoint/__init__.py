"""Checkpoints: where ``--model`` points, whether it can be served, and how its files become a model.

Modules here know no engine and no method.
"""
