"""Small tensors with the checkpoint's precision, beside the model's own, which are rounded to its dtype.

A model's own pass computes in one dtype. A decode step reads norms and biases in fp32, as exact as in the file.
"""

from torch import Tensor, nn


def keep_exact_(module: nn.Module, name: str, values: Tensor) -> None:
    """Remember a parameter's value before rounding, fp32; nothing if rounding did not change it."""
    own = getattr(module, name)
    if not own.float().equal(values):
        module.register_buffer(f"exact_{name}", values, persistent=False)


def exact(module: nn.Module, name: str) -> Tensor | None:
    """A module's parameter before rounding; None if it has none of this name."""
    values = getattr(module, f"exact_{name}", None)
    own = getattr(module, name, None) if values is None else values
    return own.detach() if isinstance(own, Tensor) else None
