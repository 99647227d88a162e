"""The code that experiments share: the model under study, its data, results, pictures, and the command line.

May import the library, but no other folder of ``griffin.experiments``.
"""
