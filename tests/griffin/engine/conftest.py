"""What tests of the engine share."""

import pytest

from griffin.engine.throttle import Throttle


@pytest.fixture
def every_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes take all drafts. Otherwise their number follows the times of passes, and a busy machine has fewer."""
    monkeypatch.setattr(Throttle, "worth", lambda self, length, most: most)
