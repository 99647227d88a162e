"""A checkpoint becomes a model and a tokenizer: hub id, directory, GGUF file, or the embedded default."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from griffin.errors import GriffinError, LoadError
from griffin.model.checkpoint import folder as folder_reader
from griffin.model.checkpoint.defaults import sampling_defaults
from griffin.model.checkpoint.ends import settle_ends, token_ids, tokenizer_ends
from griffin.model.checkpoint.gguf import load_gguf
from griffin.model.checkpoint.hub import downloaded
from griffin.model.checkpoint.numbers import require_numbers
from griffin.model.checkpoint.refusals import first_words, require_files, require_plain
from griffin.model.checkpoint.source import EMBEDDED_MODEL, Source, locate
from griffin.model.checkpoint.whole import require_finite
from griffin.model.dtype import DTYPES, INT8, parse_dtype
from griffin.model.families import feed_forwards, require_supported, text_part
from griffin.model.guard import whole_while_read
from griffin.model.host import HostWeights
from griffin.model.matrix.modules import matrices
from griffin.model.placement import distribute, parse_device
from griffin.model.quantise import round_to_int8_

logger = logging.getLogger("griffin")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, its tokenizer, and a short name for it.

    sampling_defaults: values of ``Sampling`` that its maker recommends, see ``defaults``; engines do not apply them.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def formats(self) -> str:
        """How its weights are held, for people: ``bfloat16``, or ``int8, bfloat16`` where most are in 8 bits."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return ", ".join([*sorted({matrix.format for matrix in matrices(self.model)}), dtype])


def load(
    source: str = EMBEDDED_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
    ff_offload: bool = False,
) -> Checkpoint:
    """Load a model, ready to run on one device, or across several; see ``load_each``."""
    return load_each(source, [device], dtype=dtype, cache_dir=cache_dir, ff_offload=ff_offload)[0]


def load_each(
    source: str = EMBEDDED_MODEL,
    devices: Sequence[str] = ("auto",),
    *,
    dtype: str = "auto",
    cache_dir: Path | None = None,
    ff_offload: bool = False,
) -> list[Checkpoint]:
    """Load a model, ready to run on each of several devices. Fewer come back where it fits only across them.

    Args:
        source: a hub id, a directory with ``config.json`` and safetensors, a ``.gguf`` file, or
            ``SmolLM2-135M-Instruct``, the default that comes as a Python package.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it measures faster, else float32. Or int8, which is
            experimental: weights rounded to 8 bits with a scale for each row, on a CPU, and not with ``ff_offload``.
        devices: as torch names them, or auto: CUDA when there is one, the CPU otherwise. With ``+`` between
            them, one model across several.
        cache_dir: where dequantised GGUF weights and weights by neuron are kept; by default the user's cache
            directory (XDG).
        ff_offload: FF weights stay in host memory and are streamed, see ``offload``; if the CPU is the only
            device, in a file that is mapped, see ``mapped``.

    Raises:
        LoadError: no such checkpoint, or it cannot be read.
        UnsupportedModel: its model type has no row in the family table.
    """
    if not sys.stderr.isatty():
        # Progress bars are for people. In a log they are noise.
        transformers.logging.disable_progress_bar()
    groups = [[parse_device(name) for name in device.split("+")] for device in devices]
    torch_dtype = parse_dtype(dtype, groups[0][0])
    if dtype == INT8:
        _require_int8(groups, ff_offload)
    cache_dir = cache_dir or platformdirs.user_cache_path("griffin")
    map_from = cache_dir / "by-neuron" if ff_offload and groups == [[torch.device("cpu")]] else None
    try:
        found = locate(source)
        with whole_while_read(source):
            if found.is_gguf:
                assert found.path is not None
                model, tokenizer = load_gguf(found.path, torch_dtype, cache_dir, map_from)
            else:
                model, tokenizer = _load_checkpoint(found, source, torch_dtype, map_from)
        defaults = sampling_defaults(model.generation_config)
        require_finite(model, source)
        if HostWeights.of(model) is not None:
            _own_(model)
            return [Checkpoint(found.name, model, tokenizer, defaults)]
        models = distribute(model, groups, ff_offload=ff_offload)
        with whole_while_read(source):
            for each in models:
                _own_(each)
        for each in models if dtype == INT8 else ():
            round_to_int8_(each)
        return [Checkpoint(found.name, model, tokenizer, defaults) for model in models]
    except GriffinError:
        raise
    except Exception as error:
        # Readers of checkpoints raise errors from OSError to KeyError. The user needs the first line.
        raise LoadError(f"cannot load '{source}': {first_words(error)}") from error


def _load_checkpoint(
    found: Source, source: str, dtype: torch.dtype, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From a directory; what is on a hub is brought into one first, its configuration before its weights."""
    config = PreTrainedConfig.get_config_dict(found.path or str(found.hub_id))[0]
    require_supported(config)
    part = text_part(config)
    served = part.config(config) if part else config
    require_plain(config, source)
    require_plain(served, source)
    require_numbers(served, source, part.told_by_shapes if part else ())
    folder = found.path or downloaded(str(found.hub_id))
    require_files(folder, source)
    model, tokenizer = folder_reader.read(folder, source, dtype, map_from)
    settle_ends(model, tokenizer_ends(tokenizer), token_ids(config.get("eos_token_id")))
    return model, tokenizer


def _require_int8(groups: Sequence[Sequence[torch.device]], ff_offload: bool) -> None:
    if ff_offload:
        raise LoadError("dtype int8 does not go together with ff-offload; leave one of them out")
    if others := [device for group in groups for device in group if device.type != "cpu"]:
        raise LoadError(f"dtype int8 runs on a CPU only, not on {others[0]}; use auto, {', '.join(DTYPES)}")


@torch.no_grad()
def _own_(model: PreTrainedModel) -> None:
    """Have no weight in memory be a view of a file, which may change or be cut short under a running server.

    The feed-forward weights that ff-offload maps stay as they are; see ``mapped`` for those.
    """
    host = HostWeights.of(model)
    mapped_ids = (
        {id(p.weight) for block in feed_forwards(model) for p in (*block.expand, block.contract)} if host else ()
    )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and id(tensor) not in mapped_ids:
            tensor.data = tensor.data.clone()
