"""What a thread and those that it starts make the processor do: instructions in user mode, and cycles.

Instructions vary by a few percent where time on a shared machine varies by half. Cycles hold no time in which the host ran something else,
so cycles at the nominal frequency are the CPU time of a machine of our own; a neighbour on the same core still makes them more.

The kernel counts (perf_event_open(2)). Where it may not, as in most containers, there are no counters; where it may not look at itself,
there are only those of user mode.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_ATTRIBUTE_BYTES = 64  # the first version of the structure
_TYPE_HARDWARE, _CYCLES, _INSTRUCTIONS = 0, 0, 1
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6


class HardwareCounters:
    """Counts from its creation on, for the thread that makes it and the threads started there afterwards; `read` from any thread."""

    def __init__(self) -> None:
        opened = {
            "instructions": _opened(_INSTRUCTIONS, with_kernel=False),
            "user_cycles": _opened(_CYCLES, with_kernel=False),
            "cycles": _opened(_CYCLES, with_kernel=True),
        }
        self._fds = {name: fd for name, fd in opened.items() if fd is not None}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def read(self) -> dict[str, int]:
        """`instructions` and `user_cycles` in user mode, and `cycles` of user and kernel, so far; those that the machine counts."""
        return {name: int.from_bytes(os.read(fd, 8), "little") for name, fd in self._fds.items()}


def nominal_mhz() -> float | None:
    """The frequency that the processor states, of which a virtual machine has no other."""
    found = re.search(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text())
    return float(found[1]) if found else None


def _opened(event: int, *, with_kernel: bool) -> int | None:
    """None where the kernel does not count for us."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return None
    flags = _INHERIT | _EXCLUDE_HYPERVISOR | (0 if with_kernel else _EXCLUDE_KERNEL)
    attribute = (ctypes.c_uint64 * 8)(_TYPE_HARDWARE | _ATTRIBUTE_BYTES << 32, event, 0, 0, 0, flags, 0, 0)
    this_thread, any_cpu, no_group, no_flags = 0, -1, -1, 0
    fd: int = ctypes.CDLL(None).syscall(number, attribute, this_thread, any_cpu, no_group, no_flags)
    return fd if fd >= 0 else None
