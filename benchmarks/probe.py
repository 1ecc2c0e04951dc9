"""A machine of ours in a process of its own, built by the public interface, that tells about itself.

``python -m benchmarks.probe boot KERNEL INITRD MEMORY_MB ASK_FD TELL_FD [NAME=VALUE...]`` boots a Linux on standard
input and output, in a machine with these variables; when a byte comes on ASK_FD, it writes what it knows to TELL_FD as
JSON: the machine's counters, when it started, and the CPU time of the vCPU's thread, in seconds.

``python -m benchmarks.probe exits KERNEL COUNT`` runs a tiny guest of ``exits`` next to a plain device and prints the
nanoseconds an exit.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence

from pyhyve import Config, Machine

SCRATCH_PORT, STOPWATCH_PORT = 0x500, 0x508
SCRATCH_GPA = 0xD0000000


class Scratch:
    """A register that keeps what is written: as little as a device can do."""

    def __init__(self) -> None:
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


class Stopwatch:
    """Keeps when it was written to."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.times.append(time.perf_counter_ns())


def configure(kernel: str, memory_mb: str, **more: str) -> Config:
    """The machine of the other benchmarks, as a configuration."""
    values = {
        "name": "bench",
        "memory.size": f"{memory_mb}M",
        "vmm.backend": "soft",
        "acpi_tables": "true",
        "x86.vmexit_on_hlt": "true",
        "pci.0.0.0.device": "hostbridge",
        "pci.0.31.0.device": "lpc",
        "boot.kernel": kernel,
    }
    return Config.of({**values, **more})


def probe_boot(kernel: str, initrd: str, memory_mb: str, ask: str, tell: str, *variables: str) -> None:
    """Boot, and answer once."""
    more = {"boot.initrd": initrd, "boot.cmdline": "console=ttyS0", "lpc.com1.path": "stdio"}
    more.update((name, value) for name, _, value in (text.partition("=") for text in variables))
    with Machine(configure(kernel, memory_mb, **more)) as machine:

        def answer() -> None:
            os.read(int(ask), 1)
            now = time.monotonic()
            clock = time.pthread_getcpuclockid(vcpu.ident or 0)
            times = {"started": started, "now": now, "cpu": time.clock_gettime(clock)}
            os.write(int(tell), json.dumps({**times, **machine.stats()}).encode())

        started = time.monotonic()
        machine.start()
        vcpu = next(thread for thread in threading.enumerate() if thread.name == "vcpu 0")
        threading.Thread(target=answer, daemon=True).start()
        machine.wait()


def probe_exits(kernel: str, count: str) -> None:
    """Run the guest, which touches the stopwatch before and after ``count`` accesses to the scratch register."""
    stopwatch = Stopwatch()
    with Machine(configure(kernel, "16")) as machine:
        machine.pio.register(SCRATCH_PORT, 4, Scratch(), "scratch")
        machine.pio.register(STOPWATCH_PORT, 1, stopwatch, "stopwatch")
        machine.mmio.register(SCRATCH_GPA, 4096, Scratch(), "scratch")
        machine.start()
        machine.wait()
    start, end = stopwatch.times
    print((end - start) / int(count))


def main(argv: Sequence[str]) -> None:
    if argv[0] == "boot":
        probe_boot(*argv[1:])
    else:
        probe_exits(*argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
