"""Fixtures for all tests: tiny random models of every supported type, and the real default model."""

import os
import signal

# A shell's background jobs ignore Ctrl-C, and so do all processes that they start. Tests send it to such processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before transformers is imported, so that no test waits for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Set before torch is imported. On models this small, more threads only wait for each other, above all where test files
# run side by side. A test about threads sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable

import pytest
import torch

if not torch.cuda.is_available():
    # Set before triton is imported: without a GPU, its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from transformers import PreTrainedModel, logging

from griffin.model.families import FAMILIES
from griffin.model.loading import Checkpoint, load
from tests.tiny import tiny_model

logging.disable_progress_bar()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    """A tiny random model; each supported type in turn."""
    return tiny_model(family)


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    """The real default model, in fp32."""
    return load(dtype="float32", device="cpu")


@pytest.fixture
def prompts() -> Callable[[int, int], list[int]]:
    """A random prompt by seed and length, in the tiny models' vocabulary."""

    def make(seed: int, length: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, 128, (length,), generator=generator).tolist()

    return make
