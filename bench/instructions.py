"""Instructions that a thread executes in user mode: they vary by a few percent where time on a shared machine varies by half.

The kernel counts them (perf_event_open(2)). Where it may not, as in most containers, there is no counter.
"""

from __future__ import annotations

import ctypes
import os
import platform

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_ATTRIBUTE_BYTES = 64  # the first version of the structure
_TYPE_HARDWARE, _INSTRUCTIONS = 0, 1
_EXCLUDE_KERNEL_AND_HYPERVISOR = 1 << 5 | 1 << 6


class InstructionCounter:
    """Counts those of the thread that makes it; `read` from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of_this_thread(cls) -> InstructionCounter | None:
        """None where the kernel does not count for us."""
        number = _PERF_EVENT_OPEN.get(platform.machine())
        if number is None or platform.system() != "Linux":
            return None
        words = [_TYPE_HARDWARE | _ATTRIBUTE_BYTES << 32, _INSTRUCTIONS, 0, 0, 0, _EXCLUDE_KERNEL_AND_HYPERVISOR, 0, 0]
        attribute = (ctypes.c_uint64 * 8)(*words)  # type and size, config, period, sample and read formats, flags, …
        this_thread, any_cpu, no_group, no_flags = 0, -1, -1, 0
        fd = ctypes.CDLL(None).syscall(number, attribute, this_thread, any_cpu, no_group, no_flags)
        return cls(fd) if fd >= 0 else None

    def read(self) -> int:
        return int.from_bytes(os.read(self._fd, 8), "little")
