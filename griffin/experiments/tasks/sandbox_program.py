"""The inside of the sandbox: a program that runs another one, and prints a token if that one ran to its end.

``sandbox`` starts it by ``python -I -c``; it imports nothing of this project. Standard input is JSON with the fields
``program``, ``token``, ``cpu_seconds`` and ``memory``. Standard output is the token, or nothing. Standard error says in
one line why there is no sandbox. The program's own output is dropped.

Python 3.11 lacks the system calls that this needs, so libc's are called.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
# linux/sched.h: the namespaces of users, mounts, processes, the network and IPC.
NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000
# linux/mount.h. The call has this number on every architecture.
MOUNT_SETATTR, HERE, RECURSIVE = 442, -100, 0x8000
READ_ONLY, NO_SETUID, NO_DEVICES, PRIVATE = 1, 2, 4, 1 << 18
# linux/prctl.h
PARENT_DEATH_SIGNAL, SECCOMP, NO_NEW_PRIVILEGES = 1, 22, 38
# linux/capability.h
CAPABILITIES = 0x20080522
# By machine: its name for the kernel, and the numbers of clone, clone3, socket and, where there are, fork and vfork.
REFUSED = {"x86_64": (0xC000003E, (56, 435, 41, 57, 58)), "aarch64": (0xC00000B7, (220, 435, 198))}
# The only place where files can be written. They are in memory.
ROOM, ROOM_BYTES = "/tmp", 2**24


def main() -> None:
    request = json.load(sys.stdin)
    # Opened now: devices will be useless.
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        _enclose()
        if child := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
        _call("prctl", PARENT_DEATH_SIGNAL, signal.SIGKILL)
        _furnish()
        _limit(request["cpu_seconds"], request["memory"])
        _refuse_calls()
    except (OSError, ValueError) as error:
        # os._exit, because a child must not run its parent's exit handlers.
        os.write(2, str(error).encode())
        os._exit(2)
    _run(request, _leave_standard_files(nothing))


def _enclose() -> None:
    """Enter new namespaces. Process numbers start again at the next fork."""
    user, group = os.getuid(), os.getgid()
    _call("prctl", PARENT_DEATH_SIGNAL, signal.SIGKILL)
    _call("unshare", NAMESPACES)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _furnish() -> None:
    """Make all files read-only and devices useless, except for an empty folder."""
    attributes = struct.pack("QQQQ", READ_ONLY | NO_SETUID | NO_DEVICES, 0, PRIVATE, 0)
    _call("syscall", MOUNT_SETATTR, HERE, b"/", RECURSIVE, attributes, len(attributes))
    options = f"size={ROOM_BYTES},nr_inodes=1000,mode=700".encode()
    _call("mount", b"room", ROOM.encode(), b"tmpfs", NO_SETUID | NO_DEVICES, options)
    os.chdir(ROOM)


def _limit(cpu_seconds: int, memory: int) -> None:
    """Limit what this process can use. Hard limits: it cannot raise them."""
    for kind, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, ROOM_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _refuse_calls() -> None:
    """Give up the privileges in these namespaces. Further processes, threads and sockets fail with EPERM from now on.

    A limit on the number of processes is not enough, because it does not hold for root.
    """
    machine = platform.machine()
    if machine not in REFUSED:
        raise ValueError(f"the system calls of '{machine}' are not known here")
    architecture, numbers = REFUSED[machine]
    # linux/filter.h: load the architecture; end the process if it is another one; load the call's number; ...
    rules = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
    # ... if it is one of these, go on to the last rule, which refuses it; allow all others.
    rules += [(0x15, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    rules += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    _call("capset", struct.pack("Ii", CAPABILITIES, 0), bytes(24))
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", SECCOMP, 2, struct.pack("HP", len(rules), ctypes.addressof(packed)))


def _call(name: str, *arguments: int | bytes) -> None:
    """
    Raises:
        OSError: the call has failed; names it.
    """
    if getattr(LIBC, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _leave_standard_files(nothing: int) -> int:
    """Put this file in place of the standard files. Returns a copy of standard output."""
    out = os.dup(1)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)
    return out


def _run(request: dict[str, Any], out: int) -> None:
    """Run the program. Only a program that runs its last statement reaches the token."""
    try:
        exec(compile(request["program"], "program", "exec"), {})
    except BaseException:
        os._exit(1)
    os.write(out, request["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
