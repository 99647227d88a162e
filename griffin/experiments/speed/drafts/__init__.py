"""What do passes over several tokens bring? Drafts, verified modes and short prompts, beside llama.cpp.

A file for each part of the experiment, and what parts share. May import what ``speed`` may.
"""
