"""One real server for all tests of the command."""

from collections.abc import Iterator

import pytest

from tests.server.process import running
from tests.server.tiny_checkpoint import write


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address."""
    folder = write(tmp_path_factory.mktemp("checkpoint"))
    with running("--model", str(folder), "--served-model-name", "tiny", "--prefill-chunk", "16") as process:
        yield process.url
