import pytest

from griffin.errors import GriffinError
from griffin.experiments.tasks import sandbox


@pytest.fixture
def sandboxed() -> None:
    """Skip the test if the system allows no sandbox, like some containers."""
    try:
        sandbox.passes("")
    except GriffinError as error:
        pytest.skip(str(error))
