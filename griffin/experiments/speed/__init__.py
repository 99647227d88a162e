"""How fast is it? Tokens, prompts, methods and FF offload, timed beside each other and beside other programs.

May import ``common`` only. ``tune`` times its prompts with ``contestants``.
"""
