"""What each module may import: server -> griffin, never back, and inside each package only downwards."""

import ast
from functools import cache
from pathlib import Path

import pytest

from griffin.decode.steps import STEP_NAMES
from griffin.request import METHOD_NAMES

ROOT = Path(__file__).parents[1]
OURS = ("griffin", "server", "loadtest")
# Top to bottom: a folder or module may import itself and those below it. ``__init__`` is the package's public face.
LAYERS = {
    "griffin": (
        "__main__", "experiments", "__init__", "engine", "decode", "method", "model", "request", "constraint",
        "neurons", "thresholds", "library", "errors",
    ),
    "server": (
        "__main__", "process", "commandline", "app", "routes", "answer", "service", "models", "room", "slot", "served",
        "loader", "work", "text", "http", "errors", "protocol", "jsonwire", "metrics", "settings", "log", "__init__",
    ),
}  # fmt: skip
# The same for griffin/experiments/; folders of one row do not import each other.
EXPERIMENTS = (
    ("__main__",), ("report",), ("registry",), ("paper", "quality", "tune"), ("speed", "tasks"), ("common",),
)  # fmt: skip
# Modules that import nothing of their own package, so that each can be read alone.
LEAVES = {
    "griffin": ("errors", "constraint", "thresholds", "library"),
    "server": ("settings", "metrics", "log", "jsonwire"),
}


@cache
def modules(package: str) -> dict[str, ast.Module]:
    """The syntax trees of all files of a package, by path in the repository."""
    files = (ROOT / package).rglob("*.py")
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything that is imported, also inside functions."""
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


def layer(package: str, dotted: str) -> str:
    """The folder or module of a package that a dotted name belongs to."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS[package] else "__init__"


@pytest.mark.parametrize("package", LAYERS)
def test_arrows_point_downwards(package: str) -> None:
    """No folder or module imports one above it. A new one must get its place in the order first."""
    order, upwards = LAYERS[package], []
    for path, tree in modules(package).items():
        own = Path(path).with_suffix("").parts[1]
        assert own in order, f"{path} has no place in the order"
        ours = (name for name in imports(tree) if name.split(".")[0] == package)
        upwards += [f"{path} -> {name}" for name in ours if order.index(layer(package, name)) < order.index(own)]

    assert upwards == []


def test_the_order_names_what_is_there() -> None:
    """Every name in the order exists."""
    for package, order in LAYERS.items():
        there = {path.stem for path in (ROOT / package).iterdir()}
        assert set(order) <= there


def test_experiments_point_downwards() -> None:
    """The report imports the questions, and these import what they share; never the other way."""
    rows = {name: row for row, names in enumerate(EXPERIMENTS) for name in names}
    wrong, there = [], set()
    for path, tree in modules("griffin").items():
        if not path.startswith("griffin/experiments/") or path == "griffin/experiments/__init__.py":
            continue
        own = Path(path).with_suffix("").parts[2]
        there.add(own)
        names = [name.split(".") for name in imports(tree) if name.startswith("griffin.experiments.")]
        wrong += [f"{path} -> {other}" for _, _, other, *_ in names if other != own and rows[other] <= rows[own]]

    assert there == set(rows)
    assert wrong == []


@pytest.mark.parametrize(("package", "leaf"), [(package, leaf) for package, names in LEAVES.items() for leaf in names])
def test_leaves_import_nothing_of_their_package(package: str, leaf: str) -> None:
    """Each leaf can be read alone."""
    tree = modules(package)[f"{package}/{leaf}.py"]

    assert {name for name in imports(tree) if name.split(".")[0] == package} == set()


def test_the_library_knows_nothing_of_the_service() -> None:
    """griffin/ has no HTTP, no text protocol and no metrics."""
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
    """server/ imports neither torch nor transformers."""
    assert importing("server", "torch", "transformers") == []


def test_methods_are_not_told_apart_by_name() -> None:
    """The code does not compare a method's name: the method's class holds what differs."""
    names = {*METHOD_NAMES} - {"griffin"}
    compared = [
        f"{path}:{node.lineno}"
        for package in ("griffin", "server")
        for path, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue)
        and any(isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node))
    ]

    assert compared == []


def test_steps_are_not_told_apart_by_name() -> None:
    """The library does not compare a step's name: the table of steps holds what differs."""
    names = {*STEP_NAMES} - {"auto"}
    compared = [
        f"{path}:{node.lineno}"
        for path, tree in modules("griffin").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node))
    ]

    assert compared == []


def test_nothing_imports_the_experiments() -> None:
    """The command line is the only exception: preparing a model uses code that the experiments share."""
    outside = [path for package in OURS for path in importing(package, "griffin.experiments")]

    assert [path for path in outside if not path.startswith("griffin/experiments/")] == ["griffin/__main__.py"]


def test_the_load_test_stands_alone() -> None:
    """It knows the server only by HTTP."""
    assert importing("loadtest", "griffin", "server") == []


def test_deployment_imports_only_the_application() -> None:
    """Ray's file builds the app. The rest of deploy/ is configuration, and programs that import nothing of ours."""
    assert importing("deploy", "griffin", "loadtest") == []
    assert importing("deploy", "server") == ["deploy/ray/app.py"]


def test_the_environment_is_read_in_one_file() -> None:
    """Only server/settings.py reads environment variables."""
    readers = [
        path
        for package in OURS
        for path, tree in modules(package).items()
        if any(isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv") for n in ast.walk(tree))
        or "os.environ" in imports(tree)
    ]

    assert readers == ["server/settings.py"]


def test_one_folder_runs_engines() -> None:
    """Only server/work/ calls engines, on workers' threads: for jobs, and for comparisons in idle time."""
    runners = {
        path
        for path, tree in modules("server").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("generate", "compare", "rebuild")
    }

    assert runners
    assert all(path.startswith("server/work/") for path in runners)


def test_no_mutable_globals() -> None:
    """No function rebinds a global name: state lives in objects."""
    assert [
        path
        for package in OURS
        for path, tree in modules(package).items()
        if any(isinstance(node, ast.Global) for node in ast.walk(tree))
    ] == []
