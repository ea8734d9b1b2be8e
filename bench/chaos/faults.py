# SPDX-License-Identifier: Apache-2.0
"""Faults that come from outside a process: signals, calls put into it by gdb, a container's memory, a cut cable."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from network import Network as Network
from network import ip as ip

_CGROUP = Path("/sys/fs/cgroup")
# Faults that take a while to put in (by gdb, or until memory is full): they count from then on.
SLOW = ("exception", "out of memory")
MEMORY_BYTES = 3 << 30  # of each host's container


def strike(pid: int, fault: str, *, kind: str) -> None:
    """Do to process `pid` what `fault` says.

    Parameters
    ----------
    kind
        ``"python"``, ``"native"`` or ``"jvm"``: what an exception nobody catches does there.
    """
    if fault == "exception" and kind == "python":
        os.kill(pid, signal.SIGINT)  # KeyboardInterrupt in its main thread
    elif fault == "exception" and kind == "native":
        _call(pid, "(void)abort()")  # std::terminate, as an uncaught C++ exception does
    elif fault == "exception":
        _call(pid, "(void)exit(50)")  # what Spark's handler of uncaught exceptions does
    elif fault == "exit(1)":
        _system_call(pid, _EXIT_GROUP, 1)
    elif fault == "abort":
        os.kill(pid, signal.SIGABRT)
    elif fault == "out of memory":
        _system_call(pid, _MMAP, 0, MEMORY_BYTES + (1 << 30), 3, _PRIVATE_POPULATED, 2**64 - 1, 0)
    else:
        os.kill(pid, getattr(signal, fault))


def _call(pid: int, expression: str) -> None:
    # Symbols of libc alone: those of TensorFlow take gdb so long that the process counts as stopped.
    subprocess.run(
        ["gdb", "-batch", "-nx", "-iex", "set auto-solib-add off", "-p", str(pid),
         "-ex", "sharedlibrary libc.so", "-ex", f"call {expression}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )  # fmt: skip


_ATTACH, _GETREGS, _SETREGS, _POKE, _CONT = 16, 12, 13, 4, 7  # of ptrace(2)
_WALL = 0x40000000  # of waitpid(2)
_REGISTERS = 27  # words of user_regs_struct, x86-64
_RAX, _ORIG_RAX, _RIP = 10, 15, 16
_ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9
_SYSCALL = 0x050F
_MMAP, _EXIT_GROUP = 9, 231
_PRIVATE_POPULATED = 0x8022  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE


def _system_call(pid: int, number: int, *arguments: int) -> None:
    """Let a process make a system call that it does not survive; returns when it is dead.

    gdb breaks off when it calls `_exit` in a process with threads, and is slow with large libraries.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def trace(request: int, address: Any = None, data: Any = None) -> None:
        if libc.ptrace(request, pid, address, data) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace({request}) of {pid}")

    trace(_ATTACH)
    os.waitpid(pid, _WALL)
    registers = (ctypes.c_ulonglong * _REGISTERS)()
    trace(_GETREGS, None, ctypes.addressof(registers))
    registers[_RAX] = number
    for place, value in zip(_ARGUMENTS, arguments, strict=False):
        registers[place] = value
    registers[_ORIG_RAX] = 2**64 - 1  # no system call to take up again
    # A thread that waits in the kernel has the instruction just behind it. One that is written over
    # its code would be run into by other threads as well.
    before = registers[_RIP] - 2
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(before)
        waits = memory.read(2) == _SYSCALL.to_bytes(2, "little")
    if waits:
        registers[_RIP] = before
    else:
        trace(_POKE, registers[_RIP], _SYSCALL)
    trace(_SETREGS, None, ctypes.addressof(registers))
    trace(_CONT)
    os.waitpid(pid, _WALL)  # now its parent may have it


class Container:
    """A memory cgroup (v1 or v2) in which a host's processes live, as in a container."""

    def __init__(self, name: str) -> None:
        v1 = _CGROUP / "memory"
        own = "/"
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if (controllers == "memory") if v1.is_dir() else (number == "0"):
                own = path
        base = v1 if v1.is_dir() else _CGROUP
        self.path = base / own.lstrip("/") / name
        self.path.mkdir()
        limit = "memory.limit_in_bytes" if v1.is_dir() else "memory.max"
        (self.path / limit).write_text(str(MEMORY_BYTES))

    def enter(self) -> None:
        """Put the calling process in: for `preexec_fn`."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Remove it once its processes are gone."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.1)
