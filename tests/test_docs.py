"""What the documents claim is so."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from griffin.families import FAMILIES
from griffin.selection import SELECTIONS
from griffin.statistic import STATISTICS
from server.app import create_app
from server.settings import Settings
from tests.clients.versions import TESTED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tree_is_the_real_tree() -> None:
    """Every module is listed, in its place, and nothing else is."""
    block = README.split("## The tree")[1].split("```")[1]
    listed, folders = set(), [""]
    for line in block.splitlines():
        if not line or line.startswith("README"):
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth + 1 :] = [folders[depth] + name]
        if not name.endswith("/"):
            listed.add(folders[depth] + name)
    real = {
        str(path.relative_to(ROOT))
        for package in ("griffin", "server", "loadtest")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }

    assert {path for path in listed if path.endswith(".py")} == real
    assert all((ROOT / path).exists() for path in listed)


def test_the_settings_table_is_the_settings() -> None:
    """Flag, variable, default and meaning of each, in order."""
    rows = re.findall(r"^\| `(--\S+)` \| `(\S+)` \| (.*?) ?\| (.*) \|$", README, re.MULTILINE)
    expected = [
        (
            f"--{name.replace('_', '-')}",
            f"GRIFFIN_{name.upper()}",
            "" if field.default is None else str(field.default),
            field.description,
        )
        for name, field in Settings.model_fields.items()
    ]

    assert rows == expected


def test_every_endpoint_is_documented() -> None:
    """Those that the app has, and no others."""
    paths = create_app(Settings()).openapi()["paths"]

    assert set(re.findall(r"`(?:GET|POST) (/\S+)`", README)) == set(paths)


def test_the_client_table_is_what_was_tested() -> None:
    """Each client, in the version that the tests run."""
    table = README.split("## Clients")[1].split("\n\n")[2]
    found = dict(re.findall(r"^\| [^|]*?(npm `openai`|`[\w-]+`) \| ([\d.]+) \|", table, re.MULTILINE))

    assert {name.replace("`", ""): version for name, version in found.items()} == TESTED


def test_supported_types_and_choices_are_named() -> None:
    """The rows of the family table, the selections, the statistics."""
    supported = README.split("Supported model types: ")[1].split("\n\n")[0]

    assert all(re.search(rf"\b{name}\b", supported) for name in FAMILIES)
    assert all(f"`{name}`" in README for name in (*SELECTIONS, *STATISTICS))


def test_make_targets_exist() -> None:
    """Every make command in the README is one."""
    makefile = (ROOT / "Makefile").read_text()

    assert all(f"\n{target}:" in makefile for target in re.findall(r"(?:`|\$ )make (\w+)", README))


def test_links_lead_somewhere() -> None:
    """Files that documents link to, and pictures that they show, are there; and so are headings they jump to."""
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            path, _, heading = target.partition("#")
            if target.startswith(("http://", "https://")):
                continue
            file = document.parent / path if path else document
            assert file.exists(), f"{document.name}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                assert heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings], target


def required(name: str, extras: set[str], seen: dict[str, bool]) -> dict[str, bool]:
    """All that a distribution needs here, by normalised name; and whether who needs it names the exact version."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        wanted = [not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in (extras or {""})]
        needed = canonicalize_name(requirement.name)
        if any(wanted) and needed not in seen:
            seen[needed] = any(specifier.operator == "==" for specifier in requirement.specifier)
            required(requirement.name, requirement.extras, seen)
    return seen


def test_every_dependency_is_pinned() -> None:
    """Here, or (torch's CUDA packages) by exact version where it is asked for: two installs are the same."""
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}

    for name, exact in required("griffin-server", {"", "dev"}, {}).items():
        assert exact or name in pinned, f"run make constraints: {name} is not pinned"
        assert name not in pinned or metadata.version(name).split("+")[0] == pinned[name]


def test_no_path_of_one_machine() -> None:
    """Nothing here is true on one machine only."""
    found = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[^A-Za-z0-9_.])/(work|home|root)/"], cwd=ROOT, capture_output=True, text=True
    )

    assert found.returncode in (0, 1), found.stderr
    assert [line for line in found.stdout.splitlines() if not line.startswith("tests/test_docs.py")] == []
