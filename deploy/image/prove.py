#!/usr/bin/env python3
"""Prove the Dockerfile without Docker: build it with buildah, start the result, send a request, stop it.

Run as root on Debian, with buildah, debootstrap and util-linux (apt-get install buildah debootstrap). It takes about
ten minutes and 12 GB of disk, and leaves nothing behind unless --keep is given. The output names each stand-in for the
real thing. The build uses this machine's pip index; the index does not end up in the image.

With Docker, run docker compose up instead.
"""

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
NEEDED = ("buildah", "debootstrap", "unshare", "nsenter", "chroot", "mount", "ip")
NEEDED_BYTES = 12 * 2**30
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "tcc", "ld", "as", "make")
PACKAGES = ("griffin", "loadtest", "server")
NOT_INSTALLED = (".c", ".pyc", ".so")
IMAGE = "griffin-server"
STAND_IN = "stand-in-for-python"
START_S = 300
LOG_EVERY_S = 5
STOP_S = 60

# There is no curl in the image.
ASK = """
import sys, urllib.request
request = urllib.request.Request(
    "http://127.0.0.1:8000/v1/completions", sys.argv[1].encode(), {"Content-Type": "application/json"}
)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
REQUEST = {
    "prompt": "The capital of France is Paris, and the capital of Italy is",
    "max_tokens": 8,
    "temperature": 0,
    "sparsity": 0.5,
}


class Failed(Exception):
    """The proof failed, or cannot be tried; the text is for a person."""


def main() -> int:
    """The exit code: 0 if everything is proved, otherwise 1."""
    arguments = parser().parse_args()
    started = time.monotonic()
    folder: Path | None = None
    try:
        require_programs()
        if not Path(arguments.work).is_dir():
            raise Failed(f"--work {arguments.work} is no folder")
        folder = Path(tempfile.mkdtemp(prefix="griffin-image-", dir=Path(arguments.work).resolve()))
        if shutil.disk_usage(folder).free < NEEDED_BYTES:
            raise Failed(f"{folder} has less than {NEEDED_BYTES >> 30} GB free; name another place with --work")
        prove(Builder(folder), arguments)
    except Failed as error:
        print(f"\nNOT PROVED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 1
    finally:
        if folder is not None:
            leave(folder, keep=arguments.keep)
    print(f"\nPROVED in {time.monotonic() - started:.0f} s, except for the stand-ins above")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--base", metavar="IMAGE", help="a base image that buildah can pull; default: a stand-in")
    made.add_argument("--mirror", metavar="URL", help="Debian mirror for the stand-in; default: debootstrap's own")
    made.add_argument(
        "--build-arg", metavar="NAME=VALUE", action="append", default=[], help="as in docker build; repeatable"
    )
    made.add_argument("--work", metavar="DIR", default="/var/tmp", help="where to work (default: %(default)s)")
    made.add_argument("--keep", action="store_true", help="keep the images and the root folder, and print their places")
    return made


def prove(builder: "Builder", arguments: argparse.Namespace) -> None:
    dockerfile = (SOURCE / "Dockerfile").read_text()
    section("Base image")
    base = arguments.base or builder.stand_in(dockerfile, arguments.mirror)
    section("Build")
    builder.build(base, arguments.build_arg)
    section("The image")
    image = builder.image()
    root = builder.root()
    describe(image, root, builder)
    check_root(image, root)
    section("Run")
    stand_in("a container runtime: chroot, unshare and setpriv; no image was pulled, pushed or unpacked by Docker")
    stand_in("the volume: a copy of the image's /cache, with which Docker fills a new named volume")
    volume = builder.folder / "volume"
    subprocess.run(["cp", "-a", root / "cache", volume], check=True)
    container = Container(image, root, volume, builder.folder / "server.log")
    try:
        run(container)
    finally:
        container.kill()
    section("Not tested here")
    print("a GPU (with torch for CUDA and Triton without a C compiler), Docker itself, and running the compose file")


def run(container: "Container") -> None:
    print("the server runs as the container's first process, with a read-only root and without a network")
    seconds = container.wait_until_healthy()
    check_process(container)
    line = container.logged(r".* is ready, loaded in .*\)")
    print(f"healthy after {seconds:.1f} s, by the image's own HEALTHCHECK; the server says: {line}")
    if "native decode step" not in line:
        raise Failed("the server decodes without the compiled step")
    answer = json.loads(container.execute(["python", "-", json.dumps(REQUEST)], ASK))
    if answer["griffin"]["sparsity"] != 0.5 or not answer["choices"][0]["text"]:
        raise Failed(f"not the answer to the request: {answer}")
    kept, total = answer["griffin"]["neurons_kept"], answer["griffin"]["neurons_total"]
    print(f"a completion, with {kept} of {total} neurons: {answer['choices'][0]['text']!r}")
    code, seconds = container.stop()
    print(f"SIGTERM: exit code {code} after {seconds:.1f} s")
    if code != 0:
        raise Failed(f"exit code {code}; the log ends:\n{container.log_end()}")


def check_process(container: "Container") -> None:
    """Raises Failed if the server may do more than it needs, or cannot do what it needs."""
    text = container.execute(["cat", "/proc/1/status"])
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    facts = {name: status[name].split()[0] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs")}
    expected = {"Uid": container.image.user.split(":")[0], "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    if facts != expected:
        raise Failed(f"the server runs with {facts}, not {expected}")
    for path, writable in (("/opt/venv", False), ("/app", False), ("/cache/huggingface", True), ("/tmp", True)):
        try:
            container.execute(["touch", f"{path}/file"])
        except Failed:
            if writable:
                raise
        else:
            if not writable:
                raise Failed(f"the server can write to {path}")
    print(f"user {facts['Uid']}, no capability, no new privileges; it can write to /cache and /tmp alone")


@dataclass(frozen=True, slots=True)
class Image:
    """The parts of an image's configuration that a container runtime uses."""

    command: list[str]
    environment: list[str]
    user: str
    folder: str
    health: list[str]
    volumes: list[str]
    labels: dict[str, str]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Image":
        health = config.get("Healthcheck", {}).get("Test", [])
        if health[:1] != ["CMD"]:
            raise Failed(f"the health check is no plain command: {health}")
        if config.get("Entrypoint"):
            raise Failed("there is an entrypoint: it would be the one to get SIGTERM")
        return cls(config["Cmd"], config["Env"], config["User"], config["WorkingDir"], health[1:],
                   list(config["Volumes"]), config["Labels"])  # fmt: skip


