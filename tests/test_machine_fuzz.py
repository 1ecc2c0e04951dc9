"""A guest may write anything to every port and register of the whole machine: nothing raises, hangs or grows.

Accesses go through the buses of an assembled machine, as the vCPU loop makes them, so that widths, splits, locks, lines
and the event loop's timers take part. Seeds are fixed; ``PYHYVE_SEED=N`` tries another one.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyhyve import Config, Machine, Status
from pyhyve.hw.chipset import hpet, ioapic
from pyhyve.hw.pci.bus import ECAM_BASE
from pyhyve.vmm.exits import SuspendReason
from tests import kernels
from tests.conftest import find_backend

SEEDS = [int(os.environ["PYHYVE_SEED"])] if "PYHYVE_SEED" in os.environ else [1, 2]
PATIENCE_S = 10.0
"""Seconds for one test's accesses, of which each takes microseconds."""
INTERESTING = (0, 1, 2, 3, 5, 6, 0x7F, 0x80, 0xA0, 0xB6, 0xFE, 0xFF, 0x3400, 0xFFFF, 0x80000000, 0xFFFFFFFF)
PCI_CONFIG = range(0xCF8, 0xD00)


@pytest.fixture(params=["kvm", "soft"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with everything that can be on it, whose vCPU does not run. Ending it has no effect on the buses."""
    with ExitStack() as stack:
        yield build(find_backend(request.param).name, stack)


def build(backend: str, stack: ExitStack, kernel: str = kernels.SPIN, **variables: object) -> Machine:
    """Each serial port is a terminal at which nobody reads."""
    terminals = {}
    for number in (1, 2, 3, 4):
        ends = os.openpty()
        for end in ends:
            stack.callback(os.close, end)
        terminals[f"lpc.com{number}.path"] = os.ttyname(ends[1])
    machine = Machine(
        Config.of(
            {
                "name": "fuzz",
                "memory.size": "16M",
                "vmm.backend": backend,
                "pci.0.0.0.device": "hostbridge",
                "pci.0.4.0.device": "amd_hostbridge",
                "pci.0.31.0.device": "lpc",
                "acpi_tables": True,
                "boot.kernel": kernels.build(kernel),
                **terminals,
                **variables,
            }
        )
    )
    return stack.enter_context(machine)


def value_of(pick: random.Random, size: int) -> int:
    value = pick.choice(INTERESTING) if pick.random() < 0.5 else pick.getrandbits(8 * size)
    return value & ((1 << 8 * size) - 1)


def plain(value: object) -> bool:
    """Whether a saved state is made of plain values only."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return type(value) in (int, str, bytes, bool, float, type(None))


class Fuzzer:
    """Random accesses to a machine's buses; checks each answer."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.pick = random.Random(seed)
        self.ports = sorted({p for r in machine.pio.ranges() for p in range(r.port, r.port + r.count)})
        self.pages = [(r.gpa, min(r.end - r.gpa, 0x1000)) for r in machine.mmio.ranges() if r.gpa != ECAM_BASE]
        self.slots = [(a.bus << 20 | a.device << 15 | a.function << 12) for a in machine.pci.functions]

    def port(self, port: int, size: int) -> None:
        if self.pick.random() < 0.5:
            self.machine.pio.write(port, size, value_of(self.pick, size))
        else:
            answer = self.machine.pio.read(port, size)
            assert answer is None or 0 <= answer < 1 << 8 * size, f"port {port:#x}"

    def memory(self, gpa: int, size: int) -> None:
        if self.pick.random() < 0.5:
            assert self.machine.mmio.write(gpa, size, value_of(self.pick, size))
        else:
            answer = self.machine.mmio.read(gpa, size)
            assert answer is not None
            assert 0 <= answer < 1 << 8 * size, f"address {gpa:#x}"

    def step(self) -> None:
        """One access, to a device more often than to nobody, or one event of the interrupt hardware."""
        kind = self.pick.random()
        if kind < 0.55:
            self.port(self.pick.choice(self.ports), self.pick.choice((1, 2, 4)))
        elif kind < 0.6:
            self.port(self.pick.randrange(0x10000), self.pick.choice((1, 2, 4)))
        elif kind < 0.8 and self.pages:
            base, length = self.pick.choice(self.pages)
            self.memory(base + self.pick.randrange(length), self.pick.choice((1, 2, 4, 8)))
        elif kind < 0.93:
            slot = self.pick.choice(self.slots) if self.pick.random() < 0.8 else self.pick.randrange(1 << 16) << 12
            self.memory(ECAM_BASE + slot + self.pick.randrange(0x110), self.pick.choice((1, 2, 4)))
        elif kind < 0.96:
            self.machine.pio.write(0xCF8, 4, 0x80000000 | self.pick.choice(self.slots) >> 4 | self.pick.randrange(256))
            self.port(self.pick.choice(PCI_CONFIG), self.pick.choice((1, 2, 4)))
        else:
            self.event()

    def event(self) -> None:
        machine = self.machine
        machine.pm.power_button()
        machine.pm.sleep_button()
        if machine.pic is not None and machine.ioapic is not None:
            assert 0 <= machine.pic.acknowledge() <= 0xFF
            machine.ioapic.eoi(self.pick.randrange(256))

    def run(self, steps: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        for _ in range(steps):
            self.step()
            assert time.monotonic() < deadline, "an access takes too long"

    def serve_timers(self, seconds: float = 0.05) -> None:
        """Let the event loop run: what the guest armed fires, and must leave room for anything else."""
        expired: list[int] = []

        def stop() -> None:
            expired.append(1)
            self.machine.loop.stop()

        timer = self.machine.loop.timer(stop)
        begin = time.monotonic()
        timer.arm_in(int(seconds * 1e9))
        while not expired:  # a device that ends the machine stops the loop too
            self.machine.loop.run()
        assert time.monotonic() - begin < seconds + 2, "timers leave the loop no time"


def test_every_port_of_the_machine_takes_every_size(machine: Machine) -> None:
    fuzzer = Fuzzer(machine, SEEDS[0])
    begin = time.monotonic()
    for size in (1, 2, 4):
        for port in range(0x10000):
            machine.pio.write(port, size, value_of(fuzzer.pick, size))
            answer = machine.pio.read(port, size)
            assert answer is None or 0 <= answer < 1 << 8 * size, f"port {port:#x}"
    assert time.monotonic() - begin < PATIENCE_S
    fuzzer.serve_timers()


def test_every_address_of_every_chip_takes_every_size(machine: Machine) -> None:
    fuzzer = Fuzzer(machine, SEEDS[0])
    begin = time.monotonic()
    for base, length in (*fuzzer.pages, *((ECAM_BASE + slot, 0x1000) for slot in fuzzer.slots)):
        for offset in range(length):
            for size in (1, 2, 4, 8):
                if offset + size <= length:
                    fuzzer.memory(base + offset, size)
    assert time.monotonic() - begin < PATIENCE_S
    fuzzer.serve_timers()


def test_an_access_across_the_end_of_a_chip_reaches_it_and_finds_ones_behind(machine: Machine) -> None:
    for r in machine.mmio.ranges():
        for size in (2, 4, 8):
            half = size // 2
            assert machine.mmio.write(r.end - half, size, (1 << 8 * size) - 1)
            answer = machine.mmio.read(r.end - half, size)
            assert answer is not None
            assert answer >> 8 * half == (1 << 8 * half) - 1, f"{r.name}, {size} bytes"
            before = machine.mmio.read(r.gpa - half, size)
            assert before is not None
            assert before & (1 << 8 * half) - 1 == (1 << 8 * half) - 1, f"{r.name}, {size} bytes"


@pytest.mark.parametrize("seed", SEEDS)
def test_nonsense_leaves_a_machine_that_can_be_saved_restored_and_reset(machine: Machine, seed: int) -> None:
    fuzzer = Fuzzer(machine, seed)
    for _ in range(3):
        fuzzer.run(2000)
        fuzzer.serve_timers()
    saved = {name: part.save() for name, part in machine.parts.items()}
    for name, state in saved.items():
        assert plain(state), f"the state of {name} is not plain: {state}"
    with ExitStack() as stack:
        other = build(machine.backend, stack)
        for name, part in other.parts.items():
            part.restore(saved[name])
        again = Fuzzer(other, seed + 1)
        again.run(1000)
        again.serve_timers()
        for part in other.parts.values():
            part.reset()
        assert other.mmio.read(hpet.BASE, 4) == hpet.CAPABILITIES & 0xFFFFFFFF
        if other.ioapic is not None:
            assert other.mmio.read(ioapic.BASE, 4) is not None


def test_nonsense_does_not_grow(machine: Machine) -> None:
    """What is alive after many accesses is what was alive after the first ones."""
    fuzzer = Fuzzer(machine, SEEDS[0])
    fuzzer.run(2000)
    gc.collect()
    before = len(gc.get_objects())
    fuzzer.run(4000)
    gc.collect()
    assert len(gc.get_objects()) - before < 200


NONSENSE = """
.equ MULTIPLIER, 0x41c64e6d
    mov $SEED, %ebx
    mov $COUNT, %ebp
next:
    imul $MULTIPLIER, %ebx
    add $12345, %ebx
    mov %ebx, %edx
    shr $13, %edx
    and $0xffff, %edx
    test $0x8, %ebx
    jz 2f
    and $0x4ff, %edx        # half of them where the chips are
2:  cmp $0x60, %edx         # the keyboard controller and port 0x92 reset
    jb 3f
    cmp $0x64, %edx
    jbe memory
3:  cmp $0x8f, %edx
    jb 4f
    cmp $0x92, %edx
    jbe memory
4:  cmp $0x401, %edx        # sleep
    jb 5f
    cmp $0x405, %edx
    jbe memory
5:  mov %ebx, %eax
    ror $7, %eax
    test $0x10, %ebx
    jz reads
    test $0x20, %ebx
    jz 6f
    out %al, %dx
    jmp memory
6:  test $0x40, %ebx
    jz 7f
    out %ax, %dx
    jmp memory
7:  cmp $0xcf6, %edx        # a wide write before 0xcf9 reaches it
    jb 8f
    cmp $0xcf9, %edx
    jbe memory
8:  out %eax, %dx
    jmp memory
reads:
    test $0x20, %ebx
    jz 9f
    in %dx, %al
    jmp memory
9:  in %dx, %eax
memory:
    mov %ebx, %esi
    shr $9, %esi
    and $0x3f8, %esi
    test $0x80, %ebx
    jz 10f
    mov %ebx, 0xfed00000(%esi)
    movb %bl, 0xfed00003(%esi)
10: orw %bx, 0xfed00000(%esi)
    dec %ebp
    jnz next
    power_off
"""


@pytest.mark.parametrize("backend", ["kvm", "soft"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_guest_that_talks_nonsense_to_its_ports_goes_on_to_its_end(
    backend: str, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real accesses, with what a backend answers itself and with string and read-modify-write forms among them."""
    with ExitStack() as stack:
        count = 20000 if backend == "soft" else 5000
        kernel = f".equ SEED, {seed * 0x9E3779B9 & 0xFFFFFFFF:#x}\n.equ COUNT, {count}\n{NONSENSE}"
        machine = build(find_backend(backend).name, stack, kernel)
        machine.start()
        assert machine.wait() == 1, machine.message
        assert machine.stats()["vcpu0.inout"] > count // 10
    assert capfd.readouterr().err == ""


APICS = """
.equ MULTIPLIER, 0x41c64e6d
    mov $SEED, %ebx
    mov $3000, %ebp
next:
    imul $MULTIPLIER, %ebx
    add $12345, %ebx
    mov %ebx, %esi
    shr $9, %esi
    and $0xffc, %esi
    mov %ebx, %eax
    ror $11, %eax
    test $0x100, %ebx
    jz 1f
    and $0xff0, %esi        # half of them where registers are
1:  test $0x200, %ebx
    jz 2f
    mov 0xfee00000(%esi), %edx
    jmp 3f
2:  mov %eax, 0xfee00000(%esi)
3:  test $0x400, %ebx
    jz 4f
    mov %ebx, %eax
    shr $17, %eax
    and $0x3f, %eax
    mov %eax, 0xfec00000
    ror $5, %eax
    xor %ebx, %eax
    mov %eax, 0xfec00010
    mov 0xfec00010, %edx
    mov %ebx, 0xfec00040
4:  dec %ebp
    jnz next
    power_off
"""


@pytest.mark.parametrize("backend", ["kvm", "soft"])
@pytest.mark.parametrize("seed", [*SEEDS, *(seed + 100 for seed in SEEDS), *(seed + 200 for seed in SEEDS)])
def test_a_guest_that_talks_nonsense_to_its_interrupt_controllers_comes_to_an_end(backend: str, seed: int) -> None:
    """It may bring down itself (by an NMI without a handler, or INIT), but not the machine around it."""
    with ExitStack() as stack:
        kernel = f".equ SEED, {seed * 0x9E3779B9 & 0xFFFFFFFF:#x}\n{APICS}"
        machine = build(find_backend(backend).name, stack, kernel, **{"x86.x2apic": False})
        machine.loop.timer(lambda: machine.vcpus.end(99, "it came to no end")).arm_in(int(PATIENCE_S * 1e9))
        machine.start()
        assert machine.wait() in (Status.RESET, Status.POWER_OFF, Status.TRIPLE_FAULT), machine.message


def test_a_guest_that_asks_for_every_end_at_once_gets_the_first(machine: Machine) -> None:
    machine.pio.write(0x404, 2, 0x3400)
    machine.pio.write(0xCF9, 1, 6)
    machine.power(SuspendReason.HALT)
    assert machine.status == 1
