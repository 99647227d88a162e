"""A repository on a hub: its files in the hub's cache, or downloaded. Cached files need no network."""

import glob
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from griffin.errors import LoadError
from griffin.model.checkpoint.hub_files import chosen, is_checkpoint
from griffin.model.checkpoint.refusals import TOKENIZERS, first_words, require_config
from griffin.model.checkpoint.source import HUB_FOLDER, Source
from griffin.model.checkpoint.whole import weight_files

logger = logging.getLogger("griffin")

# Seconds until a hub that does not answer counts as unreachable.
ANSWER_S = 5
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
# The maker's own format contains the same weights again.
OTHERS = ("consolidated*", "*/*")


class _Unreachable(LoadError):
    """The hub does not answer, or must not be asked. The cached files may be enough."""


def brought(source: Source) -> Source:
    """A place on a hub becomes one on this machine: a GGUF file, or a folder whose weights may still be missing.

    Cached files are used as they are; the hub is asked only if they are not enough. If only the repository is named,
    its GGUF file is used only if the hub has no other model there, or cannot be reached. The hub is asked for that once
    for each snapshot. A checkpoint without a tokenizer is used only if the hub cannot be reached.

    Raises:
        LoadError: the repository does not have what is named, or it cannot be reached.
    """
    folder = _snapshot(str(source.hub_id))
    if folder and (path := _cached(folder, source)):
        return _from_cache(source, path)
    try:
        return _from_hub(source, folder)
    except _Unreachable:
        if folder and (path := _cached(folder, source, alone=True)):
            return _from_cache(source, path)
        raise


def with_weights(source: Source) -> Path:
    """The complete folder of a repository that ``brought`` has found."""
    assert source.path is not None
    if not _has_weights(source.path):
        hub_id = str(source.hub_id)
        _download(hub_id, ["*.safetensors"])
        if not weight_files(source.path):
            _download(hub_id, ["*.bin"])
    return source.path


def _snapshot(hub_id: str) -> Path | None:
    """The cached files of the main revision; some may be missing."""
    place = Path(constants.HF_HUB_CACHE) / (HUB_FOLDER + hub_id.replace("/", "--"))
    try:
        folder = place / "snapshots" / (place / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None


def _from_cache(source: Source, path: Path) -> Source:
    logger.info("%s: from the hub's cache, %s; hf download gets a newer one", source.name, path)
    return replace(source, path=path)


def _from_hub(source: Source, folder: Path | None) -> Source:
    """
    Args:
        folder: its cached files.
    """
    hub_id = str(source.hub_id)
    files = chosen(_names(hub_id, source.name), source.name, source.hub_file)
    if files and folder and all((folder / name).is_file() for name in files):
        _remember_it_is_alone(source, folder)
        return _from_cache(source, folder / files[0])
    if files:
        folder = _download(hub_id, [glob.escape(name) for name in files])
        _remember_it_is_alone(source, folder)
        return replace(source, path=folder / files[0])
    folder = _download(hub_id, SMALL)
    require_config(folder, source.name)
    return replace(source, path=folder)


def _cached(folder: Path, source: Source, *, alone: bool = False) -> Path | None:
    """The named model in a snapshot, if it is complete.

    Args:
        alone: the hub cannot help, so a likely match is enough: the only GGUF model, or weights without a tokenizer,
            which the loader then reports.
    """
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    if source.hub_file is None and is_checkpoint(names):
        return folder if _has_weights(folder) and (alone or _has_tokenizer(folder)) else None
    if source.hub_file is None and not alone and not _alone(folder).is_file():
        # The hub may have a checkpoint, or other quantisations.
        return None
    try:
        files = chosen(names, source.name, source.hub_file)
    except LoadError:
        # The hub may have more.
        return None
    return folder / files[0] if files else None


def _alone(folder: Path) -> Path:
    """A file beside a repository's snapshots: the hub had no other model there than the GGUF model of this one."""
    return folder.parents[1] / "griffin" / folder.name


def _remember_it_is_alone(source: Source, folder: Path) -> None:
    """What the hub has told need not be asked again, of this snapshot."""
    if source.hub_file is None:
        note = _alone(folder)
        # A cache that cannot be written is one that is asked for again.
        with suppress(OSError):
            note.parent.mkdir(exist_ok=True)
            note.touch()


def _has_weights(folder: Path) -> bool:
    """Whether all weights, and the files that describe them, are there. Weights are downloaded last."""
    files = weight_files(folder) if (folder / "config.json").is_file() else []
    return bool(files) and all(file.is_file() for file in files)


def _has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer: other programs fill the cache too, some with weights only."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def _names(hub_id: str, name: str) -> list[str]:
    """All files of a repository, as listed by the hub.

    Raises:
        LoadError: the hub does not have the repository, or cannot be reached.
    """
    try:
        listed = HfApi().model_info(hub_id, timeout=ANSWER_S).siblings or []
    except Exception as error:
        _refuse(error, hub_id, name)
    return [file.rfilename for file in listed]


def _download(hub_id: str, patterns: Sequence[str]) -> Path:
    ignored = OTHERS if any("*" in pattern for pattern in patterns) else ()
    logger.info("%s: downloading %s, where it is not cached yet", hub_id, ", ".join(patterns))
    try:
        return Path(
            snapshot_download(
                hub_id, allow_patterns=list(patterns), ignore_patterns=list(ignored), etag_timeout=ANSWER_S
            )
        )
    except Exception as error:
        _refuse(error, hub_id, hub_id)


def _refuse(error: Exception, hub_id: str, name: str) -> NoReturn:
    where = f"{constants.ENDPOINT}/{hub_id}"
    if isinstance(error, GatedRepoError):
        why = f"can only be downloaded after its terms were accepted: accept them at {where} and set HF_TOKEN"
        raise LoadError(f"'{name}' {why}") from None
    if isinstance(error, RepositoryNotFoundError):
        why = f"is neither here nor on the hub ({where}); for a private repository, set HF_TOKEN"
        raise LoadError(f"'{name}' {why}") from None
    if isinstance(error, OfflineModeIsEnabled):
        why = f"is not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to download it"
    elif isinstance(error, HfHubHTTPError):
        why = f"cannot be downloaded from {where}: {first_words(error)}"
    else:
        why = (
            f"is not in the hub's cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} cannot be reached "
            f"({first_words(error)}); name a directory or a GGUF file"
        )
    raise _Unreachable(f"'{name}' {why}") from None
