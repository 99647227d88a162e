"""The Dockerfile, the compose files and the files in the image; deploy/image/prove.py builds and runs it."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.app import LAST_TOKEN_S
from server.process import ANSWER_S
from server.settings import PREFIX, Settings
from tests.programs import require

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE, CPU, SECRETS = "docker-compose.yml", "docker-compose.cpu.yml", "deploy/image/secrets.yml"
# The image fixes these; the last one must fit the time that Docker waits.
FIXED = {"GRIFFIN_HOST", "GRIFFIN_PORT", "GRIFFIN_CACHE_DIR", "GRIFFIN_DRAIN_TIMEOUT"}


class Reset(str):
    """A value tagged ``!reset``, which removes the key."""


class Loader(yaml.SafeLoader):
    """A YAML loader that knows compose's tag."""


Loader.add_constructor("!reset", lambda loader, node: Reset())


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader)
    return document


def merged(*names: str) -> dict[str, Any]:
    """Compose's merge, as far as these files need it: mappings by key, lists appended, !reset removes."""
    document: dict[str, Any] = {}
    for name in names:
        document = merge(document, read(name))
    return document


def merge(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        keys = [key for key in {**under, **over} if not isinstance(over.get(key), Reset)]
        return {key: merge(under[key], over[key]) if key in under and key in over else {**under, **over}[key]
                for key in keys}  # fmt: skip
    return under + over if isinstance(under, list) and isinstance(over, list) else over


def stage(name: str) -> str:
    """The instructions of a stage and of the stages that it builds on."""
    found = re.search(rf"^FROM (\S+) AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, name
    return ("" if found[1].startswith("$") else stage(found[1])) + found[2]


@pytest.mark.parametrize("names", [(COMPOSE,), (COMPOSE, CPU), (COMPOSE, SECRETS), (COMPOSE, CPU, SECRETS)])
def test_compose_files_are_valid(names: tuple[str, ...], tmp_path: Path) -> None:
    """Each combination fits the compose specification's schema after the merge."""
    file = tmp_path / "merged.yml"
    file.write_text(yaml.safe_dump(merged(*names)))
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


def test_mounts_are_there() -> None:
    """Each folder that compose mounts from the repository exists. Docker would create an empty one otherwise."""
    services = read(COMPOSE)["services"]
    sources = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    local = [source for source in sources if source.startswith(".")]

    assert len(local) == 4
    assert [source for source in local if not any((ROOT / source).iterdir())] == []
    assert {source for source in sources if not source.startswith(".")} == set(read(COMPOSE)["volumes"])


def test_dashboards_are_where_grafana_looks() -> None:
    """The provider's path is a mounted folder, and the data source has the service's name and port."""
    volumes = dict(volume.split(":")[:2] for volume in read(COMPOSE)["services"]["grafana"]["volumes"])
    provisioning = "deploy/grafana/provisioning"
    providers = yaml.safe_load((ROOT / provisioning / "dashboards/griffin.yml").read_text())["providers"]
    sources = yaml.safe_load((ROOT / provisioning / "datasources/prometheus.yml").read_text())["datasources"]

    assert [provider["options"]["path"] for provider in providers] == [volumes["./deploy/grafana/dashboards"]]
    assert [source["url"] for source in sources] == ["http://prometheus:9090"]


def test_prometheus_scrapes_the_service() -> None:
    """The target is the service's name in compose and the port that the image serves."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = [target for job in config["scrape_configs"] for group in job["static_configs"]
               for target in group["targets"]]  # fmt: skip

    assert "server" in read(COMPOSE)["services"]
    assert f"server:{Settings.model_fields['port'].default}" in targets


def test_published_on_this_host_alone() -> None:
    """No port is open to the network unless the user sets this."""
    ports = [port for service in read(COMPOSE)["services"].values() for port in service["ports"]]

    assert len(ports) == 3
    assert all(port.startswith(("127.0.0.1:", "${API_ADDRESS:-127.0.0.1}:")) for port in ports)


def test_images_are_pinned() -> None:
    """Each has an exact version. Ours has no registry name, so it is built and never pulled."""
    images = {name: service.get("image") for name, service in read(COMPOSE)["services"].items()}

    assert images.pop("server") is None
    assert "image" not in read(CPU)["services"]["server"]
    assert all(re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", image) for image in images.values())
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_a_gpu_is_reserved_unless_there_is_none() -> None:
    """`docker compose up` reserves GPUs; the override removes this and builds without CUDA."""
    devices = read(COMPOSE)["services"]["server"]["deploy"]["resources"]["reservations"]["devices"]
    server = merged(COMPOSE, CPU)["services"]["server"]

    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert "deploy" not in server
    assert set(server["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert server["build"]["target"] == "server"


def test_every_setting_can_be_given() -> None:
    """Compose passes on the variable of each setting, and no others."""
    passed = set(read(COMPOSE)["services"]["server"]["environment"])
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}

    assert {name for name in passed if name.startswith(PREFIX)} == known - FIXED
    assert all(value is None for value in read(COMPOSE)["services"]["server"]["environment"].values())


def test_docker_waits_for_the_drain() -> None:
    """Docker sends SIGKILL only after the server has had time to finish its requests."""
    grace = read(COMPOSE)["services"]["server"]["stop_grace_period"]

    assert int(grace.removesuffix("s")) > Settings.model_fields["drain_timeout"].default + ANSWER_S + LAST_TOKEN_S


def test_files_replace_variables() -> None:
    """With secrets in files, the variables are gone: they would win over a file, or Grafana would refuse both."""
    services = merged(COMPOSE, SECRETS)["services"]

    assert not {"GRIFFIN_API_KEYS", "HF_TOKEN"} & set(services["server"]["environment"])
    assert "GF_SECURITY_ADMIN_PASSWORD" not in services["grafana"]["environment"]
    assert services["server"]["secrets"][0] == {"source": "api_keys", "target": "griffin_api_keys"}


@pytest.mark.parametrize("name", ["server", "ray"])
def test_the_image_needs_no_root_and_no_compiler(name: str) -> None:
    """The last user is a number above 0, and a final stage installs no compiler."""
    instructions = stage(name)
    users = re.findall(r"^USER (\S+)$", instructions, re.MULTILINE)

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert not re.search(r"\b(gcc|g\+\+|clang|build-essential|make)\b", instructions)


def test_the_server_is_what_is_built() -> None:
    """The last stage is the server's, with the health check and a command that gets SIGTERM itself."""
    assert re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)[-1] == "server"
    assert '\nCMD ["python", "-m", "server"]' in stage("server")
    assert re.search(r'HEALTHCHECK .*\\\n\s+CMD \["python", "/opt/griffin/healthcheck.py"\]', stage("server"))
    assert "ENTRYPOINT" not in DOCKERFILE


def test_what_is_copied_reaches_the_build() -> None:
    """.dockerignore lets each file through that a COPY takes from the repository."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copies for source in line.split()]

    assert len(sources) >= 8
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert [name for name in sources if not any(name == a or name.startswith(f"{a}/") for a in allowed)] == []


@pytest.fixture
def ready_server() -> Iterator[HTTPServer]:
    """Answers /ready with its ``status``, and demands its ``key`` if it has one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorized = server.key is None or self.headers["Authorization"] == f"Bearer {server.key}"  # type: ignore[attr-defined]
            self.send_response(server.status if authorized and self.path == "/ready" else 401)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.key = 200, None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def healthcheck(port: int, **environment: str) -> int:
    """The exit code of the health check. It must not use the proxy in the environment."""
    return subprocess.run(
        [sys.executable, ROOT / "deploy/image/healthcheck.py"],
        env={"GRIFFIN_PORT": str(port), "http_proxy": "http://127.0.0.1:9", **environment}, capture_output=True,
    ).returncode  # fmt: skip


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_readiness(ready_server: Any, status: int, code: int) -> None:
    """The container is healthy while /ready says 200."""
    ready_server.status = status

    assert healthcheck(ready_server.server_port) == code


def test_health_with_a_key(ready_server: Any) -> None:
    """The check sends the first key, which the server may demand."""
    ready_server.key = "one"

    assert healthcheck(ready_server.server_port) == 1
    assert healthcheck(ready_server.server_port, GRIFFIN_API_KEYS="one, two") == 0


def test_health_without_a_server() -> None:
    """If no server listens, the check prints one line and no traceback."""
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/image/healthcheck.py"],
        env={"GRIFFIN_PORT": "9"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("no answer: ")


LOAD = """
import ctypes, os, sys
sys.setdlopenflags(os.RTLD_LAZY)
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
from triton.backends.nvidia.driver import CudaUtils
print(CudaUtils().launch)
"""


def test_triton_needs_no_compiler(tmp_path: Path) -> None:
    """A module compiled during the build is found later, without a compiler and with an empty cache."""
    require("gcc")
    pytest.importorskip("triton")
    shutil.copy(ROOT / "deploy/image/triton_cache.py", tmp_path)
    stub = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", stub, "-x", "c", os.devnull], check=True)
    subprocess.run([sys.executable, tmp_path / "triton_cache.py"], check=True, capture_output=True)
    environment = {
        "PATH": "/nowhere",
        "PYTHONPATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_LIBCUDA_PATH": "/usr/lib",
    }
    command = [sys.executable, "-c", LOAD, stub]
    without = subprocess.run(command, env=environment, capture_output=True, text=True)
    environment["TRITON_CACHE_MANAGER"] = re.findall(r"TRITON_CACHE_MANAGER=(\S+)", DOCKERFILE)[0]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert "Failed to find C compiler" in without.stderr
    assert found.returncode == 0, found.stderr


def test_the_proof_names_missing_programs() -> None:
    """One line names the missing programs."""
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/image/prove.py"], env={"PATH": "/nowhere"}, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "NOT PROVED: not installed: buildah, debootstrap" in done.stderr
