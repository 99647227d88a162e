"""A weight matrix in one of several formats, behind one interface.

Everything that multiplies, gathers, counts or copies weights goes through ``Matrix``. A new format is one file here, a
row of ``FORMATS`` in the C step (``decode/c``), and its way into a model (``quantise.py``).
"""
