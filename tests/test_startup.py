"""Start-up, in bhyve's order: which failure wins when two things are wrong, and what is done before what."""

from __future__ import annotations

import itertools
import threading

import pytest

import pyhyve.machine
from pyhyve import Config, Machine
from pyhyve.errors import PyhyveError
from pyhyve.vmm.api import Capability, Chip, Hypervisor, Probe, VirtualMachine
from pyhyve.vmm.exits import Suspended, SuspendReason
from pyhyve.vmm.registers import Reg
from tests import kernels
from tests.conftest import find_backend
from tests.fakecpu import ScriptedCpu
from tests.vmm.test_cpuid import INTEL, host

# What can go wrong, in the order in which bhyve comes across it; but memory comes before the capabilities, since a
# backend makes its machine around the memory and knows its capabilities then.
OPEN = ({"vmm.backend": "xen"}, "xen")
CPUS = ({"cpus": "17"}, "17 vCPUs requested but only")
MEMORY = ({"memory.size": "900T"}, "guest memory requested, but this host has")
PAUSE = ({"x86.vmexit_on_pause": True}, "VM exit on PAUSE")
PCI = ({"pci.0.3.0.device": "teapot"}, "unknown device 'teapot'")
SERIAL = ({"lpc.com1.path": "carrier-pigeon"}, "carrier-pigeon")
TABLES = ({"system.sku": "x" * 6000}, "SMBIOS strings are too long")
GUEST = ({"boot.kernel": "/nowhere/vmlinuz"}, "/nowhere/vmlinuz")
FAILURES = [OPEN, CPUS, MEMORY, PAUSE, PCI, SERIAL, TABLES, GUEST]


def config_for(**variables) -> Config:
    return Config.of(
        {
            "name": "test",
            "memory.size": "16M",
            "pci.0.0.0.device": "hostbridge",
            "pci.0.31.0.device": "lpc",
            "acpi_tables": True,
            "boot.kernel": kernels.build(kernels.POWER_OFF),
            **variables,
        }
    )


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(FAILURES, 2)), ids=lambda failure: next(iter(failure[0]))
)
def test_of_two_failures_the_earlier_in_bhyves_order_is_told(first, second):
    variables = {"vmm.backend": find_backend("kvm").name, **second[0], **first[0]}
    with pytest.raises(PyhyveError) as caught:
        Machine(config_for(**variables))
    assert first[1] in str(caught.value)


class Log(list):
    """What was asked of the backend, in order."""

    def position(self, *wanted) -> int:
        return next(at for at, call in enumerate(self) if call[: len(wanted)] == wanted)

    def last(self, *wanted) -> int:
        return max(at for at, call in enumerate(self) if call[: len(wanted)] == wanted)


class LoggedCpu(ScriptedCpu):
    def __init__(self, index, log, script):
        super().__init__(index, script)
        self.log = log

    def run(self):
        self.log.append(("run", self.index, threading.current_thread().name))
        return super().run()

    def set_capability(self, cap, on):
        self.log.append(("capability", self.index, cap, on))
        super().set_capability(cap, on)

    def set_apic_mode(self, mode):
        self.log.append(("apic", self.index, mode))
        super().set_apic_mode(mode)

    def set_registers(self, values):
        self.log.append(("registers", self.index))
        super().set_registers(values)

    def set_segment(self, name, value):
        self.segments[name] = value


class LoggedVm(VirtualMachine):
    """A backend with every chip and capability, whose vCPU 0 powers off at once."""

    provides = frozenset(Chip)

    def __init__(self, log):
        self.log = log

    def capability(self, cap):
        return True

    def memory_written(self, gpa, length):
        self.log.append(("memory", gpa))

    def create_vcpu(self, index):
        return LoggedCpu(index, self.log, [Suspended(SuspendReason.POWER_OFF)] if index == 0 else [])

    def set_cpuid(self, entries):
        self.log.append(("cpuid",))

    def supported_cpuid(self):
        return host(INTEL)

    def close(self):
        self.log.append(("close",))

    def map_memory(self, gpa, size, offset, *, readonly=False): ...
    def unmap_memory(self, gpa): ...
    def set_irq(self, gsi, level): ...
    def make_level(self, irq): ...
    def set_extint(self, level): ...
    def send_msi(self, address, data): ...
    def add_doorbell(self, address, size, fd, *, pio=False, match=None): ...
    def remove_doorbell(self, address, size, fd, *, pio=False, match=None): ...


