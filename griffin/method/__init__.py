"""Which neurons stay for a request: statistics, strategies, the methods, sparsity auto.

May import: model, and what model may import.
"""
