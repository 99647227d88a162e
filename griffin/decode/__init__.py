"""One token: the step that computes it, the decode twin, and the draw of the next token.

May import: method, model, and what those may import.
"""
