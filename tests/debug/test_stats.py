"""The machine's counters: what real guests leave in them, and that every name has a meaning."""

from __future__ import annotations

import os
import time
from collections import defaultdict

import pytest

from pyhyve import Machine
from pyhyve.debug import stats as room
from pyhyve.debug.stats import describe, owners, rates
from tests import kernels
from tests.conftest import find_backend
from tests.test_machine import config_for

# Ten writes of a word and five reads of a byte at ports of a device, one dword to a device in memory.
BUSY = """
    mov $0x510, %dx
    mov $10, %ecx
1:  out %ax, %dx
    loop 1b
    mov $5, %ecx
1:  in %dx, %al
    loop 1b
    mov $0xD0000000, %ebx
    mov %eax, (%ebx)
    power_off
"""


# Waits for an interrupt; none comes.
IDLE = "sti\n"


class Register:
    """Keeps a value."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


@pytest.fixture
def ended(backend: str) -> dict[str, float]:
    """The counters of a guest that has come to its end."""
    with Machine(config_for(BUSY, backend)) as machine:
        machine.pio.register(0x510, 4, Register(), "test register")
        machine.mmio.register(0xD0000000, 4096, Register(), "test memory")
        machine.start()
        machine.wait()
        return machine.stats()


def test_accesses_are_counted_by_device_and_size(ended: dict[str, float]) -> None:
    assert ended["device.test-register.writes"] == 10
    assert ended["device.test-register.bytes-written"] == 20
    assert ended["device.test-register.reads"] == 5
    assert ended["device.test-register.bytes-read"] == 5
    assert ended["device.test-memory.writes"] == 1
    assert ended["device.test-memory.bytes-written"] == 4
    assert ended["device.rtc.reads"] == 0


def test_exits_are_counted_by_kind(ended: dict[str, float]) -> None:
    assert ended["vcpu0.inout"] >= 15
    assert ended["vcpu0.inst-emul"] == 1
    assert {f"vcpu0.{name}" for name in (*room.EXITS, *room.MORE, *room.TIMES)} <= set(ended)
    assert ended["vcpu0.exits"] >= 1


def test_the_time_of_a_vcpu_is_split_into_parts(ended: dict[str, float]) -> None:
    parts = [ended[f"vcpu0.{name}"] for name in room.TIMES]
    assert all(part >= 0 for part in parts)
    assert sum(parts) > 0
    assert ended["vm.uptime-ns"] > 0


def test_the_clock_of_a_machine_that_has_ended_stands_still(backend: str) -> None:
    with Machine(config_for(BUSY, backend)) as machine:
        machine.start()
        machine.wait()
        assert machine.stats() == machine.stats()


def test_every_name_has_a_meaning(ended: dict[str, float]) -> None:
    groups = defaultdict(list)
    for name in ended:
        groups[describe(name).group].append(name)
    assert set(groups) <= {"exits", "time", "vcpu", "vm", "state", "device", "char", "irq"}
    assert len(groups["exits"]) == len(room.EXITS)
    assert all(describe(name).help for name in ended)
    assert not any(c.isspace() or c == "_" for name in ended for c in name)


def test_the_engines_counters_are_all_documented() -> None:
    with Machine(config_for(BUSY, find_backend("soft").name)) as machine:
        unknown = [name for name in machine.stats() if describe(name).help == "counted by the backend"]
    assert unknown == []


def test_a_machine_that_was_not_started_has_counters_of_zero(backend: str) -> None:
    with Machine(config_for(BUSY, backend)) as machine:
        stats = machine.stats()
    assert stats["vm.uptime-ns"] == stats["vcpu0.inout"] == stats["vcpu0.halted-ns"] == 0


def test_a_busy_vcpu_is_not_halted_and_a_sleeping_one_is(backend: str) -> None:
    shares = {}
    for kernel in (kernels.SPIN, IDLE):
        with Machine(config_for(kernel, backend, **{"x86.vmexit_on_hlt": True})) as machine:
            machine.start()
            machine.loop.timer(machine.power_off).arm_in(200_000_000)
            machine.wait()
            stats = machine.stats()
        shares[kernel] = stats["vcpu0.halted-ns"] / sum(stats[f"vcpu0.{name}"] for name in room.TIMES)
    assert shares[IDLE] > 0.8
    assert shares[kernels.SPIN] < shares[IDLE]


@pytest.mark.parametrize("hlt_exit", [True, False])
def test_a_sleeping_machine_uses_no_host_cpu(backend: str, hlt_exit: bool) -> None:
    used: list[int] = []
    with Machine(config_for(IDLE, backend, **{"x86.vmexit_on_hlt": hlt_exit})) as machine:
        machine.start()
        for second in (0.3, 1.3):
            machine.loop.timer(lambda: used.append(time.process_time_ns())).arm_in(int(second * 1e9))
        machine.loop.timer(machine.power_off).arm_in(1_310_000_000)
        machine.wait()
    assert used[1] - used[0] <= 20_000_000  # 2 % of the second between


def test_bytes_of_a_serial_port_are_counted_both_ways(backend: str) -> None:
    ours, theirs = os.openpty()
    try:
        with Machine(config_for(kernels.ECHO, backend, **{"lpc.com1.path": os.ttyname(theirs)})) as machine:
            machine.start()
            os.write(ours, b"abq")
            machine.wait()
            stats = machine.stats()
    finally:
        os.close(ours)
        os.close(theirs)
    assert stats["char.com1.bytes-in"] == 3
    assert stats["char.com1.bytes-out"] >= len(b"ready\n.a.b.q")
    assert stats["device.com1.writes"] >= stats["char.com1.bytes-out"]


def test_the_debug_port_is_counted_too(backend: str) -> None:
    kernel = "mov $0x224, %dx\n mov $'x', %eax\n out %eax, %dx\n power_off\n"
    with Machine(config_for(kernel, backend, dbgport="127.0.0.1:0")) as machine:
        machine.start()
        machine.wait()
        stats = machine.stats()
    assert stats["device.bvmdbg.writes"] == 1
    assert stats["char.bvmdbg.bytes-in"] == 0  # nobody is connected


def test_lines_and_messages_are_counted() -> None:
    with Machine(config_for(kernels.SPIN, find_backend("soft").name)) as machine:
        line = machine.irq.line(5, "test")
        line.pulse()
        line.pulse()
        line.raise_()
        other = machine.irq.line(5, "another")
        other.raise_()
        machine.msi.send(0xFEE00000, 0x40)
        stats = machine.stats()
    assert stats["irq.5.raised"] == 3
    assert stats["msi.sent"] == 1


def test_rates_are_those_of_the_machines_own_clock() -> None:
    before = {"vm.uptime-ns": 1e9, "vcpu0.inout": 10, "vcpu0.halted-ns": 0, "vm.code-bytes": 7}
    after = {"vm.uptime-ns": 3e9, "vcpu0.inout": 110, "vcpu0.halted-ns": 1e9, "vm.code-bytes": 9, "device.new.reads": 4}
    assert rates(before, after) == {"vcpu0.inout": 50, "vcpu0.halted-ns": 0.5, "device.new.reads": 2}
    assert rates(after, after) == {}


def test_owners_are_sorted_by_number_and_name() -> None:
    names = ["vcpu10.hlt", "vcpu2.hlt", "device.rtc.reads", "device.pci-0:3.0.reads", "irq.4.raised", "vm.uptime-ns"]
    assert owners(names, "vcpu") == ["2", "10"]
    assert owners(names, "device") == ["pci-0:3.0", "rtc"]
    assert owners(names, "irq") == ["4"]