class LoggedHypervisor(Hypervisor):
    name = "logged"

    def __init__(self, log):
        self.log = log

    def probe(self):
        return Probe(usable=True, accelerated=True, reason="a test")

    def create(self, name, memory, cpus):
        self.log.append(("create", cpus))
        return LoggedVm(self.log)


@pytest.fixture
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr(pyhyve.machine, "choose", lambda name: (LoggedHypervisor(log), "a test"))
    return log


def run(**variables):
    with Machine(config_for(**variables)) as machine:
        machine.start()
        assert machine.wait() == 1


def test_capabilities_come_before_tables_tables_before_the_loader_and_the_guest_last(log):
    run(cpus="2")
    assert log[0] == ("create", 2)
    tables = [log.position("memory", 0xF0000), log.position("memory", 0xF1000), log.position("memory", 0xF2400)]
    assert log.last("capability") < tables[0]
    assert log.last("apic") < log.position("cpuid") < tables[0]
    assert tables == sorted(tables), "MP table, SMBIOS, ACPI"
    kernel = log.position("memory", 0x100000)
    assert tables[-1] < kernel < log.position("registers", 0) < log.position("run")
    assert not any(call[:2] == ("registers", 1) for call in log), "the other CPU waits in its reset state"
    assert log[-1] == ("close",)


def test_without_acpi_there_is_the_mp_table_all_the_same(log):
    run(acpi_tables=False)
    assert log.position("memory", 0xF0000)
    assert ("memory", 0xF2400) not in log


@pytest.mark.parametrize("options", [{}, {"x86.vmexit_on_hlt": True}, {"x86.vmexit_on_pause": True}])
@pytest.mark.parametrize("x2apic", [False, True])
def test_every_cpu_gets_the_boot_cpus_capabilities(log, options, x2apic):
    run(cpus="4", **{"x86.x2apic": x2apic}, **options)
    for index in range(4):
        given = {call[2]: call[3] for call in log if call[:2] == ("capability", index)}
        assert given == {
            Capability.HLT_EXIT: "x86.vmexit_on_hlt" in options,
            Capability.PAUSE_EXIT: "x86.vmexit_on_pause" in options,
            Capability.ENABLE_INVPCID: True,
        }
        assert [call[2] for call in log if call[:2] == ("apic", index)] == ["x2apic" if x2apic else "xapic"]


def test_each_vcpu_runs_in_a_thread_of_its_name(log):
    run(cpus="3")
    threads = {call[1]: call[2] for call in log if call[0] == "run"}
    assert threads[0] == "vcpu 0"
    assert all(name == f"vcpu {index}" for index, name in threads.items())


@pytest.mark.parametrize("backend", ["kvm", "soft"])
def test_the_boot_cpu_starts_where_the_loader_left_it(backend):
    with Machine(config_for(**{"vmm.backend": find_backend(backend).name})) as machine:
        cpu = machine.vcpus.vcpus[0].cpu
        entry = cpu.get_registers((Reg.RIP,))[Reg.RIP]
        assert entry == 0x10000C, "behind the multiboot header"
        machine.start()
        assert machine.wait() == 1


def test_the_event_loop_runs_in_the_thread_that_waits():
    where = []
    variables = {"vmm.backend": find_backend("kvm").name, "boot.kernel": kernels.build(kernels.SPIN)}
    with Machine(config_for(**variables)) as machine:

        def fire() -> None:
            where.append(threading.current_thread())
            machine.power_off()

        machine.loop.timer(fire).arm_in(0)
        machine.start()
        machine.wait()
    assert where == [threading.current_thread()]
