"""One token: the step that runs it, the decode twin, and the draw of the next one.

May import: method, model, and what those may import.
"""
