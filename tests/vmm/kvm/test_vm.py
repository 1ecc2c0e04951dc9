"""What is particular to the KVM backend: its own threads, counters, application processors and lifetimes."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest

from pyhyve.errors import BackendError
from pyhyve.memory import GuestMemory
from pyhyve.vmm import cpuid
from pyhyve.vmm.api import ApicMode, Capability
from pyhyve.vmm.exits import Bogus, Exit, InOut, InstEmulFailed
from pyhyve.vmm.kvm import KvmHypervisor
from pyhyve.vmm.kvm.vm import KvmMachine
from pyhyve.vmm.registers import Access, Reg, Segment, SegmentName
from tests.guests import DATA, assemble, boot_guest, find_backend

ORG = 0x10000


@pytest.fixture
def kvm() -> KvmHypervisor:
    backend = find_backend("kvm")
    assert isinstance(backend, KvmHypervisor)
    return backend


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(4 << 20)
    yield memory
    memory.close()


@pytest.fixture
def machine(kvm: KvmHypervisor, memory: GuestMemory) -> Iterator[KvmMachine]:
    machine = kvm.create("vm", memory, 2)
    yield machine
    machine.close()


def test_closing_gives_every_descriptor_back_and_works_twice(kvm: KvmHypervisor, memory: GuestMemory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    machine = kvm.create("vm", memory, 2)
    for index in range(2):
        machine.create_vcpu(index).stats()
    machine.stats()
    machine.close()
    machine.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_high_memory_is_mapped_above_4_gib(kvm: KvmHypervisor) -> None:
    memory = GuestMemory(8 << 20, low_limit=4 << 20)
    machine = kvm.create("vm", memory, 1)
    with pytest.raises(BackendError, match="File exists"):
        machine.map_memory(4 << 30, 4096, 0)
    machine.unmap_memory(4 << 30)
    machine.map_memory(4 << 30, 4096, 0)
    machine.close()
    memory.close()


@pytest.mark.parametrize("index", [-1, 2])
def test_a_vcpu_outside_the_machine_is_refused(machine: KvmMachine, index: int) -> None:
    with pytest.raises(BackendError, match="no vCPU"):
        machine.create_vcpu(index)


def test_a_vcpu_is_made_once(machine: KvmMachine) -> None:
    machine.create_vcpu(0)
    with pytest.raises(BackendError, match="exists already"):
        machine.create_vcpu(0)


def test_the_cpuid_table_reaches_vcpus_made_before_and_after(machine: KvmMachine) -> None:
    first = machine.create_vcpu(0)
    first.set_apic_mode(ApicMode.X2APIC)
    machine.set_cpuid(cpuid.shape(machine.supported_cpuid(), cpuid.Topology(cores=2)))
    second = machine.create_vcpu(1)
    second.set_apic_mode(ApicMode.X2APIC)
    base = 0x1B
    assert [vcpu.get_msr(base) & 0xD00 for vcpu in (first, second)] == [0xD00, 0xC00]
    first.set_apic_mode(ApicMode.XAPIC)
    assert first.get_msr(base) & 0xC00 == 0x800


def test_kvms_own_leaves_are_not_offered(machine: KvmMachine) -> None:
    leaves = {entry.leaf for entry in machine.supported_cpuid()}
    assert {0, 1, 0x80000000} <= leaves
    assert not any(0x40000000 <= leaf < 0x80000000 for leaf in leaves)


def test_interrupt_lines_have_numbers_from_0_to_23(machine: KvmMachine) -> None:
    machine.create_vcpu(0)
    for gsi in range(24):
        machine.set_irq(gsi, True)
        machine.set_irq(gsi, False)
    for gsi in (-1, 24):
        with pytest.raises(BackendError, match="no interrupt line"):
            machine.set_irq(gsi, True)


def test_the_pit_reaches_ioapic_pin_2(kvm: KvmHypervisor) -> None:
    guest = boot_guest(kvm, assemble("pit", ORG))
    assert guest.until_end() == []
    assert guest.word(0) == 0x52
    guest.close()


def test_only_kvms_own_pic_drives_lint0(machine: KvmMachine) -> None:
    with pytest.raises(BackendError, match="its own PIC"):
        machine.set_extint(True)


def test_hlt_and_pause_never_leave_kvm(machine: KvmMachine) -> None:
    assert not machine.capability(Capability.HLT_EXIT)
    assert not machine.capability(Capability.PAUSE_EXIT)


def test_lost_messages_are_counted(machine: KvmMachine) -> None:
    machine.create_vcpu(0)
    machine.send_msi(0xFEE00000 | 9 << 12, 0x41)
    assert machine.stats()["msi_lost"] == 1


def test_a_doorbell_has_the_width_of_an_access(machine: KvmMachine) -> None:
    bell = os.eventfd(0)
    with pytest.raises(BackendError, match="1, 2, 4 or 8"):
        machine.add_doorbell(0x2000, 3, bell, pio=True)
    with pytest.raises(BackendError, match="remove a doorbell"):
        machine.remove_doorbell(0x2000, 2, bell, pio=True)
    machine.add_doorbell(0x2000, 2, bell, pio=True)
    with pytest.raises(BackendError, match="add a doorbell"):
        machine.add_doorbell(0x2000, 2, bell, pio=True)
    os.close(bell)


def test_an_impossible_state_is_refused_in_one_line(machine: KvmMachine) -> None:
    vcpu = machine.create_vcpu(0)
    with pytest.raises(BackendError, match="vCPU 0"):
        vcpu.set_registers({Reg.CR0: 0x80000000})  # paging without protection
    with pytest.raises(BackendError):
        vcpu.set_msr(0x1B, 1 << 62)
    with pytest.raises(BackendError):
        vcpu.set_lapic(b"short")
    with pytest.raises(BackendError):
        vcpu.set_xsave(bytes(1 << 20))


def test_an_unusable_segment_stays_so(machine: KvmMachine) -> None:
    vcpu = machine.create_vcpu(0)
    vcpu.set_segment(SegmentName.FS, Segment(0, 0, 0, int(Access.UNUSABLE)))
    assert vcpu.get_segment(SegmentName.FS).access & Access.UNUSABLE


def test_an_application_processor_sleeps_in_run_until_it_is_started(kvm: KvmHypervisor) -> None:
    guest = boot_guest(kvm, assemble("ap", ORG), cpus=2)
    other = guest.vm.create_vcpu(1)
    exits: list[Exit] = []

    def run() -> None:
        while len(exits) < 3:
            exits.append(other.run())

    thread = threading.Thread(target=run)
    thread.start()
    other.kick()
    assert guest.until_end() == []
    while len(exits) < 2:
        thread.join(0.01)
    while thread.is_alive():
        other.kick()
        thread.join(0.02)
    # A kick that was pending, the processor's own exit, and the kick out of its HLT.
    assert [found for found in exits if found != Bogus()] == [InOut(0xF5, 2, False, 0x0800)]
    guest.close()


def test_an_instruction_that_kvm_cannot_emulate_is_told_with_its_bytes(kvm: KvmHypervisor) -> None:
    guest = boot_guest(kvm, assemble("    fld1\n    hlt\n", ORG))
    if not guest.software_kvm:
        guest.close()
        pytest.skip("this host's KVM does not emulate FLD1: the CPU executes it")
    found = guest.vcpu.run()
    assert isinstance(found, InstEmulFailed)
    assert found.rip == ORG
    assert found.detail.startswith("bytes d9 e8")
    guest.close()


def test_counters_are_kvms(kvm: KvmHypervisor) -> None:
    guest = boot_guest(kvm, assemble("timer", ORG))
    guest.until_end()
    counters = guest.vcpu.stats()
    if not counters:
        pytest.skip("this KVM has no statistics (KVM_CAP_BINARY_STATS_FD)")
    assert counters["exits"] > 0
    assert counters["halt_exits"] == 1
    guest.close()


def test_kicks_from_many_threads_are_all_seen(kvm: KvmHypervisor) -> None:
    guest = boot_guest(kvm, assemble("spin", ORG, HALT=0))
    for _ in range(20):
        barrier = threading.Barrier(5)

        def kick(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            guest.vcpu.kick()

        kickers = [threading.Thread(target=kick) for _ in range(4)]
        for kicker in kickers:
            kicker.start()
        barrier.wait()
        assert guest.run() == Bogus()
        for kicker in kickers:
            kicker.join()
        guest.vcpu.kick()
        assert guest.run() == Bogus()
    guest.close()


def test_the_kick_signal_does_no_harm_to_a_thread_outside_the_guest(kvm: KvmHypervisor) -> None:
    from pyhyve.vmm.kvm import kick

    reader, writer = os.pipe()
    result: list[bytes] = []
    ids: list[int] = []
    started = threading.Event()

    def read() -> None:
        ids.append(threading.get_native_id())
        started.set()
        result.append(os.read(reader, 1))

    kick.install()
    thread = threading.Thread(target=read)
    thread.start()
    started.wait()
    for _ in range(100):
        kick.send(ids[0])
    os.write(writer, b"x")
    thread.join()
    assert result == [b"x"]
    kick.send(ids[0])  # a thread that has ended
    os.close(reader)
    os.close(writer)


def test_debug_registers_set_from_outside_reach_the_guest(kvm: KvmHypervisor) -> None:
    guest = boot_guest(kvm, assemble(f"    mov %db1, %rax\n    mov %rax, {DATA}\n    out %al, $0xF4\n", ORG))
    guest.vcpu.set_registers({Reg.DR1: 0x123456})
    guest.until_end()
    assert guest.word(0) == 0x123456
    guest.close()


def test_structures_have_the_sizes_of_the_kernels() -> None:
    import ctypes

    from pyhyve.vmm.kvm import structs

    sizes = {
        structs.MemoryRegion: 32,
        structs.PitConfig: 64,
        structs.IoEventFd: 64,
        structs.Msi: 32,
        structs.EnableCap: 104,
        structs.IrqRoutingEntry: 48,
        structs.Regs: 144,
        structs.KvmSegment: 24,
        structs.Sregs: 312,
        structs.Translation: 24,
        structs.CpuidEntry2: 40,
        structs.VcpuEvents: 64,
        structs.DebugRegs: 128,
        structs.GuestDebug: 72,
        structs.Xcrs: 392,
        structs.OneMsr: structs.MSRS_HEADER + 16,
    }
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
    assert structs.RUN_MSR.size == struct.calcsize("=QIIQ")
