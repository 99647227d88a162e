"""A model whose FF weights are mapped from a file, see ``model.mapped``. The file is written once."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]
from filelock import FileLock
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from griffin.errors import LoadError
from griffin.model import mapped
from griffin.model.checkpoint.pretrained import from_pretrained
from griffin.model.checkpoint.stored import folder_identity, write_whole
from griffin.model.checkpoint.text_part import served_config
from griffin.model.checkpoint.whole import weight_files
from griffin.model.families import feed_forwards
from griffin.model.guard import whole_while_read
from griffin.model.host import HostWeights, attach_

logger = logging.getLogger("griffin")


def mapped_model(folder: Path, dtype: torch.dtype, map_from: Path, source: str) -> PreTrainedModel:
    """A checkpoint's model. The file of its FF weights is written first if it is missing or unusable."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(served_config(folder)[0], dtype=dtype)
    layout = mapped.Layout.of(empty, dtype)
    name = f"{folder.name}-{str(dtype).removeprefix('torch.')}"
    try:
        map_from.mkdir(parents=True, exist_ok=True)
        # The folder's files may be replaced at any time, so the mapped file is named after the files that are read.
        with FileLock(map_from / f"{name}.lock"), whole_while_read(source, weight_files(folder)) as require_unchanged:

            def write(partial: Path) -> None:
                mapped.write(partial, layout, folder, empty.base_model_prefix, source)
                require_unchanged()

            host = _mapped_or_made(map_from / f"{name}-{folder_identity(folder)}", layout, source, write)
    except OSError as error:
        raise LoadError(f"ff-offload on a CPU needs room for a file in {map_from}: {error}") from error
    model = _without_feed_forward(empty, layout, folder, source)
    attach_(model, host, feed_forwards(model))
    return model


def _mapped_or_made(target: Path, layout: mapped.Layout, source: str, write: Callable[[Path], None]) -> HostWeights:
    if target.exists():
        try:
            return mapped.read(target, layout)
        except LoadError as error:
            logger.warning("%s; making it again", error)
            shutil.rmtree(target)
    logger.info("%s: writing its feed-forward weights by neuron, once, to %s", source, target)
    write_whole(target, write)
    return mapped.read(target, layout)


def _without_feed_forward(empty: PreTrainedModel, layout: mapped.Layout, folder: Path, source: str) -> PreTrainedModel:
    """A checkpoint's model without its FF matrices, which stay on the meta device."""
    absent = {name for names in layout.names for name in names}
    # transformers' own offload leaves them on the disk. Only that part of it is needed.
    places = {name: "disk" if name in absent else "cpu" for name, m in empty.named_modules() if not list(m.children())}
    offloading = logging.getLogger("accelerate.big_modeling")
    level = offloading.level
    offloading.setLevel(logging.ERROR)
    try:
        model = from_pretrained(folder, source, layout.dtype, device_map=places)
    finally:
        offloading.setLevel(level)
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        for method in ("forward", "to", "cuda"):
            # Those hooks leave methods on the instance; a copy of the module would call the original's methods.
            module.__dict__.pop(method, None)
    biased = [name for name in absent if model.get_submodule(name).bias is not None]
    biases = mapped.tensors(folder, [f"{name}.bias" for name in biased], model.base_model_prefix)
    for name, bias in zip(biased, biases, strict=True):
        model.get_submodule(name).bias = nn.Parameter(bias.to(layout.dtype), requires_grad=False)
    return model
