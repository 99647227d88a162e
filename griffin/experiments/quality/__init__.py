"""What does sparsity cost? Questions beyond the paper: equal bytes a token, long generations, verified modes.

May import ``common``, ``speed`` and ``tasks``.
"""
