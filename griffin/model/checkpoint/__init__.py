"""What ``--model`` names, until it is known to be whole: where it is, what it is, and what its files say.

Modules here read files. They know no engine and no method.
"""