class Builder:
    """buildah, with its own storage in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "storage"
        self._options: list[str | Path] = [
            "--root",
            self.storage,
            "--runroot",
            folder / "run",
            "--storage-driver",
            "vfs",
        ]

    def stand_in(self, dockerfile: str, mirror: str | None) -> str:
        """Debian with its own Python, instead of Docker's Python image on the same Debian."""
        found = re.search(r"^ARG PYTHON_IMAGE=(python:(3\.\d+)\S*-slim-(\w+))$", dockerfile, re.MULTILINE)
        if not found:
            raise Failed("the Dockerfile names no PYTHON_IMAGE of the form python:3.N.N-slim-SUITE")
        name, version, suite = found.groups()
        stand_in(f"the base image: Debian {suite} with Debian's Python, made by debootstrap, for {name}")
        root = self.folder / "base"
        packages = "--include=ca-certificates,python3,python3-dev,python3-venv"
        command = ["debootstrap", "--variant=minbase", packages, suite, root, *([mirror] if mirror else [])]
        watch(command, self.folder / "base.log", r"I: (Retrieving \S+|Configuring \S+)")
        has = subprocess.run(["chroot", root, "python3", "--version"], capture_output=True, text=True).stdout.strip()
        if not has.startswith(f"Python {version}."):
            raise Failed(f"Debian {suite} has {has or 'no Python'}, and {name} {version}: name a real one with --base")
        shutil.rmtree(root / "var/cache/apt/archives")
        container = self("from", "scratch")
        self("copy", "--quiet", container, root, "/")
        self("commit", "--quiet", "--rm", container, STAND_IN)
        shutil.rmtree(root)
        print(f"{has}, {megabytes(*self.layers(STAND_IN))}")
        return f"localhost/{STAND_IN}"

    def build(self, base: str, build_arguments: Sequence[str]) -> None:
        configuration = pip_configuration()
        file = self.folder / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in configuration.items()))
        if not any(argument.startswith("TORCH_INDEX") for argument in build_arguments):
            print("torch is whichever pip finds with its configuration here: --build-arg TORCH_INDEX=... names another")
        arguments = [word for argument in build_arguments for word in ("--build-arg", argument)]
        mounts = [word for path in local_paths(configuration) for word in ("--volume", f"{path}:{path}:ro")]
        command: list[str | Path] = [
            "buildah", *self._options, "build", "--isolation", "chroot", "--format", "docker", "--target", "server",
            "--build-arg", f"PYTHON_IMAGE={base}", *arguments, *mounts, "--secret", f"id=pip,src={file}",
            "--tag", IMAGE, SOURCE,
        ]  # fmt: skip
        stand_in("Docker's build: buildah with the same Dockerfile, in a chroot")
        # Its cache mounts go to TMPDIR.
        watch(command, self.folder / "build.log", r"\[\d+/\d+\] STEP .*|STEP .*", TMPDIR=str(self.folder))

    def image(self) -> Image:
        return Image.of(json.loads(self("inspect", "--type", "image", IMAGE))["Docker"]["config"])

    def root(self) -> Path:
        """The image's files, as its container would see them."""
        return Path(self("mount", self("from", "--pull-never", IMAGE)))

    def layers(self, name: str) -> list[int]:
        """Bytes of each layer of an image, unpacked, lowest layer first."""
        known = json.loads((self.storage / "vfs-layers/layers.json").read_text())
        sizes = {layer["diff-digest"]: layer["diff-size"] for layer in known if "diff-digest" in layer}
        digests = json.loads(self("inspect", "--type", "image", name))["Docker"]["rootfs"]["diff_ids"]
        return [sizes[digest] for digest in digests]

    def __call__(self, *arguments: str | Path) -> str:
        command = ["buildah", *self._options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"buildah {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()


class Container:
    """A started image: its files under a read-only root, in its own namespaces, without any capability."""

    def __init__(self, image: Image, root: Path, volume: Path, log: Path) -> None:
        self.image, self._root, self._log = image, root, log
        words = shlex.join([*self._as_user(), *image.command])
        script = f"""
            set -e
            mount --bind {root} {root}
            mount -o remount,bind,ro {root}
            mount -t tmpfs tmpfs {root}/tmp
            mount -t proc proc {root}/proc
            mount --rbind /dev {root}/dev
            mount --rbind /sys {root}/sys
            mount --bind {volume} {root}/cache
            ip link set lo up
            exec chroot {root} {words}
        """
        namespaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        self._started = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(["unshare", *namespaces, "sh", "-c", script], stdout=file, stderr=file)

    def _as_user(self) -> list[str]:
        """How a runtime starts a process: with the image's user, environment and folder, and nothing else."""
        user, _, group = self.image.user.partition(":")
        return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs",
                "--bounding-set=-all", "--inh-caps=-all", "env", "--ignore-environment", f"--chdir={self.image.folder}",
                "HOME=/cache", *self.image.environment]  # fmt: skip

    def execute(self, command: Sequence[str], standard_input: str = "") -> str:
        """Run a command as ``docker exec`` does; returns what it prints.

        Raises:
            Failed: its exit code is not 0.
        """
        enter = ["nsenter", f"--target={self._first()}", "--mount", "--net", "--pid", "--ipc", "--uts", "--root"]
        done = subprocess.run(
            [*enter, *self._as_user(), *command], input=standard_input, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def wait_until_healthy(self) -> float:
        """Seconds since the start."""
        while True:
            if self._process.poll() is not None:
                raise Failed(f"the server ended with {self._process.returncode}:\n{self.log_end()}")
            try:
                self.execute(self.image.health)
            except Failed as error:
                if time.monotonic() - self._started > START_S:
                    raise Failed(f"not healthy after {START_S} s: {error}\n{self.log_end()}") from None
                time.sleep(0.5)
            else:
                return time.monotonic() - self._started

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM to its first process; the exit code, and the seconds until it ended."""
        asked = time.monotonic()
        os.kill(self._first(), signal.SIGTERM)
        try:
            return self._process.wait(STOP_S), time.monotonic() - asked
        except subprocess.TimeoutExpired:
            raise Failed(f"still running {STOP_S} s after SIGTERM") from None

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def logged(self, pattern: str) -> str:
        found = re.search(pattern, self._log.read_text())
        return found[0] if found else "(nothing)"

    def log_end(self) -> str:
        return "\n".join(self._log.read_text().splitlines()[-15:])

    def _first(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            raise Failed(f"the container has not started:\n{self.log_end()}")
        return int(children[0])


def describe(image: Image, root: Path, builder: Builder) -> None:
    print("layers, unpacked:", ", ".join(map(megabytes, builder.layers(IMAGE))))
    for path in ("opt/venv", "opt/griffin", "cache"):
        print(f"  /{path:<12} {megabytes(size(root / path))}")
    ask = ["/opt/venv/bin/python", "-c", "from importlib.metadata import version as v; print(v('torch'))"]
    torch = subprocess.run(["chroot", root, *ask], capture_output=True, text=True).stdout.strip()
    if torch.endswith("+cpu"):
        stand_in(f"torch: {torch}, without CUDA, as in docker-compose.cpu.yml")
    print(f"command {image.command}, health check {image.health}, volumes {image.volumes}")


def check_root(image: Image, root: Path) -> None:
    """Raises Failed if the image contains something that it should not, or lacks something."""
    folders = [root / folder.lstrip("/") for folder in ("/usr/bin", "/usr/local/bin", "/opt/venv/bin")]
    found = [str(folder / name) for folder in folders for name in COMPILERS if (folder / name).exists()]
    if found:
        raise Failed(f"compilers in the image: {', '.join(found)}")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user):
        raise Failed(f"the user is {image.user!r}, not two numbers above 0")
    if (root / "etc/pip.conf").exists() or any(line.startswith("PIP_") for line in image.environment):
        raise Failed("pip's configuration of this machine is in the image")
    installed = next(root.glob("opt/venv/lib/python3.*/site-packages"))
    ours = [path for package in PACKAGES for path in (SOURCE / package).rglob("*") if path.is_file()]
    missing = [
        str(name)
        for name in (path.relative_to(SOURCE) for path in ours if path.suffix not in NOT_INSTALLED)
        if not (installed / name).is_file()
    ]
    if missing:
        raise Failed(f"not installed in the image: {', '.join(missing)}")
    print("no compiler, no root, nothing of this machine's pip configuration; every file of the packages")


def pip_configuration() -> dict[str, str]:
    """pip's global options on this machine, from its files and the environment; the environment wins."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if listed.returncode:
        print(f"{sys.executable} has no pip here: the build asks pip's default index")
    values = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        found = re.fullmatch(r"(?:global|:env:)\.([\w-]+)=(.*)", line)
        if found:
            values[found[1]] = ast.literal_eval(found[2])
    return values


def local_paths(configuration: dict[str, str]) -> list[str]:
    """Files and folders of this machine in pip's configuration; for an index, also those that its pages link to."""
    words = [word for value in configuration.values() for word in value.split()]
    indexes = [Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")]
    return sorted({str(path) for path in [*indexes, *map(Path, words)] if path.is_absolute() and path.exists()})


def watch(command: Sequence[str | Path], log: Path, pattern: str, **environment: str) -> None:
    """Run a command, and show its matching lines as progress.

    Raises:
        Failed: its exit code is not 0.
    """
    started = shown = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   env={**os.environ, **environment})  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if re.match(pattern, line) and (sys.stdout.isatty() or time.monotonic() - shown > LOG_EVERY_S):
                    shown = time.monotonic()
                    progress(shown - started, line)
        finally:
            if sys.exc_info()[0] is not None:
                process.terminate()
            process.wait()
    progress(time.monotonic() - started, "done", end="\n")
    if process.returncode:
        end = "\n".join(log.read_text().splitlines()[-20:])
        raise Failed(f"{command[0]} failed with {process.returncode}; its output ends:\n{end}")


def progress(seconds: float, text: str, end: str = "") -> None:
    """Print a line that the next one replaces; if the output is not a terminal, an ordinary line."""
    line = f"  {seconds:5.0f} s  {' '.join(text.split())[:100]}"
    print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end=end if sys.stdout.isatty() else "\n", flush=True)


def section(title: str) -> None:
    print(f"\n== {title}", flush=True)


def stand_in(what: str) -> None:
    print(f"STAND-IN for {what}", flush=True)


def size(path: Path) -> int:
    return int(subprocess.run(["du", "-sb", path], capture_output=True, text=True, check=True).stdout.split()[0])


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def require_programs() -> None:
    """Raises Failed if a program that the proof needs is missing."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise Failed(f"not installed: {', '.join(missing)} (Debian: apt-get install buildah debootstrap iproute2)")
    if os.geteuid() != 0:
        raise Failed("debootstrap and chroot need root")


def leave(folder: Path, *, keep: bool) -> None:
    if keep:
        options = f"--root {folder}/storage --runroot {folder}/run --storage-driver vfs"
        print(f"\nkept: {folder}; its images: buildah {options} images")
        return
    # Do not cross file systems, in case something is still mounted there.
    subprocess.run(["rm", "-rf", "--one-file-system", folder])


if __name__ == "__main__":
    sys.exit(main())
