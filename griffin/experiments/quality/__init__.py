"""What does sparsity cost, beyond the paper? Equal active parameters, long generations, verified modes.

May import ``common`` and ``tasks``.
"""
