"""One token: the steps, the decode twin, the draw.

May import: method, model, and what those may import.
"""
