"""The documents' tables, names and links agree with the code."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModelForCausalLM

from griffin import Accounting
from griffin.experiments.speed.shapes import shape_config
from griffin.model.families import FAMILIES, MULTIMODAL
from griffin.request import STATISTICS, STRATEGY_NAMES
from server.app import create_app
from server.metrics import Metrics
from server.settings import Settings
from tests.clients.versions import TESTED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()
API = (ROOT / "docs/api.md").read_text()
MODELS = (ROOT / "docs/models.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "deploy").rglob("*.md"),
]


def test_the_tree_is_the_real_tree() -> None:
    """The tree lists every module in its place, and names no file that does not exist."""
    block = ARCHITECTURE.split("## The tree")[1].split("```")[1]
    listed, folders = set(), [""]
    for line in block.splitlines():
        if not line:
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
    """The table has each setting's flag, variable, default and meaning, in order."""
    rows = re.findall(r"^\| `(--\S+)` \| `(\S+)` \| (.*?) ?\| (.*) \|$", OPERATING, re.MULTILINE)
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


def test_the_metrics_table_has_every_metric() -> None:
    """The table has the names that Prometheus sees."""
    table = OPERATING.split("## Metrics and dashboards")[1].split("##")[0]
    found = Metrics().registry.collect()
    names = [f"{m.name}_total" if m.type == "counter" else m.name for m in found if m.name.startswith("griffin")]

    assert sorted(re.findall(r"`(griffin_\w+)`", table.replace("against `griffin_model_parameters`", ""))) == sorted(
        names
    )


@pytest.mark.parametrize("shape", ["smollm2-135m", "llama-3-8b", "llama-2-13b"])
def test_the_memory_table_is_what_the_shapes_need(shape: str) -> None:
    """In decimal units, for bfloat16."""
    config = shape_config(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    accounting, context = Accounting.of(model), config.max_position_embeddings
    token = accounting.kv_bytes * accounting.layers
    chunk = Settings().prefill_chunk * token + accounting.neurons * 4
    cells = (
        f"{accounting.total * 2 / 1e9:.2f} GB | {token // 1000} kB | {token * context / 1e9:.2f} GB at {context} | "
        f"{chunk / 1e6:.1f} MB | {accounting.feed_forward * 2 * 0.5 / 1e9:.2f} GB"
    )

    assert f"| {shape} | {cells} |" in OPERATING


def test_every_endpoint_is_documented() -> None:
    """The document has the app's endpoints, and no others."""
    paths = create_app(Settings()).openapi()["paths"]

    assert set(re.findall(r"`(?:GET|POST) (/\S+)`", API)) - {"/"} == set(paths)


def test_the_client_table_is_what_was_tested() -> None:
    """The table has each client in the version that the tests run."""
    table = README.split("## Clients")[1].split("\n\n")[2]
    found = dict(re.findall(r"^\| [^|]*?((?:npm )?`[\w-]+`) \| ([\d.]+) \|", table, re.MULTILINE))

    assert {name.replace("`", ""): version for name, version in found.items()} == TESTED


def test_supported_types_and_choices_are_named() -> None:
    """The documents name all model types, strategies and statistics."""
    supported = README.split("Supported model types: ")[1].split("\n\n")[0]

    assert all(re.search(rf"\b{name}\b", supported) for name in (*FAMILIES, *MULTIMODAL))
    assert all(f"`{name}`" in API for name in (*STRATEGY_NAMES, *STATISTICS))


def test_the_table_of_model_types_is_the_table() -> None:
    """It has every type, and says correctly whether our own steps decode it."""
    table = MODELS.split("## Model types")[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")][1:]
    listed = {name: own.strip() == "yes" for _, names, _, own, *_ in rows for name in re.findall(r"`(\w+)`", names)}
    own_step = {name: family.block is not None for name, family in FAMILIES.items()}

    assert listed == own_step | {name: own_step[part.model_type] for name, part in MULTIMODAL.items()}


def test_make_targets_exist() -> None:
    """Every make command in a document has a target."""
    makefile = (ROOT / "Makefile").read_text()
    text = "".join(document.read_text() for document in DOCUMENTS)

    assert all(f"\n{target}:" in makefile for target in re.findall(r"(?:`|\$ )make (\w+)", text))


def test_links_lead_somewhere() -> None:
    """Linked files, pictures and headings exist."""
    for document in DOCUMENTS:
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
    """All that a distribution needs here: normalised name -> whether the requirement names an exact version."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        wanted = [not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in (extras or {""})]
        needed = canonicalize_name(requirement.name)
        if any(wanted) and needed not in seen:
            seen[needed] = any(specifier.operator == "==" for specifier in requirement.specifier)
            required(requirement.name, requirement.extras, seen)
    return seen


def test_every_dependency_is_pinned() -> None:
    """Two installations are the same: each version is fixed in constraints.txt or where it is required."""
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}

    for name, exact in required("griffin-server", {"", "dev"}, {}).items():
        assert exact or name in pinned, f"run make constraints: {name} is not pinned"
        assert name not in pinned or metadata.version(name).split("+")[0] == pinned[name]


def test_no_path_of_one_machine() -> None:
    """No file names a path that exists on one machine only."""
    found = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[^A-Za-z0-9_.])/(work|home|root)/"], cwd=ROOT, capture_output=True, text=True
    )

    assert found.returncode in (0, 1), found.stderr
    assert [line for line in found.stdout.splitlines() if not line.startswith("tests/test_docs.py")] == []
