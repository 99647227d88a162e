"""Study: the model, data, folder for results and ledger of earlier answers that every experiment gets."""

import argparse
import hashlib
import platform
import re
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from griffin import Checkpoint, Engine, load
from griffin.engine.limits import model_context_length
from griffin.engine.prefixes import PrefixStore
from griffin.experiments.common.ledger import Ledger
from griffin.experiments.common.memory import device_name
from griffin.experiments.common.teacher import Teacher
from griffin.model.accounting import Accounting
from griffin.model.matrix.modules import matrices
from griffin.model.quantise import Kind

# Fields of a configuration that are not part of a model's identity: its origin and the program that wrote it. The
# identity has its own dtype, that of the model in memory.
NO_SETTINGS = ("_name_or_path", "transformers_version", "architectures", "dtype")
# The memory for beginnings that several prompts share, see ``griffin.engine.prefixes``.
PREFIX_BYTES = 2**30


class Study:
    """One model under examination. The engine and the teacher are made at their first use."""

    def __init__(self, checkpoint: Checkpoint, data: Path | None, folder: Path) -> None:
        """
        Args:
            data: a directory of JSONL files, see ``samples``. None: data sets come from the hub.
            folder: for the results of this model.
        """
        self.checkpoint, self.data, self.folder = checkpoint, data, folder
        self.accounting = Accounting.of(checkpoint.model)
        self._identity = _identity(checkpoint)
        self.ledger = Ledger(folder / "ledger.jsonl", self._identity)

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.checkpoint.tokenizer

    @cached_property
    def engine(self) -> Engine:
        """An engine, as the server uses it."""
        prefixes = PrefixStore(PREFIX_BYTES, 256)
        engine = Engine(self.checkpoint.model, prefixes=prefixes)
        engine.warm_up()
        return engine

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.checkpoint.model)

    @property
    def context_length(self) -> int:
        return model_context_length(self.checkpoint.model)

    def facts(self) -> dict[str, Any]:
        """Facts about a run that its readers need. They go into its results."""
        model = self.checkpoint.model
        return {
            "model": self.name,
            "model_type": model.config.model_type,
            "layers": self.accounting.layers,
            "neurons_per_layer": self.accounting.width,
            "parameters": self.accounting.total,
            "dtype": self.checkpoint.formats,
            "device_name": device_name(model.device),
            "identity": hashlib.sha256(repr(self._identity).encode()).hexdigest()[:16],
            "data": self.data.name if self.data else "hub",
            **when(),
        }


def add_study_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the flags of all experiments. With ``several``, --model takes more than one model."""
    add_model_arguments(parser, several=several)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="directory with JSONL files of the data sets (the hub)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("results"),
        help="directory for results, with a folder for each model; a stopped run goes on there (%(default)s)",
    )  # fmt: skip


def add_model_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    from griffin.model.checkpoint.source import EMBEDDED_MODEL

    kind: dict[str, Any] = {"nargs": "+", "default": [EMBEDDED_MODEL]} if several else {"default": EMBEDDED_MODEL}
    parser.add_argument("--model", **kind, metavar="MODEL", help=f"hub id, directory or .gguf file ({EMBEDDED_MODEL})")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (%(default)s)")
    parser.add_argument("--quantize", choices=get_args(Kind), help="round the weights of a directory or hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")


def open_study(arguments: argparse.Namespace) -> Study:
    """Load the model that the flags name.

    Raises:
        GriffinError: there is no such model, or its FF blocks cannot be pruned.
        ValueError: --data is not a directory.
    """
    data: Path | None = arguments.data
    if data is not None and not data.is_dir():
        raise ValueError(f"--data: '{data}' is not a directory")
    model, dtype, device = arguments.model, arguments.dtype, arguments.device
    return open_model(model, dtype, device, data, arguments.out, quantize=arguments.quantize)


def open_model(
    model: str,
    dtype: str,
    device: str,
    data: Path | None,
    out: Path,
    cache_dir: Path | None = None,
    quantize: str | None = None,
) -> Study:
    """Load a model, as ``griffin.load`` does. Its results go to a folder of its name in ``out``."""
    checkpoint = load(model, dtype=dtype, device=device, cache_dir=cache_dir, quantize=quantize)
    return Study(checkpoint, data, out / folder_name(checkpoint.name))


def folder_name(model: str) -> str:
    """A model's name as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"


def when() -> dict[str, Any]:
    """The date and the versions of a run."""
    versions = {
        "griffin-server": _own_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}


def _own_version() -> str:
    try:
        return metadata.version("griffin-server")
    except metadata.PackageNotFoundError:
        # Run from the source tree, without installation.
        return "not installed"


def _identity(checkpoint: Checkpoint) -> dict[str, str]:
    """Hashes of everything that answers depend on. The name is not enough: a directory may hold another model later."""
    model = checkpoint.model
    configs = [config.to_dict() for config in (model.config, model.generation_config) if config is not None]
    settings = [{key: value for key, value in config.items() if key not in NO_SETTINGS} for config in configs]
    return {
        "weights": _weights(model),
        "settings": hashlib.sha256(repr(settings).encode()).hexdigest()[:16],
        "tokenizer": hashlib.sha256(repr(sorted(checkpoint.tokenizer.get_vocab().items())).encode()).hexdigest()[:16],
        "dtype": str(model.dtype),
        "device": model.device.type,
    }


def _weights(model: PreTrainedModel) -> str:
    """A hash of all weights. One checkpoint in two formats has two hashes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + _sums(parameter.detach()))
    for matrix in matrices(model):
        digest.update(f"{matrix.format} {matrix.shape}".encode())
        for tensor in (*matrix.planes, *matrix.shared):
            digest.update(_sums(tensor))
    return digest.hexdigest()[:32]


def _sums(tensor: Tensor) -> bytes:
    """Sums over rows and over columns. Any change that matters changes them, and they are as fast as the memory.

    The numbers are summed as integers, so that the sums are exact in any layout.
    """
    size, last = tensor.element_size(), tensor.shape[-1] if tensor.dim() else 1
    if size == 1:
        # Codes of a quantised matrix: read four at once if possible.
        size = 4 if last % 4 == 0 and tensor.is_contiguous() else 1
    numbers = tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[size])
    sums = [numbers.sum(dim, dtype=torch.int64) for dim in range(numbers.dim())]
    return b"".join(part.cpu().numpy().tobytes() for part in sums)
