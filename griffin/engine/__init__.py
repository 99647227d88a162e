"""A sequence: the prompt is read, neurons are chosen, and tokens follow.

May import: decode, method, model, and what those may import.
"""
