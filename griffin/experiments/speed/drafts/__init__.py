"""How much do passes over several tokens help? Drafts, verified modes and short prompts, beside llama.cpp.

Each part of the experiment has a file, and so has the code that parts share. May import what ``speed`` may.
"""
