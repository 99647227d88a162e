"""The line that is shown while a load runs."""

import re

from loadtest.progress import Progress
from tests.loadtest.samples import sample


def test_counts() -> None:
    """A chunk counts as one token until the server tells its own count."""
    progress = Progress("load", 4)
    for _ in range(3):
        progress.sent()
    progress.pieces(3)
    progress.ended(sample(tokens=5), 3)
    progress.ended(sample(tokens=None, text_s=(), error="timeout"), 0)

    assert re.fullmatch(r"3 of 4 sent, 1 running, 1 answered, 1 failed, [\d.]+ tokens/s", str(progress))
    assert progress.tokens == 5
