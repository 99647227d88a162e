"""The arrows of the layout: server -> griffin, never back, and each hard thing in one place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("griffin", "server", "loadtest")
GRIFFIN_LEAVES = ("errors", "selection", "sampling", "kernels", "cache", "precision", "kept", "verification", "ngrams")
SERVER_LEAVES = ("settings", "metrics", "text", "log", "experts", "jsonwire")


def modules(package: str) -> dict[str, ast.Module]:
    """All files of a package by their path in the repository."""
    files = (ROOT / package).rglob("*.py")
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importing(package: str, *forbidden: str) -> list[str]:
    return [
        path
        for path, tree in modules(package).items()
        if any(name == root or name.startswith(f"{root}.") for name in imports(tree) for root in forbidden)
    ]


def test_the_library_knows_nothing_of_the_service() -> None:
    """No HTTP, no text protocol, no metrics in griffin/."""
    web = (
        "server",
        "loadtest",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "pydantic_settings",
        "prometheus_client",
    )
    assert importing("griffin", *web, "httpx") == []


def test_the_service_does_not_touch_tensors() -> None:
    """No torch and no transformers in server/."""
    assert importing("server", "torch", "transformers") == []


def test_nothing_imports_the_experiments() -> None:
    """The core knows no experiment."""
    outside = [path for package in OURS for path in importing(package, "griffin.experiments")]

    assert [path for path in outside if not path.startswith("griffin/experiments/")] == []


def test_the_load_test_stands_alone() -> None:
    """It meets the server over HTTP only."""
    assert importing("loadtest", "griffin", "server") == []


def test_what_deploys_it_knows_its_application_alone() -> None:
    """One file, Ray's, builds the app; the rest of deploy/ is configuration and programs that stand alone."""
    assert importing("deploy", "griffin", "loadtest") == []
    assert importing("deploy", "server") == ["deploy/ray/app.py"]


def test_the_environment_is_read_in_one_file() -> None:
    """Configuration enters at the edge."""
    readers = [
        path
        for package in OURS
        for path, tree in modules(package).items()
        if any(isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv") for n in ast.walk(tree))
        or "os.environ" in imports(tree)
    ]

    assert readers == ["server/settings.py"]


def test_one_file_runs_the_engine() -> None:
    """Only the job iterates generate(), on a worker's thread."""
    runners = [
        path
        for path, tree in modules("server").items()
        if any(isinstance(node, ast.Attribute) and node.attr == "generate" for node in ast.walk(tree))
    ]

    assert runners == ["server/job.py"]


@pytest.mark.parametrize(
    ("package", "leaf"), [("griffin", n) for n in GRIFFIN_LEAVES] + [("server", n) for n in SERVER_LEAVES]
)
def test_leaves_import_nothing_of_their_package(package: str, leaf: str) -> None:
    """They can be read first, and alone."""
    tree = modules(package)[f"{package}/{leaf}.py"]

    assert {name for name in imports(tree) if name.split(".")[0] == package} == set()


def test_the_protocol_knows_nothing_of_the_server() -> None:
    """Shapes of requests and answers can be read alone."""
    inside = {name for name in modules("server") if name.startswith("server/protocol/")}
    found = {name for path in inside for name in imports(modules("server")[path]) if name.split(".")[0] == "server"}

    assert inside
    assert [name for name in found if not name.startswith("server.protocol.")] == []


def test_no_mutable_globals() -> None:
    """State lives in objects."""
    assert [
        path
        for package in OURS
        for path, tree in modules(package).items()
        if any(isinstance(node, ast.Global) for node in ast.walk(tree))
    ] == []
