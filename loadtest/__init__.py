"""A load test over HTTP for any OpenAI-compatible server: ``python -m loadtest``.

It measures from outside: it imports neither ``server`` nor ``griffin``, and knows only HTTP. Modules that say *No I/O*
neither read nor send anything, so tests can call them directly.
"""
