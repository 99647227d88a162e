"""Loads a model and a tokenizer from a hub id, a directory, a GGUF file, or the embedded default."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from griffin.errors import GriffinError, LoadError
from griffin.model.checkpoint import folder as folder_reader
from griffin.model.checkpoint import packed_model, quantised
from griffin.model.checkpoint.defaults import sampling_defaults
from griffin.model.checkpoint.ends import settle_ends, token_ids, tokenizer_ends
from griffin.model.checkpoint.gguf import load_dequantised, load_in_place
from griffin.model.checkpoint.hub import brought, with_weights
from griffin.model.checkpoint.numbers import require_numbers
from griffin.model.checkpoint.packed import Scheme
from griffin.model.checkpoint.refusals import first_words, require_files, require_plain
from griffin.model.checkpoint.source import EMBEDDED_MODEL, Source, locate
from griffin.model.checkpoint.stored import source_identity
from griffin.model.checkpoint.whole import require_finite
from griffin.model.dtype import parse_dtype
from griffin.model.families import feed_forwards, require_supported, text_part
from griffin.model.guard import whole_while_read
from griffin.model.host import HostWeights
from griffin.model.identity import identity
from griffin.model.matrix.modules import matrices
from griffin.model.placement import distribute, parse_device
from griffin.model.quantise import KINDS, Kind, require_possible

logger = logging.getLogger("griffin")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, its tokenizer, and a short name for it.

    path: the file or directory that it was read from.
    sampling_defaults: values of ``Sampling`` that the model's maker recommends, see ``defaults``; engines ignore them.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    path: Path | None = None

    @property
    def identity(self) -> str:
        """A name for exactly these weights in this form. It reads the files, so call it soon after loading."""
        files = source_identity(self.path) if self.path else ""
        return f"{files} {identity(self.model)} {self.formats}"

    @property
    def formats(self) -> str:
        """The formats of the weights, for people: ``bfloat16``, or ``int8, bfloat16`` if most are in 8 bits.

        The last one is the model's dtype, that of activations and of weights outside matrices.
        """
        dtype = str(self.model.dtype).removeprefix("torch.")
        return ", ".join([*sorted({matrix.format for matrix in matrices(self.model)} - {dtype}), dtype])


def load(
    source: str = EMBEDDED_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
    ff_offload: bool = False,
    quantize: str | None = None,
) -> Checkpoint:
    """Load a model, ready to run on one device or across several; see ``load_each``."""
    return load_each(
        source, [device], dtype=dtype, cache_dir=cache_dir, ff_offload=ff_offload, quantize=quantize
    )[0]  # fmt: skip


def load_each(
    source: str = EMBEDDED_MODEL,
    devices: Sequence[str] = ("auto",),
    *,
    dtype: str = "auto",
    cache_dir: Path | None = None,
    ff_offload: bool = False,
    quantize: str | None = None,
) -> list[Checkpoint]:
    """Load a model, ready to run on each of several devices. Fewer are returned if it only fits across them.

    Args:
        source: a hub id, alone or with a GGUF file's or quantisation's name (``OWNER/NAME:Q4_K_M``), a directory with
            ``config.json`` and safetensors, a ``.gguf`` file, or ``SmolLM2-135M-Instruct``, the default that comes
            as a Python package.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it measures faster, else float32. On a CPU without
            ``ff_offload``, auto keeps the codes of a quantised checkpoint, and activations have this dtype. int8 is
            an older spelling of ``quantize="int8"``.
        devices: torch's names, or auto: CUDA if there is one, else the CPU. ``+`` joins devices that share one model.
        cache_dir: folder for dequantised GGUF weights, quantised weights and weights by neuron; by default the user's
            cache directory (XDG).
        ff_offload: keep FF weights in host memory and stream them, see ``offload``; on a CPU, map them from a file,
            see ``mapped``.
        quantize: int8 or int4: round the weights of a directory or hub id, see ``quantise``; on a CPU only. The
            result is cached. ``dtype`` is then that of activations.

    Raises:
        LoadError: there is no such checkpoint, or it cannot be read.
        UnsupportedModel: its model type has no row in the family table.
    """
    if not sys.stderr.isatty():
        # Progress bars are for people. In a log they are noise.
        transformers.logging.disable_progress_bar()
    groups = [[parse_device(name) for name in device.split("+")] for device in devices]
    if dtype == "int8":
        if quantize not in (None, "int8"):
            raise LoadError(f"--dtype int8 and --quantize {quantize} exclude each other; leave --dtype out")
        logger.warning("dtype int8 is an older spelling of --quantize int8 and will be removed in the next release")
        dtype, quantize = "auto", quantize or "int8"
    torch_dtype = parse_dtype(dtype, groups[0][0])
    kind = _kind(quantize, groups, ff_offload) if quantize else None
    cache_dir = cache_dir or platformdirs.user_cache_path("griffin")
    on_cpu = groups == [[torch.device("cpu")]]
    wanted = _Wanted(torch_dtype, kind, dtype == "auto" and on_cpu and not ff_offload, ff_offload and on_cpu, cache_dir)
    try:
        found = locate(source)
        if found.hub_id is not None:
            found = brought(found)
        if kind:
            _require_quantisable(found, source)
        with whole_while_read(source):
            if found.path is not None and found.is_gguf:
                loaded = load_in_place(found.path, torch_dtype) if wanted.in_place else None
                if loaded is not None:
                    defaults = sampling_defaults(loaded[0].generation_config)
                    return [Checkpoint(found.name, *loaded, defaults, found.path)]
                model, tokenizer = load_dequantised(found.path, torch_dtype, cache_dir, wanted.map_from)
            else:
                model, tokenizer = _load_checkpoint(found, source, wanted)
        defaults = sampling_defaults(model.generation_config)
        require_finite(model, source)
        if HostWeights.of(model) is not None:
            _own_(model)
            return [Checkpoint(found.name, model, tokenizer, defaults, found.path)]
        models = distribute(model, groups, ff_offload=ff_offload)
        with whole_while_read(source):
            # Codes have their own memory already.
            for each in models if not matrices(model) else ():
                _own_(each)
        return [Checkpoint(found.name, model, tokenizer, defaults, found.path) for model in models]
    except GriffinError:
        raise
    except Exception as error:
        # Readers of checkpoints raise many kinds of errors, from OSError to KeyError. The user needs the first line.
        raise LoadError(f"cannot load '{source}': {first_words(error)}") from error


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The form in which weights are wanted.

    dtype: of activations, and of plain weights.
    kind: the form to which plain weights are rounded; None leaves them plain.
    in_place: keep the codes of a quantised checkpoint.
    mapped: map FF weights from a file.
    """

    dtype: torch.dtype
    kind: Kind | None
    in_place: bool
    mapped: bool
    cache_dir: Path

    @property
    def map_from(self) -> Path | None:
        return self.cache_dir / "by-neuron" if self.mapped else None


