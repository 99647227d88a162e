"""Which neurons tokens use: the statistics, the strategies, the methods, and sparsity auto.

May import: model, and what model may import.
"""
