"""Chooses the files of a hub repository: by a file's name, by a quantisation's name, or by neither."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_file import PART
from griffin.model.checkpoint.refusals import listed

# Files without a language model, by a word in their names.
OTHER_FILES = {
    "mmproj": "the vision or audio part of a model",
    "imatrix": "an importance matrix, which quantising uses",
}
QUANTISATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d\w*|MXFP4\w*|NVFP4\w*|BF16|FP?16|FP?32))(?=$|[-.])", re.IGNORECASE
)
# Most names in an error.
MOST = 40


def is_checkpoint(names: Sequence[str]) -> bool:
    """Whether a repository's files are a checkpoint for transformers."""
    weights = any(name.endswith(".safetensors") or re.fullmatch(r"pytorch_model.*\.bin", name) for name in names)
    return "config.json" in names and weights


def chosen(names: Sequence[str], spelling: str, wanted: str | None) -> list[str]:
    """The chosen GGUF files: one, or all parts of a model in order; none if the repository is a checkpoint.

    Args:
        names: all files of the repository, with their folders.
        spelling: what the user wrote, for errors.
        wanted: the name of a file or of a quantisation, or None.

    Raises:
        LoadError: nothing or several models fit; the text lists what is there.
    """
    if wanted is not None and wanted.lower().endswith(".gguf"):
        return _whole(_file(names, spelling, wanted), names, spelling)
    if wanted is None and is_checkpoint(names):
        return []
    models = [name for name in names if _is_model(name)]
    if not models:
        raise LoadError(f"'{spelling}' has no GGUF file{_or_checkpoint(wanted)}; it has {_listed(names)}")
    fitting = models if wanted is None else [name for name in models if _is_quantised_as(name, wanted)]
    if len(fitting) == 1:
        return _whole(fitting[0], names, spelling)
    if not fitting:
        raise LoadError(f"'{spelling}': no GGUF file there is called {wanted}; name one of {_quantisations(models)}")
    if wanted is None:
        raise LoadError(f"'{spelling}' has {len(models)} GGUF models; add a colon and one of {_quantisations(models)}")
    raise LoadError(f"'{spelling}': {len(fitting)} GGUF files are called {wanted}; name one of {_listed(fitting)}")


def _or_checkpoint(wanted: str | None) -> str:
    return " and no config.json with safetensors" if wanted is None else ""


def _file(names: Sequence[str], spelling: str, wanted: str) -> str:
    """The file that the user has named, spelled as in the repository."""
    for word, what in OTHER_FILES.items():
        if word in PurePosixPath(wanted).name.lower():
            raise LoadError(f"'{spelling}' is {what}, not a language model; name the model's own file")
    if wanted in names:
        return wanted
    others = [name for name in names if name.lower() == wanted.lower()]
    if len(others) == 1:
        return others[0]
    models = [name for name in names if _is_model(name)]
    there = f"its GGUF files are {_listed(models)}" if models else f"it has no GGUF file, but {_listed(names)}"
    raise LoadError(f"'{spelling}': there is no such file in the repository; {there}")


def _whole(name: str, names: Sequence[str], spelling: str) -> list[str]:
    """A model's file, or all parts of it."""
    path = PurePosixPath(name)
    part = PART.fullmatch(path.stem)
    if part is None:
        return [name]
    parts = [
        str(path.with_name(f"{part[1]}-{number:05}-of-{part[3]}{path.suffix}")) for number in range(1, int(part[3]) + 1)
    ]
    if int(part[2]) != 1:
        raise LoadError(f"'{spelling}' is not the first part of the model; name {parts[0]}")
    if absent := [each for each in parts if each not in names]:
        raise LoadError(f"'{spelling}': {name} is one of {part[3]} parts, and {listed(absent)} is not there")
    return parts


def _is_model(name: str) -> bool:
    """Whether a file's name is that of a model, or of a model's first part."""
    path = PurePosixPath(name)
    part = PART.fullmatch(path.stem)
    other = any(word in path.name.lower() for word in OTHER_FILES)
    return path.suffix.lower() == ".gguf" and not other and (part is None or int(part[2]) == 1)


def _is_quantised_as(name: str, wanted: str) -> bool:
    """Whether a file's name has a quantisation's between dots and hyphens, in any case."""
    return re.search(rf"(?:^|[-._]){re.escape(wanted)}(?:$|[-.])", _stem(name), re.IGNORECASE) is not None


def _stem(name: str) -> str:
    """A file's name without its ending and the number of its part."""
    stem = PurePosixPath(name).stem
    part = PART.fullmatch(stem)
    return part[1] if part else stem


def _quantisations(models: Sequence[str]) -> str:
    """The names that distinguish models: their quantisations, or else their files."""
    found = [QUANTISATION.findall(_stem(name)) for name in models]
    labels = [each[-1] for each in found if each]
    if len(labels) == len(models) == len({label.lower() for label in labels}):
        return _listed(labels)
    return _listed(models)


def _listed(names: Sequence[str]) -> str:
    return listed(sorted(names), MOST) or "no files"
