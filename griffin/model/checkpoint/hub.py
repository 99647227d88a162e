"""A checkpoint on a hub, brought into a folder."""

from pathlib import Path

from huggingface_hub import snapshot_download

from griffin.model.checkpoint.whole import weight_files


def downloaded(hub_id: str) -> Path:
    """The folder of a repository in the hub's cache. What is missing there is downloaded first."""
    small = ["*.json", "*.txt", "*.model", "*.jinja"]
    # The maker's own format holds the same weights again.
    others = ["consolidated*", "*/*"]
    folder = Path(snapshot_download(hub_id, allow_patterns=[*small, "*.safetensors"], ignore_patterns=others))
    if not weight_files(folder):
        snapshot_download(hub_id, allow_patterns=["*.bin"], ignore_patterns=others)
    return folder
