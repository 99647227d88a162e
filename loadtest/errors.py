"""The errors that a load test raises on purpose."""


class LoadTestError(Exception):
    """The load cannot be made, or its result cannot be written. The text is one line for a user."""
