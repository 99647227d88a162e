"""A checkpoint becomes weights, and a forward pass over them.

May import: errors, library, neurons, request.
"""
