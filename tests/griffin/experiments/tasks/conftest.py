import pytest

from griffin.errors import GriffinError
from griffin.experiments.tasks import sandbox


@pytest.fixture
def sandboxed() -> None:
    """Skips where the system allows no sandbox, as some containers."""
    try:
        sandbox.passes("")
    except GriffinError as error:
        pytest.skip(str(error))
