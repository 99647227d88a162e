"""The command line of ``python -m server``: flags become Settings, and every mistake is one line."""
