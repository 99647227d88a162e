"""Sandbox: runs a Python program that a model has written, and says whether it ran to its end.

The sandbox has these rules. It works on Linux only:

- The program has its own namespaces. It has no network, cannot see or end other processes, and sees all files
  read-only. It can write to ``/tmp``, which is empty at first, in memory, and removed afterwards.
- It cannot start a process or a thread, and cannot open a socket.
- Limits: 3 seconds of the processor, 15 seconds in all, 512 MiB of memory, 16 MiB of files, 64 open files.
- It starts without privileges, without its parent's environment variables, and with no open file except a pipe for the
  token.
- It has passed if it ran to its last statement, which a random token proves. Its output does not count, and neither
  does an early exit with status 0.

It can read the files that its user can read, but cannot send them. This protects against programs that do harm by
mistake. It does not protect against a program that attacks the kernel, or searches its own process for the token.

If a system does not allow all of this, no program is run.
"""

import json
import secrets
import subprocess
import sys
from pathlib import Path

from griffin.errors import GriffinError

PROGRAM = Path(__file__).with_name("sandbox_program.py")
CPU_SECONDS, SECONDS = 3, 15
MEMORY = 2**29
# No thread can be started, so a library must not try.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}


def require() -> None:
    """Check that a program can run here and can import Python's own modules.

    Raises:
        GriffinError: it cannot; says why.
    """
    if not passes("import statistics"):
        raise GriffinError("no sandbox for generated programs can be made here: Python cannot import its own modules")


def passes(program: str) -> bool:
    """Whether the program runs to its last statement within all limits. Each call has a new sandbox.

    Raises:
        GriffinError: there is no sandbox; says what the system refuses.
    """
    if sys.platform != "linux":
        raise GriffinError("generated programs run in a sandbox that only Linux has; leave that task out")
    token = secrets.token_hex(16)
    request = {"program": program, "token": token, "cpu_seconds": CPU_SECONDS, "memory": MEMORY}
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", PROGRAM.read_text()], input=json.dumps(request).encode(), env=ENVIRONMENT,
            capture_output=True, timeout=SECONDS, cwd="/", start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    if ended.stderr:
        reason = ended.stderr.decode(errors="replace").strip().splitlines()[-1]
        raise GriffinError(
            f"no sandbox for generated programs can be made here ({reason}); allow user namespaces, as a container's "
            "seccomp profile may not, or leave that task out"
        )
    return ended.returncode == 0 and ended.stdout == token.encode()