def _load_checkpoint(found: Source, source: str, wanted: _Wanted) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load from a directory. A model on a hub is downloaded first, its configuration before its weights."""
    config = _config_of(found)
    require_supported(config)
    part = text_part(config)
    scheme = Scheme.of(config, source)
    plain = {key: value for key, value in config.items() if scheme is None or key != "quantization_config"}
    served = part.config(plain) if part else plain
    require_plain(plain, source)
    require_plain(served, source)
    require_numbers(served, source, part.told_by_shapes if part else ())
    if scheme:
        _require_packed_alone(scheme, source, wanted, multimodal=part is not None)
    folder = with_weights(found) if found.hub_id is not None else _path(found)
    require_files(folder, source)
    if scheme:
        model, tokenizer = packed_model.read(folder, source, scheme, wanted.dtype, in_place=wanted.in_place)
    elif wanted.kind:
        model, tokenizer = quantised.read(folder, source, wanted.kind, wanted.dtype, wanted.cache_dir)
    else:
        model, tokenizer = folder_reader.read(folder, source, wanted.dtype, wanted.map_from)
    settle_ends(model, tokenizer_ends(tokenizer), token_ids(config.get("eos_token_id")))
    return model, tokenizer


def _require_packed_alone(scheme: Scheme, source: str, wanted: _Wanted, *, multimodal: bool) -> None:
    """
    Raises:
        LoadError: the checkpoint's codes cannot be combined with the wanted form.
    """
    what = f"'{source}' has weights quantised by {scheme.method.upper()}"
    if multimodal:
        raise LoadError(f"{what}, which is not supported for multimodal checkpoints; take a GGUF file of the model")
    if wanted.kind:
        raise LoadError(f"{what}; leave --quantize out to use its own codes")
    if wanted.mapped:
        raise LoadError(f"{what}, which cannot be combined with ff-offload on a CPU; leave one of them out")


def _config_of(found: Source) -> Mapping[str, Any]:
    """The contents of a directory's ``config.json``."""
    config: Mapping[str, Any] = PreTrainedConfig.get_config_dict(_path(found))[0]
    return config


def _path(found: Source) -> Path:
    assert found.path is not None, "what is on a hub has been brought here"
    return found.path


def _kind(quantize: str, groups: Sequence[Sequence[torch.device]], ff_offload: bool) -> Kind:
    """
    Raises:
        LoadError: there is no such kind, or it cannot be combined with the other settings.
    """
    kind = next((kind for kind in KINDS if kind == quantize), None)
    if kind is None:
        raise LoadError(f"quantize cannot be '{quantize}'; use {' or '.join(KINDS)}")
    if ff_offload:
        raise LoadError("quantize cannot be combined with ff-offload; leave one of them out")
    if others := [device for group in groups for device in group if device.type != "cpu"]:
        raise LoadError(f"quantize {kind} runs on a CPU only, not on {others[0]}; leave it out, or use --device cpu")
    return kind


def _require_quantisable(found: Source, source: str) -> None:
    """
    Raises:
        LoadError, UnsupportedModel: it is quantised already, or its type cannot be.
    """
    if found.is_gguf:
        raise LoadError(
            f"'{source}' is a GGUF file, whose own codes are used; leave --quantize out, or name the model's "
            "directory in bfloat16 or float16"
        )
    config = _config_of(found)
    require_supported(config)
    part = text_part(config)
    require_possible(part.model_type if part else str(config["model_type"]), source)


@torch.no_grad()
def _own_(model: PreTrainedModel) -> None:
    """Copy weights that are views of a file, since the file may change or be cut short while the server runs.

    FF weights that ff-offload maps stay mapped; see ``mapped`` for those.
    """
    host = HostWeights.of(model)
    mapped_ids = (
        {id(p.weight) for block in feed_forwards(model) for p in (*block.expand, block.contract)} if host else ()
    )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and id(tensor) not in mapped_ids:
            tensor.data = tensor.data.clone()
