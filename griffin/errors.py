"""Every error this library raises on purpose.

GriffinError
├── LoadError             the checkpoint cannot be found or read
├── UnsupportedModel      the checkpoint is fine, but its feed-forward blocks are not in the family table
├── EngineBusy            a second generation was started on an engine that is still generating
├── Cancelled             the caller cancelled a prompt while it was being read
├── OutOfMemory           the device has no room for this request
├── WeightsChanged        a file with mapped weights changed while it was served
└── InvalidRequest        a prompt or setting that no engine can honour; names the field
    └── ContextLengthExceeded
"""

import torch


class GriffinError(Exception):
    """Base of all errors below. Its text is one line for the user."""


class LoadError(GriffinError):
    """The checkpoint cannot be found or read."""


class UnsupportedModel(GriffinError):
    """No row of the family table describes this model."""


class EngineBusy(GriffinError):
    """An engine runs one sequence at a time, and a sequence is still running."""


class Cancelled(GriffinError):
    """The caller cancelled a prompt while it was being read."""


class OutOfMemory(GriffinError):
    """The device has no room for this request. A smaller request may fit."""


class WeightsChanged(GriffinError):
    """A file with mapped weights changed while it was served. Only a restart of the process helps."""


class InvalidRequest(GriffinError, ValueError):
    """A request that cannot be honoured. ``param`` is the name of the wrong field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested tokens do not fit into the model's context."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error from torch, on any device, means that memory ran out."""
    # The CPU's allocator has no error class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
