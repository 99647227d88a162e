"""What a load test raises on purpose."""


class LoadTestError(Exception):
    """The load cannot be made, or its result not be written; the text is one line for a user."""
