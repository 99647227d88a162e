"""What does sparsity cost, beyond the paper? Equal bytes a token, long generations, verified modes.

May import ``common``, ``speed`` and ``tasks``.
"""
