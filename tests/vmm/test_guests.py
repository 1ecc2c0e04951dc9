"""Every exit, on every backend: tiny guests run to their end, and what they did is what the manuals say.

Expectations are those of the Intel SDM; a test names the section where it is not plain. What a backend cannot do is
skipped by the capability's or chip's name.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pyhyve.errors import BackendError
from pyhyve.memory import GuestMemory
from pyhyve.vmm.api import ApicMode, Capability, Chip, Hypervisor
from pyhyve.vmm.exits import (
    Bogus,
    Exit,
    Hlt,
    InOut,
    InstEmul,
    IntAck,
    IoapicEoi,
    Mtrap,
    Pause,
    RdMsr,
    Suspended,
    SuspendReason,
    WrMsr,
)
from pyhyve.vmm.registers import Reg, Segment, SegmentName, Table
from tests.guests import (
    DATA,
    DEVICE,
    NO_EXECUTE,
    NOT_MAPPED,
    READ_ONLY,
    REAL_DATA,
    USER,
    Guest,
    Mode,
    assemble,
    boot_guest,
    is_end,
)

READY = 0xF5
MSI = 0xFEE00000
EVERYTHING = 0xFFFFFFFFFFFFFFFF

Boot = Callable[..., Guest]


@pytest.fixture
def boot(hypervisor: Hypervisor) -> Iterator[Boot]:
    """Boots the guest of that name: ``boot(name, mode, apic=..., symbol=value)``."""
    guests: list[Guest] = []

    def start(name: str, mode: Mode = Mode.LONG, apic: ApicMode = ApicMode.XAPIC, **symbols: int) -> Guest:
        org = 0x8000 if mode is Mode.REAL else 0x10000
        guest = boot_guest(hypervisor, assemble(name, org, mode, **symbols), mode, apic=apic)
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.close()


def need(guest: Guest, capability: Capability) -> None:
    if not guest.vm.capability(capability):
        pytest.skip(f"the backend has no capability {capability.name}")


def ready(guest: Guest) -> None:
    """Run until the guest says READY."""
    found = guest.next()
    assert isinstance(found, InOut)
    assert found.port == READY


def shapes(exits: list[Exit]) -> list[tuple[int, int, int | None]]:
    """Port exits as (port, size, value written or None)."""
    return [(e.port, e.size, None if e.is_in else e.value) for e in exits if isinstance(e, InOut)]


# Ports.


def test_in_and_out_carry_their_size_and_touch_only_the_bytes_they_name(boot: Boot) -> None:
    guest = boot("ports")
    answers = iter((0xAA, 0xBBCC, 0xDDEEFF00, 0x99))
    found = guest.until_end(lambda e: next(answers) if isinstance(e, InOut) and e.is_in else None)
    assert found == [
        InOut(0x3F0, 1, False, 0x44),
        InOut(0x3F0, 2, False, 0x3344),
        InOut(0x3F0, 4, False, 0x11223344),
        InOut(0x80, 4, False, 0x11223344),
        InOut(0x3F0, 1, True),
        InOut(0x3F0, 2, True),
        InOut(0x3F0, 4, True),
        InOut(0x71, 1, True),
    ]
    # A 4-byte IN clears the upper half of RAX, shorter ones leave the rest (SDM Vol. 1 §3.4.1.1).
    assert guest.words(4) == [0xFFFFFFFFFFFFFFAA, 0xFFFFFFFFFFFFBBCC, 0xDDEEFF00, 0xFFFFFFFFFFFFFF99]


def test_an_answer_wider_than_the_port_access_is_cut(boot: Boot) -> None:
    guest = boot("ports")
    guest.until_end(lambda e: EVERYTHING if isinstance(e, InOut) and e.is_in else None)
    assert guest.words(4) == [EVERYTHING, EVERYTHING, 0xFFFFFFFF, EVERYTHING]


def test_string_port_instructions_exit_once_for_each_element(boot: Boot) -> None:
    guest = boot("strings")
    values = iter(range(1, 100))
    found = guest.until_end(lambda e: next(values) * 0x01010101 if isinstance(e, InOut) and e.is_in else None)
    port = 0x1F0
    assert shapes(found) == [
        *((port, 1, ord(letter)) for letter in "ABCD"),
        *((port, 2, int.from_bytes(pair, "little")) for pair in (b"ef", b"gh")),
        *((port, 4, int.from_bytes(quad, "little")) for quad in (b"IJKL", b"MNOP")),
        *((port, 1, None) for _ in range(4)),
        *((port, 2, None) for _ in range(2)),
        *((port, 4, None) for _ in range(2)),
        *((port, 1, None) for _ in range(3)),
    ]
    expected = bytes([1, 2, 3, 4]) + b"\5\5\6\6" + b"\7" * 4 + b"\10" * 4
    assert guest.memory.read(DATA, 16) == expected
    assert guest.memory.read(DATA + 0x40, 5) == bytes([0, 11, 10, 9, 0])
    assert guest.words(0x13)[0x10:] == [DATA + 0x40, 16, 0]


def test_a_kick_between_the_elements_of_a_string_loses_none(boot: Boot) -> None:
    guest = boot("strings")
    ports = 0
    while not is_end(found := guest.run()):
        if isinstance(found, InOut):
            ports += 1
            if found.is_in:
                guest.vcpu.answer(ports)
            guest.vcpu.kick()
    assert ports == 19
    assert guest.memory.read(DATA, 8) == bytes([9, 10, 11, 12, 13, 0, 14, 0])


# Device memory.


def test_device_reads_and_writes_carry_address_size_and_value(boot: Boot) -> None:
    guest = boot("mmio")

    def answer(found: Exit) -> int | None:
        return 0x8182838485868788 if isinstance(found, InstEmul) and not found.is_write else None

    found = guest.until_end(answer)
    assert found == [
        InstEmul(DEVICE, 1, True, 0x88),
        InstEmul(DEVICE + 2, 2, True, 0x7788),
        InstEmul(DEVICE + 4, 4, True, 0x55667788),
        InstEmul(DEVICE + 8, 8, True, 0x1122334455667788),
        InstEmul(DEVICE + 0x10, 1, True, 0x5A),
        InstEmul(DEVICE + 0x14, 4, True, 0x12345678),
        InstEmul(DEVICE + 0x18, 8, True, EVERYTHING - 1),
        InstEmul(DEVICE + 0x20, 1, False),
        InstEmul(DEVICE + 0x22, 2, False),
        InstEmul(DEVICE + 0x24, 4, False),
        InstEmul(DEVICE + 0x28, 8, False),
        InstEmul(DEVICE + 0x30, 1, False),
        InstEmul(DEVICE + 0x31, 1, False),
        InstEmul(DEVICE + 0x32, 2, False),
        InstEmul(DEVICE + 0x34, 4, False),
    ]
    assert guest.words(8) == [
        0xFFFFFFFFFFFFFF88,
        0xFFFFFFFFFFFF8788,
        0x85868788,
        0x8182838485868788,
        0x88,
        0xFFFFFFFFFFFFFF88,
        0x8788,
        0xFFFFFFFF85868788,
    ]


def test_instructions_that_modify_device_memory_read_then_write(boot: Boot) -> None:
    guest = boot("mmio_modify")
    values = {0x40: 10, 0x44: 1, 0x48: 0x0F0F0F0F, 0x4C: 0xFFFF, 0x50: 0xBEEF, 0x54: 7, 0x58: 2, 0x5C: 1}

    def answer(found: Exit) -> int | None:
        return values[found.gpa - DEVICE] if isinstance(found, InstEmul) and not found.is_write else None

    found = guest.until_end(answer)
    accesses = [(e.gpa - DEVICE, e.size, e.value if e.is_write else None) for e in found if isinstance(e, InstEmul)]
    assert accesses == [
        (0x40, 4, None),
        (0x40, 4, 15),
        (0x44, 1, None),
        (0x44, 1, 0x81),
        (0x48, 4, None),
        (0x48, 4, 0xF0F0F0F0),
        (0x4C, 2, None),
        (0x4C, 2, 0),
        (0x50, 4, None),
        (0x50, 4, 0xCAFE),
        (0x54, 4, None),
        (0x58, 1, None),
        (0x5C, 4, None),
    ]
    assert guest.word(0) == 0xBEEF
    assert guest.memory.read(DATA + 8, 2) == b"\1\0"
    assert guest.word(2) == 0xBEF0


def test_string_instructions_on_device_memory(boot: Boot) -> None:
    guest = boot("mmio_strings")

    def answer(found: Exit) -> int | None:
        return found.gpa & 0xFF if isinstance(found, InstEmul) and not found.is_write else None

    found = guest.until_end(answer)
    accesses = [(e.gpa - DEVICE, e.size, e.value if e.is_write else None) for e in found if isinstance(e, InstEmul)]
    assert accesses == [
        (0, 1, 0x11),
        (1, 4, 0x44332211),
        (5, 2, 0x2211),
        (7, 2, 0x2211),
        (9, 4, 0xA0A1A2A3),
        (13, 8, 0xB0B1B2B3B4B5B6B7),
        (21, 8, 0xC0C1C2C3C4C5C6C7),
        (0x80, 1, None),
        (0x81, 4, None),
        (0x85, 4, None),
        (0x89, 2, None),
    ]
    assert guest.memory.read(DATA, 9) == b"\x80\x81\0\0\0\x85\0\0\0"
    assert guest.word(2) == 0x89


# Model-specific registers.


def test_an_unknown_msr_exits_and_its_answer_lands_in_edx_eax(boot: Boot) -> None:
    guest = boot("msr")
    if getattr(guest.vm, "exits_on_unknown_msrs", True) is False:
        pytest.skip("the backend has no exits on unknown MSRs (KVM_CAP_X86_USER_SPACE_MSR)")
    guest.expect(RdMsr(0x474F4F00))
    guest.vcpu.answer(0xAABBCCDD11223344)
    guest.expect(WrMsr(0x474F4F00, 0x1122334455667788))
    assert guest.words(2) == [0x11223344, 0xAABBCCDD]
    ready(guest)
    guest.expect(RdMsr(0x474F4F00))
    guest.vcpu.inject_exception(13, 0)
    assert guest.until_end() == []
    assert guest.words(5)[2:] == [0, 0, 0x77]


def test_another_exception_can_replace_an_msr_access(boot: Boot) -> None:
    guest = boot("msr")
    guest.expect(RdMsr(0x474F4F00))
    guest.vcpu.answer(1)
    guest.expect(WrMsr(0x474F4F00, 0x1122334455667788))
    ready(guest)
    guest.expect(RdMsr(0x474F4F00))
    guest.vcpu.inject_exception(13, 0x20)
    assert guest.until_end() == []
    assert guest.words(5)[2:] == [0x20, 0, 0x77]


def test_msrs_are_read_and_set_from_outside(boot: Boot) -> None:
    vcpu = boot("ports").vcpu
    kernel_gs_base = 0xC0000102
    vcpu.set_msr(kernel_gs_base, 0xFFFF888000001000)
    assert vcpu.get_msr(kernel_gs_base) == 0xFFFF888000001000
    assert vcpu.get_msr(0xC0000080) == 0xD00  # EFER
    with pytest.raises(KeyError):
        vcpu.get_msr(0x474F4F00)
    with pytest.raises(KeyError):
        vcpu.set_msr(0x474F4F00, 1)


# Sleeping and interrupts.


def test_hlt_sleeps_until_the_local_apics_timer(boot: Boot) -> None:
    guest = boot("timer")
    assert guest.until_end() == []
    assert guest.words(2) == [0x1235, 0]


def test_the_x2apics_periodic_timer_interrupts_again_and_again(boot: Boot) -> None:
    guest = boot("timer_x2apic", apic=ApicMode.X2APIC)
    assert guest.until_end() == []
    ticks, identity, base = guest.words(3)
    assert (ticks, identity) == (3, 0)
    assert base == 0xFEE00000 | 1 << 11 | 1 << 10 | 1 << 8  # enabled, x2APIC, boot CPU (SDM Vol. 3A §11.12.1)


def test_a_message_wakes_a_halted_vcpu(boot: Boot) -> None:
    guest = boot("interrupt")
    ready(guest)
    guest.vm.send_msi(MSI, 0x51)
    ready(guest)
    later = threading.Timer(0.05, guest.vm.send_msi, (MSI, 0x51))
    later.start()
    assert guest.until_end() == []
    later.join()
    assert guest.words(2) == [0x51, 0x51]


def test_an_nmi_wakes_a_halted_vcpu(boot: Boot) -> None:
    guest = boot("interrupt")
    ready(guest)
    done = threading.Event()

    def inject() -> None:  # again and again: one that arrives before the HLT does not wake it
        while not done.wait(0.02):
            guest.vcpu.inject_nmi()

    injector = threading.Thread(target=inject)
    injector.start()
    ready(guest)
    assert guest.until_end() == []
    done.set()
    injector.join()
    assert guest.words(2) == [2, 2]


def test_messages_wait_for_the_flag_and_the_task_priority(boot: Boot) -> None:
    guest = boot("priority")
    ready(guest)
    guest.vm.send_msi(MSI, 0x61)
    guest.vm.send_msi(MSI, 0x81)
    assert guest.until_end() == []
    assert guest.words(3) == [1, 0x81, 0x61]


def test_a_message_that_comes_while_a_lower_one_is_taken_is_not_lost(boot: Boot) -> None:
    guest = boot("messages")
    ready(guest)
    sent = 0

    def send() -> None:
        nonlocal sent
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            guest.vm.send_msi(MSI, 0x61)
            if guest.memory.read_uint(DATA + 8, 8) == sent:
                sent += 1
                guest.vm.send_msi(MSI, 0x81)
        while guest.memory.read_uint(DATA + 8, 8) < sent and time.monotonic() < end + 5:
            pass
        guest.memory.write_uint(DATA + 16, 1, 8)

    sender = threading.Thread(target=send)
    sender.start()
    assert guest.until_end() == []
    sender.join()
    assert guest.words(2)[1] == sent > 0


def test_a_message_to_nobody_is_lost(boot: Boot) -> None:
    guest = boot("priority")
    ready(guest)
    guest.vm.send_msi(MSI | 0x7 << 12, 0x61)
    guest.vm.send_msi(0x1000, 0x61)
    assert guest.until_end() == []
    assert guest.words(3) == [1, 0, 0]


def test_a_cpu_interrupts_itself(boot: Boot) -> None:
    guest = boot("self_ipi")
    assert guest.until_end() == []
    assert guest.word(0) == 1


def test_a_pic_line_interrupts_through_lint0(boot: Boot) -> None:
    guest = boot("pic")
    backend_pic = Chip.PIC in guest.vm.provides
    while not (isinstance(found := guest.next(), InOut) and found.port == READY):
        assert not backend_pic, f"the backend's own PIC let {found} out"
    if backend_pic:
        guest.vm.set_irq(4, True)
    else:
        guest.vm.set_extint(True)
        guest.expect(IntAck())
        guest.vm.set_extint(False)
        guest.vcpu.answer(0x24)
    assert len(guest.until_end()) == (0 if backend_pic else 1)
    assert guest.word(0) == 0x24


def test_a_level_triggered_pin_comes_again_until_the_line_falls(boot: Boot) -> None:
    guest = boot("ioapic")
    if Chip.IOAPIC not in guest.vm.provides:
        pytest.skip("the backend has no chip ioapic")
    ready(guest)
    guest.vm.set_irq(5, True)

    def watch(found: Exit) -> None:
        if isinstance(found, InOut) and found.value == 3:
            guest.vm.set_irq(5, False)

    assert len(guest.until_end(watch)) == 3
    assert guest.word(0) == 3


def test_the_end_of_a_level_triggered_message_is_told(boot: Boot) -> None:
    guest = boot("interrupt")
    if Chip.IOAPIC in guest.vm.provides:
        pytest.skip("the backend brings chip ioapic: it tells nobody")
    level = 1 << 15 | 1 << 14
    for _ in range(2):
        ready(guest)
        guest.vm.send_msi(MSI, level | 0x51)
        guest.expect(IoapicEoi(0x51))
    assert guest.until_end() == []


# Stopping and kicking.


def test_an_exception_without_a_handler_for_it_is_a_triple_fault(boot: Boot) -> None:
    assert boot("triple").next() == Suspended(SuspendReason.TRIPLE_FAULT)


@pytest.mark.parametrize("halted", [0, 1], ids=["spinning", "halted"])
def test_a_kick_ends_run_from_another_thread(boot: Boot, halted: int) -> None:
    guest = boot("spin", HALT=halted)
    for _ in range(3):
        later = threading.Timer(0.02, guest.vcpu.kick)
        later.start()
        assert guest.run() == Bogus()
        later.join()


def test_a_kick_before_run_counts_once(boot: Boot) -> None:
    guest = boot("ports")
    guest.vcpu.kick()
    guest.vcpu.kick()
    assert guest.run() == Bogus()
    assert guest.run() == InOut(0x3F0, 1, False, 0x44)


def test_a_kick_works_when_run_moves_to_another_thread(boot: Boot) -> None:
    guest = boot("spin", HALT=0)
    guest.vcpu.kick()
    assert guest.run() == Bogus()
    results: list[Exit] = []
    runner = threading.Thread(target=lambda: results.append(guest.vcpu.run()))
    runner.start()
    later = threading.Timer(0.02, guest.vcpu.kick)
    later.start()
    runner.join()
    later.join()
    assert results == [Bogus()]


def test_run_lets_other_threads_run(boot: Boot) -> None:
    guest = boot("spin", HALT=0)
    counted = 0
    go = threading.Event()

    def count() -> None:
        nonlocal counted
        go.wait()
        while counted < 1000:
            counted += 1
        guest.vcpu.kick()

    worker = threading.Thread(target=count)
    worker.start()
    go.set()
    assert guest.run() == Bogus()
    worker.join()
    assert counted == 1000


# Exceptions.


def test_exceptions_push_what_the_manual_says(boot: Boot) -> None:
    guest = boot("exceptions")
    assert guest.until_end() == []
    count = (guest.memory.read_uint(DATA + 0x800, 4) - DATA) // 32
    rows = [struct.unpack("<QqqQ", guest.memory.read(DATA + 32 * row, 32)) for row in range(count)]
    fault_at = NOT_MAPPED + 0x123
    assert rows[:8] == [
        (0, -1, 0, 0),  # #DE, a fault: RIP is at the instruction
        (6, -1, 0, 0),  # #UD
        (13, 0x48, 0, 0),  # #GP with the selector outside the GDT
        (12, 0, 0, 0),  # #SS for a non-canonical address by RBP, whose segment is SS
        (13, 0, 0, 0),  # #GP for one by RSI
        (14, 0, 0, fault_at),  # #PF: read of a page that is not there
        (14, 2, 0, fault_at),  # write
        (14, 3, 0, READ_ONLY + 0xFF8),  # write, page present (CR0.WP)
    ]
    vector, code, _, address = rows[8]
    assert (vector, code, address) == (14, 0x11, NO_EXECUTE)  # fetch, page present (EFER.NXE)
    assert count == 9


@pytest.mark.parametrize(("vector", "code"), [(6, None), (13, 0x18), (13, 0)])
def test_an_injected_exception_is_raised_before_the_next_instruction(boot: Boot, vector: int, code: int | None) -> None:
    guest = boot("injected")
    ready(guest)
    guest.vcpu.inject_exception(vector, code)
    assert guest.until_end() == []
    assert guest.words(4) == [vector, code or 0, 0, 0x99]


def test_software_interrupts_push_the_address_behind_them(boot: Boot) -> None:
    guest = boot("software")
    assert guest.until_end() == []
    assert guest.words(2) == [2, 3]


def test_ring_3_is_kept_to_its_pages_and_its_faults_come_back_on_the_kernels_stack(boot: Boot) -> None:
    guest = boot("user")
    assert guest.until_end() == []
    assert guest.words(4) == [14, 5, 13, 0]  # #PF: read, page present, user; #GP(0): IN without I/O privilege
    # #UD: the program's CS, the handler's, and RSP0 below five pushed words (SDM Vol. 3A §6.14.2).
    assert guest.words(8)[4:] == [6, 0x23, 0x08, 0x80000 - 0x8000 - 40]
    assert guest.memory.read_uint(0x401000, 4) == 0x600D


# Stepping, pausing, halting as exits.


def test_single_step_exits_after_each_instruction(boot: Boot) -> None:
    guest = boot("step")
    need(guest, Capability.MTRAP_EXIT)
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, True)
    lengths = []
    before = guest.register(Reg.RIP)
    for _ in range(6):
        assert guest.next() == Mtrap()
        after = guest.register(Reg.RIP)
        lengths.append(after - before)
        before = after
    assert lengths == [5, 3, 1, 1, 3, 1]
    assert guest.register(Reg.RBX) == 3
    assert not guest.register(Reg.RFLAGS) & 0x100
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, False)
    assert guest.until_end() == []


def test_pause_exits_when_asked(boot: Boot) -> None:
    guest = boot("pause")
    need(guest, Capability.PAUSE_EXIT)
    guest.vcpu.set_capability(Capability.PAUSE_EXIT, True)
    assert guest.until_end() == [Pause(), Pause(), Pause()]


def test_pause_does_not_exit_unasked(boot: Boot) -> None:
    assert boot("pause").until_end() == []


def test_hlt_exits_when_asked_and_then_sleeps(boot: Boot) -> None:
    guest = boot("interrupt")
    need(guest, Capability.HLT_EXIT)
    guest.vcpu.set_capability(Capability.HLT_EXIT, True)
    ready(guest)
    guest.expect(Hlt())
    guest.vm.send_msi(MSI, 0x51)
    ready(guest)
    guest.expect(Hlt())
    later = threading.Timer(0.05, guest.vm.send_msi, (MSI, 0x51))
    later.start()
    assert guest.until_end() == []
    later.join()
    assert guest.words(2) == [0x51, 0x51]


def test_a_capability_that_is_denied_is_refused(boot: Boot) -> None:
    guest = boot("pause")
    assert guest.vm.capability(Capability.UNRESTRICTED_GUEST)
    denied = [cap for cap in Capability if not guest.vm.capability(cap)]
    for cap in denied:
        with pytest.raises(BackendError):
            guest.vcpu.set_capability(cap, True)


# Memory.


def test_code_that_changes_itself_runs_as_changed(boot: Boot) -> None:
    guest = boot("modify")
    ready(guest)
    routine = guest.register(Reg.RBX)
    guest.memory.write_uint(routine + 1, 0x44, 4)
    guest.vm.memory_written(routine + 1, 4)
    assert guest.until_end() == []
    assert guest.words(4) == [0x22222222, 15, 0x33, 0x44]


def test_a_doorbell_signals_and_does_not_exit(boot: Boot) -> None:
    guest = boot("doorbell")
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    guest.vm.add_doorbell(DEVICE, 4, bells[0])
    guest.vm.add_doorbell(DEVICE + 8, 4, bells[1], match=7)
    guest.vm.add_doorbell(0x2000, 2, bells[2], pio=True)
    try:
        assert guest.until_end() == [InstEmul(DEVICE + 8, 4, True, 8)]
        assert [os.eventfd_read(bell) for bell in bells] == [2, 1, 1]
    finally:
        for bell in bells:
            os.close(bell)


def test_a_doorbell_taken_away_exits_again(boot: Boot) -> None:
    guest = boot("doorbell")
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.add_doorbell(DEVICE, 4, bell)
    guest.expect(InstEmul(DEVICE + 8, 4, True, 7), InstEmul(DEVICE + 8, 4, True, 8), InOut(0x2000, 2, False, 3))
    guest.vm.remove_doorbell(DEVICE, 4, bell)
    guest.vcpu.set_registers({Reg.RIP: 0x10000})
    guest.settle()
    guest.vcpu.set_registers({Reg.RIP: 0x10000})
    guest.expect(InstEmul(DEVICE, 4, True, 1), InstEmul(DEVICE, 4, True, 2))
    assert os.eventfd_read(bell) == 2
    os.close(bell)


def test_read_only_memory_keeps_its_contents(boot: Boot) -> None:
    rom = 0xFFFF0000
    guest = boot("rom", ROM=rom)
    guest.memory.write_uint(0x300000, 0x1122334455667788, 8)
    guest.vm.map_memory(rom, 0x10000, 0x300000, readonly=True)
    for found in guest.until_end():
        assert found == InstEmul(rom, 8, True, 0)
    assert guest.words(2) == [0x1122334455667788] * 2
    assert guest.memory.read_uint(0x300000, 8) == 0x1122334455667788


def test_memory_that_is_unmapped_exits(boot: Boot) -> None:
    rom = 0xFFFF0000
    guest = boot("rom", ROM=rom)
    guest.vm.map_memory(rom, 0x10000, 0x300000)
    guest.vm.unmap_memory(rom)
    found = guest.until_end(lambda e: 5 if isinstance(e, InstEmul) and not e.is_write else None)
    assert found == [InstEmul(rom, 8, False), InstEmul(rom, 8, True, 0), InstEmul(rom, 8, False)]
    assert guest.words(2) == [5, 5]


@pytest.mark.parametrize(
    ("gpa", "size", "offset"),
    [(0xD0000001, 4096, 0), (0xD0000000, 100, 0), (0xD0000000, 4096, 1 << 40), (0xD0000000, 0, 0), (0, 4096, 0)],
    ids=["unaligned", "part of a page", "outside the memory", "empty", "overlapping"],
)
def test_a_mapping_that_cannot_be_is_refused(boot: Boot, gpa: int, size: int, offset: int) -> None:
    guest = boot("ports")
    with pytest.raises(BackendError):
        guest.vm.map_memory(gpa, size, offset)


def test_translation_follows_the_page_tables(boot: Boot) -> None:
    guest = boot("ports")
    assert guest.vcpu.translate(0x12345) == 0x12345
    assert guest.vcpu.translate(DEVICE + 0x10) == DEVICE + 0x10
    assert guest.vcpu.translate(USER + 0x123) == 0x400123
    assert guest.vcpu.translate(NOT_MAPPED) is None


# State.


def test_registers_keep_what_they_are_given(boot: Boot) -> None:
    vcpu = boot("ports").vcpu
    general = {name: 0x1111111111111111 * (number % 15 + 1) for number, name in enumerate(tuple(Reg)[:16])}
    values = {**general, Reg.CR2: 0xFFFF800000001234, Reg.DR0: 0x12345000, Reg.DR7: 0x401}
    vcpu.set_registers(values)
    assert vcpu.get_registers(values) == values
    assert vcpu.get_registers((Reg.CR0, Reg.EFER, Reg.CR8)) == {Reg.CR0: 0x80010031, Reg.EFER: 0xD00, Reg.CR8: 0}


def test_segments_and_tables_keep_what_they_are_given(boot: Boot) -> None:
    vcpu = boot("ports").vcpu
    segment = Segment(0x1B, 0xFFFF800000001000, 0xFFFFFFFF, 0xC0F3)
    vcpu.set_segment(SegmentName.GS, segment)
    assert vcpu.get_segment(SegmentName.GS) == segment
    assert vcpu.get_segment(SegmentName.CS).access == 0xA09B
    vcpu.set_table("idtr", Table(0xFFFF800000002000, 0x1FF))
    assert vcpu.get_table("idtr") == Table(0xFFFF800000002000, 0x1FF)
    assert vcpu.get_table("gdtr") == Table(0x1000, 0x37)


def test_vector_state_goes_both_ways(boot: Boot) -> None:
    guest = boot("vector")
    ready(guest)
    area = bytearray(guest.vcpu.get_xsave())
    # SDM Vol. 1 table 13-1: XMM0 at 160, XMM1 at 176, XSTATE_BV at 512.
    assert area[160:176] == struct.pack("<2Q", 0x0123456789ABCDEF, 0xFEDCBA9876543210)
    assert area[512] & 2 == 2
    area[176:192] = bytes(range(16))
    guest.vcpu.set_xsave(bytes(area))
    assert guest.until_end() == []
    assert guest.memory.read(DATA, 16) == bytes(range(16))


def test_the_x87_stack_is_in_the_vector_state(boot: Boot) -> None:
    guest = boot("x87")
    ready(guest)
    area = guest.vcpu.get_xsave()
    # SDM Vol. 1 table 13-1: ST0 at 32, ST1 at 48, in 80-bit format.
    assert area[32:42] == bytes.fromhex("35c26821a2da0fc90040")
    assert area[48:58] == bytes.fromhex("0000000000000080ff3f")
    assert area[512] & 1
    assert guest.until_end() == []
    assert guest.memory.unpack(DATA, "<2d") == (3.141592653589793, 1.0)


def test_the_local_apics_page_goes_both_ways(boot: Boot) -> None:
    guest = boot("interrupt")
    ready(guest)
    page = bytearray(guest.vcpu.get_lapic())
    assert len(page) == 1024
    assert struct.unpack_from("<I", page, 0x20) == (0,)  # id
    assert struct.unpack_from("<I", page, 0xF0) == (0x1FF,)  # spurious vector, enabled
    struct.pack_into("<I", page, 0x320, 0x10033)
    guest.vcpu.set_lapic(bytes(page))
    assert struct.unpack_from("<I", guest.vcpu.get_lapic(), 0x320) == (0x10033,)


def test_cpuid_tells_the_signature_and_the_apic_id(boot: Boot) -> None:
    guest = boot("identify")
    assert guest.until_end() == []
    rows = [struct.unpack("<4I", guest.memory.read(DATA + 16 * row, 16)) for row in range(3)]
    assert struct.pack("<3I", *rows[0][1:]) == b"bhyve bhyve "
    assert rows[0][0] == 0x40000000
    assert rows[1][1] >> 24 == 0
    assert rows[1][2] >> 31 == 1
    assert (rows[2][1], rows[2][2], rows[2][3]) == (1, 0x201, 0)


# Modes.


def test_real_mode_adds_segments_and_interrupts_through_its_vectors(boot: Boot) -> None:
    guest = boot("real", Mode.REAL)
    assert guest.until_end(lambda e: 0xAB) == [InOut(0x3F8, 1, True)]
    assert guest.memory.read(0x12340 + 0x10, 1) == b"\x42"
    assert guest.memory.unpack(REAL_DATA, "<HHIB") == (0x0701, 0x0800, 0x23456789, 0xAB)
    assert guest.memory.read(REAL_DATA + 0xF, 6) == b"\0\x77\x77\x77\x77\0"


def test_protected_mode_interrupts_and_returns(boot: Boot) -> None:
    guest = boot("protected", Mode.PROTECTED)
    assert guest.until_end() == []
    divide, inside, outside = guest.words(3, 4)
    assert 0x10000 < divide < 0x10200
    assert (inside, outside) == (0, 0x200)
    assert guest.words(6, 4)[4:] == [0x08, 0x800]


def test_a_guest_changes_from_real_to_protected_to_long_to_compatibility_mode(boot: Boot) -> None:
    guest = boot("modes", Mode.REAL)
    assert guest.until_end() == []
    assert guest.memory.unpack(REAL_DATA, "<IIQI") == (0x32, 0x500, 0x1122334455667788, 0x7001)
    assert guest.register(Reg.EFER) == 0x500


def test_a_new_vcpu_starts_at_the_reset_vector(hypervisor: Hypervisor) -> None:
    """SDM Vol. 3A §10.1.1 and table 10-1."""
    memory = GuestMemory(16 << 20)
    vm = hypervisor.create("reset", memory, 1)
    try:
        memory.write(0x300FF0, assemble("reset", 0, Mode.REAL))
        vm.map_memory(0xFFFFF000, 0x1000, 0x300000, readonly=True)
        vcpu = vm.create_vcpu(0)
        assert vcpu.get_registers((Reg.RIP, Reg.RFLAGS, Reg.CR0, Reg.RAX)) == {
            Reg.RIP: 0xFFF0,
            Reg.RFLAGS: 2,
            Reg.CR0: 0x60000010,
            Reg.RAX: 0,
        }
        cs = vcpu.get_segment(SegmentName.CS)
        assert (cs.selector, cs.base, cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
        assert vcpu.run() == InOut(READY, 2, False, 0xF000)
        assert is_end(vcpu.run())
    finally:
        vm.close()
        memory.close()


def test_memory_mapped_above_all_other_memory_can_be_executed(hypervisor: Hypervisor) -> None:
    guest = boot_guest(hypervisor, assemble("    mov $0x80000000, %rax\n    jmp *%rax\n", 0x10000))
    guest.memory.write(0x300000, assemble("    out %al, $0xF4\n", 0))
    guest.vm.map_memory(0x80000000, 0x1000, 0x300000)
    assert guest.until_end() == []
    guest.close()
