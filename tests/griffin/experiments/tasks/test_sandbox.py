"""What a generated program may do, and when it counts as passed."""

import os
import socket
import time
from pathlib import Path

import pytest

from griffin.errors import GriffinError
from griffin.experiments.tasks import sandbox
from griffin.experiments.tasks.sandbox import passes


@pytest.mark.parametrize(
    "program",
    [
        "import json, math, re, typing",
        "print('x' * 10**6)",
        "open('a', 'w').write('b')\nimport os\nassert os.listdir('.') == ['a'] and os.getcwd() == '/tmp'",
        "import asyncio\nasyncio.run(asyncio.sleep(0))",
    ],
)
def test_what_passes(program: str, sandboxed: None) -> None:
    """Programs that only compute, or write into the empty folder where they start."""
    assert passes(program)


@pytest.mark.parametrize(
    "program",
    [
        "assert False", "print('passed'); raise SystemExit(0)", "import sys; sys.exit(0)", "import os; os._exit(0)",
        "def f(:", "\0", "x = '\ud800'", "import ctypes; ctypes.string_at(0)",
        "import os; os.execv('/bin/true', ['x'])", "def f(): return f()\nf()",
    ],
)  # fmt: skip
def test_what_does_not_pass(program: str, sandboxed: None) -> None:
    """Programs that end before the last statement, with any status."""
    assert not passes(program)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("import os; os.fork()", "PermissionError"),
        ("import os\n    while True: os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "OSError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import urllib.request; urllib.request.urlopen('http://localhost')", "OSError"),
        ("bytearray(2**30)", "MemoryError"),
        ("with open('large', 'wb') as file: file.write(bytes(2**24 + 1))", "OSError"),
        ("for number in range(2000): open(str(number), 'w').close()", "OSError"),
        ("files = [open(str(number), 'w') for number in range(100)]", "OSError"),
        ("import os; os.kill(2, 9)", "ProcessLookupError"),
        ("open('/dev/null')", "PermissionError"),
        ("open('/proc/self/oom_score_adj', 'w').write('0')", "OSError"),
        ("import ctypes; assert not ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None)", "AssertionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))", "ValueError"),
    ],
)
def test_what_is_refused(statement: str, error: str, sandboxed: None) -> None:
    """Processes, threads, sockets, too much memory, too many files, devices, privileges, other processes."""
    assert passes(f"try:\n    {statement}\nexcept {error}: pass\nelse: raise SystemExit")


def test_a_server_cannot_be_reached(sandboxed: None) -> None:
    """A program cannot connect to a server on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = server.getsockname()
        assert not passes(f"import socket; socket.create_connection({address!r}, 1)")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_files_outside_stay_as_they_are(tmp_path: Path, sandboxed: None) -> None:
    """Also files that the user may write. The program's own folder is removed afterwards."""
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for program in (
        f"open({str(kept)!r}, 'w').write('x')", f"import os; os.remove({str(kept)!r})",
        f"open({str(tmp_path / 'new')!r}, 'w')", "open('/etc/new', 'w')", "open('/dev/shm/new', 'w')",
    ):  # fmt: skip
        assert not passes(program)
    passes("open('/tmp/griffin-left-behind', 'w')")

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"
    assert not any(Path(path).exists() for path in ("/etc/new", "/dev/shm/new", "/tmp/griffin-left-behind"))


def test_nothing_is_inherited(sandboxed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, no other process, and no open file except the pipe for the token."""
    monkeypatch.setenv("GRIFFIN_API_KEY", "secret")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    program = (
        "import os\n"
        "assert 'GRIFFIN_API_KEY' not in os.environ and os.getpid() == 1\n"
        "there = []\n"
        "for number in range(3, 64):\n"
        "    try: there.append(os.fstat(number))\n"
        "    except OSError: pass\n"
        "assert len(there) == 1"
    )
    try:
        assert passes(program)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)"])
def test_time_is_limited(program: str, sandboxed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time and total time have their own limits: each stops what the other would let run for minutes."""
    kind, most = ("CPU_SECONDS", 1) if "while" in program else ("SECONDS", 1)
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 300)
    monkeypatch.setattr(sandbox, "SECONDS", 300)
    monkeypatch.setattr(sandbox, kind, most)
    began = time.monotonic()

    assert not passes(program)
    assert time.monotonic() - began < 300


def test_a_system_without_a_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line says what the system refuses, and no program runs."""
    refusing = tmp_path / "refusing.py"
    refusing.write_text(
        sandbox.PROGRAM.read_text().replace('_call("unshare", NAMESPACES)', '_call("unshare", -1 & 0x7FFFFFFF)')
    )
    monkeypatch.setattr(sandbox, "PROGRAM", refusing)

    with pytest.raises(GriffinError, match=r"no sandbox .* \(.*unshare: .*\); allow user namespaces") as refused:
        sandbox.require()
    assert len(str(refused.value).splitlines()) == 1
