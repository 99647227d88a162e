"""A Ray cluster of one node that runs the server. It starts as a user starts it and stops after the test."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S, STOP_S, CONDITION_S = 240, 30, 120
REPLICA = "x-griffin-replica"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Set here, because Ray would look for a token in the home directory.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # No request runs when the node is told to stop.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONUNBUFFERED": "1",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = CONDITION_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.05)


class RayCluster:
    """``ray start`` and ``serve run`` with deploy/ray/serve.yaml, on CPU replicas of a model directory."""

    def __init__(self, folder: Path, model: Path, most_queued: int, **arguments: object) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        # Unix sockets need short paths, and pytest's folders have long ones.
        self._sockets = tempfile.mkdtemp(prefix="ray")
        self._gcs_port, self._http_port = free_port(), free_port()
        self.config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        self.config["http_options"] = {"host": "127.0.0.1", "port": self._http_port}
        (application,) = self.config["applications"]
        (deployment,) = application["deployments"]
        self.scale: dict[str, int] = deployment["autoscaling_config"]
        deployment["max_queued_requests"] = most_queued
        self.scale |= {"min_replicas": 2, "max_replicas": 2}
        self._arguments = application["args"]
        self._arguments |= {
            "model": str(model),
            "device": "cpu",
            "gpus": 0,
            "cpus": 1,
            **arguments,
        }
        self.url = f"http://127.0.0.1:{self._http_port}"

    @property
    def log(self) -> str:
        """The output of both commands, with the replicas' own lines."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.log")))

    def start(self) -> None:
        ports = ("ray-client-server-port", "dashboard-port", "dashboard-agent-listen-port")
        self._run(
            "ray", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false",
            "--num-cpus=4", "--num-gpus=0", "--object-store-memory=100000000", f"--temp-dir={self._sockets}",
            f"--port={self._gcs_port}", "--min-worker-port=0", "--max-worker-port=0",
            *(f"--{name}={free_port()}" for name in ports),
        )  # fmt: skip
        wait_until(lambda: self._alive() and "Ray runtime started" in self.log, "Ray runs", START_S)
        self.deploy()
        wait_until(lambda: self._alive() and len(self.replicas()) == 2, "both replicas answer", START_S)

    def deploy(self) -> None:
        """Deploy the current configuration."""
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(self.config))
        self._run("serve", "run", f"--address=127.0.0.1:{self._gcs_port}", str(path))

    def replicas(self, asks: int = 8) -> set[str]:
        """The names of the replicas that answer a few requests."""
        found = set()
        for _ in range(asks):
            with suppress(httpx.HTTPError, KeyError):
                found.add(httpx.get(f"{self.url}/ready").raise_for_status().headers[REPLICA])
        return found

    def metrics(self) -> dict[int, str]:
        """Each replica's own metrics, by the id of its process."""
        found = {}
        for process in self._replica_processes():
            listeners = []
            # A process may be about to end.
            with suppress(psutil.Error):
                listeners = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            for address, port in listeners:
                # A port may be Ray's own, which does not speak HTTP.
                with suppress(httpx.TransportError):
                    if port in self._metrics_ports():
                        text = httpx.get(f"http://{address}:{port}/metrics").text
                        if "griffin_ready" in text:
                            found[process.pid] = text
        return found

    def total(self, metric: str) -> float:
        """The sum of a metric over all replicas and labels."""
        return sum(value(text, metric) for text in self.metrics().values())

    def stop(self) -> None:
        """Stop all processes, also those that Ray has started in process groups of their own."""
        started = [psutil.Process(process.pid) for process in self._processes if process.poll() is None]
        all_of_them = [child for parent in started for child in (*parent.children(recursive=True), parent)]
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(all_of_them, STOP_S)
        for process in left:
            process.kill()
        psutil.wait_procs(left, STOP_S)
        for process in self._processes:
            process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _run(self, *command: str) -> None:
        with (self._folder / f"{len(self._processes)}.log").open("w") as log:
            self._processes.append(
                subprocess.Popen(
                    [BIN / command[0], *command[1:]],
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env={**os.environ, **ENVIRONMENT},
                )
            )

    def _alive(self) -> bool:
        assert all(process.poll() is None for process in self._processes), self.log
        return True

    def _replica_processes(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self._processes[0].pid).children(recursive=True):
            with suppress(psutil.Error):
                if "ServeReplica" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def _metrics_ports(self) -> range:
        first = int(self._arguments["metrics_port"])
        return range(first, first + 64)


def value(exposition: str, metric: str) -> float:
    """The sum of a metric's samples."""
    return sum(map(float, re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", exposition, re.MULTILINE)))


@contextmanager
def running(folder: Path, model: Path, most_queued: int, **arguments: object) -> Iterator[RayCluster]:
    cluster = RayCluster(folder, model, most_queued, **arguments)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
