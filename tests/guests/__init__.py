"""Tiny guests for tests: assembling them, and putting a vCPU in front of them in the mode they are written for.

A guest is a file of AT&T assembly next to this one, assembled and linked to a flat binary when a test asks for it. It
runs with flat segments, without firmware; memory is laid out so:

    0x01000  GDT: 0x08 kernel code, 0x10 kernel data, 0x1B user data, 0x23 user code, 0x28 task-state segment
    0x02000  IDT, empty (real mode: the vectors are at 0)
    0x03000  task-state segment
    0x04000  page tables (long mode): the first 4 GiB identity-mapped with 2 MiB pages; from 4 GiB on, the first 2 MiB
             of memory again, read-only at ``READ_ONLY`` and not executable at ``NO_EXECUTE``, and the 2 MiB from 4 MiB
             on for ring 3 at ``USER``
    0x10000  the guest (real mode: 0x8000), its stack below 0x80000 (real mode: 0x7000)
    0x20000  ``DATA`` (real mode: 0x9000), where a guest leaves what the test looks at

A guest ends by writing to port ``END``.
"""

from __future__ import annotations

import importlib
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import pytest

from pyhyve.memory import GuestMemory
from pyhyve.vmm import cpuid, exits
from pyhyve.vmm.api import ApicMode, Hypervisor, VirtualCpu, VirtualMachine
from pyhyve.vmm.exits import Bogus, Exit, InOut, InstEmulFailed
from pyhyve.vmm.kvm import KvmHypervisor
from pyhyve.vmm.registers import Access, Reg, Segment, SegmentName, Table

HERE = Path(__file__).parent
END = 0xF4
DATA = 0x20000
REAL_DATA = 0x9000
READ_ONLY = 0x1_0000_0000
NO_EXECUTE = 0x1_0020_0000
USER = 0x1_0040_0000
NOT_MAPPED = 0x1_0060_0000
DEVICE = 0xD0000000
"""Guest-physical addresses from here up to the chips are nobody's: an access is an exit."""

GDT, IDT, TSS, TABLES = 0x1000, 0x2000, 0x3000, 0x4000
MEMORY_SIZE = 16 << 20
PATIENCE = 20.0
"""Seconds after which a guest that does not come to an end is stopped and its test fails."""

# Page-table bits, SDM Vol. 3A §4.5.
_P, _W, _U, _PS, _NX = 1, 2, 4, 1 << 7, 1 << 63


SOFTWARE_KVM_GAPS = {
    0xCC: "INT3 outside real mode",
    0xCD: "INT n outside real mode",
    0xCF: "IRET in protected mode",
    0xD9: "the x87 instructions with opcode D9",
}
"""First opcode bytes that a KVM without vmx and svm, which emulates instructions in software, is known not to know."""


class Mode(StrEnum):
    REAL = "real"
    PROTECTED = "protected"
    LONG = "long"


_ORIGIN = {Mode.REAL: 0x8000, Mode.PROTECTED: 0x10000, Mode.LONG: 0x10000}
_STACK = {Mode.REAL: 0x7000, Mode.PROTECTED: 0x80000, Mode.LONG: 0x80000}
_FORMAT = {Mode.REAL: ("--32", "elf_i386"), Mode.PROTECTED: ("--32", "elf_i386"), Mode.LONG: ("--64", "elf_x86_64")}


@cache
def assemble(source: str, org: int, mode: Mode = Mode.LONG, **symbols: int) -> bytes:
    """Assemble ``source`` (the name of a file here, or assembly text) to a flat binary linked at ``org``."""
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"no `{tool}` on this host (binutils)")
    text = (HERE / f"{source}.S").read_text() if "\n" not in source else source
    bits, emulation = _FORMAT[mode]
    with tempfile.TemporaryDirectory() as place:
        obj, image = Path(place, "guest.o"), Path(place, "guest.bin")
        defines = [word for name, value in symbols.items() for word in ("--defsym", f"{name}={value:#x}")]
        _tool(["as", bits, "-I", str(HERE), *defines, "-o", str(obj), "-"], text)
        _tool(["ld", "-m", emulation, f"-Ttext={org:#x}", "-e", f"{org:#x}", "--oformat=binary",
               "-o", str(image), str(obj)])
        return image.read_bytes()


def _tool(command: list[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]}: {done.stderr}")


def find_backend(name: str) -> Hypervisor:
    """The backend called ``name``; skips the test where this host or this build has it not."""
    if name == "kvm":
        kvm = KvmHypervisor()
        found = kvm.probe()
        if not found.usable:
            pytest.skip(f"backend kvm: {found.reason}")
        return kvm
    try:
        module = importlib.import_module("pyhyve.vmm.soft.engine")
    except ImportError as error:
        pytest.skip(f"backend soft: {error}")
    soft: Hypervisor = module.SoftHypervisor()
    return soft


def _access(kind: int, *bits: Access, dpl: int = 0) -> int:
    word = kind | dpl << 5 | Access.PRESENT
    for bit in bits:
        word |= bit
    return int(word)


_CODE, _DATA_KIND, _BUSY_TSS = 0xB, 0x3, 0xB
_FLAT = 0xFFFFFFFF


def _code(mode: Mode, dpl: int = 0) -> Segment:
    width = Access.LONG if mode is Mode.LONG else Access.DB
    selector = 0x23 if dpl else 0x08
    return Segment(selector, 0, _FLAT, _access(_CODE, Access.S, width, Access.GRANULARITY, dpl=dpl))


def _data(dpl: int = 0) -> Segment:
    selector = 0x1B if dpl else 0x10
    return Segment(selector, 0, _FLAT, _access(_DATA_KIND, Access.S, Access.DB, Access.GRANULARITY, dpl=dpl))


def _descriptor(segment: Segment) -> bytes:
    """The eight bytes of a descriptor (SDM Vol. 3A §3.4.5)."""
    limit = segment.limit >> 12 if segment.access & Access.GRANULARITY else segment.limit
    flags = segment.access & 0xF0FF | limit >> 16 << 8
    low = limit & 0xFFFF | (segment.base & 0xFFFF) << 16
    high = segment.base >> 16 & 0xFF | flags << 8 | (segment.base >> 24 & 0xFF) << 24
    return struct.pack("<II", low, high)


def _write_tables(memory: GuestMemory, mode: Mode) -> Segment:
    """GDT, TSS and, in long mode, page tables. Returns the task register."""
    task = Segment(0x28, TSS, 0x67, _access(_BUSY_TSS))
    parts = [bytes(8), *map(_descriptor, (_code(mode), _data(), _data(3), _code(mode, 3), task)), bytes(8)]
    memory.write(GDT, b"".join(parts))
    memory.write_uint(TSS + 0x66, 0x68, 2)  # no I/O permission bitmap
    if mode is Mode.LONG:
        memory.write(TSS + 4, struct.pack("<Q", _STACK[mode] - 0x8000))  # RSP0, away from the guest's own stack
        _write_page_tables(memory)
    return task


def _write_page_tables(memory: GuestMemory) -> None:
    pml4, pdpt, directories = TABLES, TABLES + 0x1000, TABLES + 0x2000
    memory.write_uint(pml4, pdpt | _P | _W | _U, 8)
    for gib in range(5):
        directory = directories + gib * 0x1000
        memory.write_uint(pdpt + 8 * gib, directory | _P | _W | _U, 8)
        if gib < 4:
            pages = [gib << 30 | page << 21 | _P | _W | _PS for page in range(512)]
        else:
            pages = [_P | _PS, _P | _W | _PS | _NX, 4 << 20 | _P | _W | _U | _PS] + [0] * 509
        memory.write(directory, struct.pack("<512Q", *pages))


@dataclass
class Guest:
    """A machine with its first vCPU in front of a guest."""

    vm: VirtualMachine
    vcpu: VirtualCpu
    memory: GuestMemory
    software_kvm: bool
    _watchdog: threading.Timer | None = None
    _gave_up: bool = False

    def run(self) -> Exit:
        """The next exit, whatever it is."""
        result = self.vcpu.run()
        if self._gave_up:
            state = self.vcpu.get_registers((Reg.RIP, Reg.RFLAGS))
            pytest.fail(f"the guest came to no end: rip {state[Reg.RIP]:#x} rflags {state[Reg.RFLAGS]:#x}")
        self._skip_known_gap(result)
        return result

    def _skip_known_gap(self, result: Exit) -> None:
        if isinstance(result, InstEmulFailed) and self.software_kvm and result.detail:
            opcode = int(result.detail.removeprefix("bytes ").split()[0], 16)
            if opcode in SOFTWARE_KVM_GAPS:
                pytest.skip(f"this host's software KVM does not emulate {SOFTWARE_KVM_GAPS[opcode]}")

    def next(self) -> Exit:
        """The next exit that the guest caused."""
        while isinstance(result := self.run(), Bogus):
            pass
        return result

    def expect(self, *expected: Exit) -> None:
        """The guest's next exits are these."""
        for one in expected:
            assert self.next() == one

    def until_end(self, answer: Callable[[Exit], int | None] = lambda found: None) -> list[Exit]:
        """Run to the guest's end, answering exits; returns those before the end."""
        found: list[Exit] = []
        while not is_end(result := self.next()):
            assert len(found) < 1000, f"too many exits, the last is {result}"
            assert isinstance(result, _EXPECTED), f"the guest stopped: {result}"
            found.append(result)
            value = answer(result)
            if value is not None:
                self.vcpu.answer(value)
        return found

    def settle(self) -> None:
        """Finish the last exit's instruction, so that registers are exact."""
        self.vcpu.kick()
        while not isinstance(self.run(), Bogus):
            pass

    def register(self, name: Reg) -> int:
        return self.vcpu.get_registers((name,))[name]

    def word(self, index: int, size: int = 8) -> int:
        """The guest's ``index``-th result, of ``size`` bytes, in ``DATA``."""
        return self.memory.read_uint(DATA + index * size, size)

    def words(self, count: int, size: int = 8) -> list[int]:
        return [self.word(index, size) for index in range(count)]

    def close(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()
        self.vm.close()
        self.memory.close()

    def _watch(self) -> None:
        def give_up() -> None:
            self._gave_up = True
            self.vcpu.kick()

        self._watchdog = threading.Timer(PATIENCE, give_up)
        self._watchdog.daemon = True
        self._watchdog.start()


_EXPECTED = (
    exits.InOut,
    exits.InstEmul,
    exits.RdMsr,
    exits.WrMsr,
    exits.Hlt,
    exits.Pause,
    exits.Mtrap,
    exits.IntAck,
    exits.IoapicEoi,
    exits.Debug,
)


def is_end(result: Exit) -> bool:
    """Whether an exit is the guest's last."""
    return isinstance(result, InOut) and result.port == END and not result.is_in


def boot_guest(
    hypervisor: Hypervisor,
    image: bytes,
    mode: Mode = Mode.LONG,
    *,
    org: int | None = None,
    apic: ApicMode = ApicMode.XAPIC,
    cpus: int = 1,
    memory_size: int = MEMORY_SIZE,
) -> Guest:
    """A machine whose first vCPU is about to execute the first byte of ``image``; others are the caller's to make."""
    memory = GuestMemory(memory_size)
    vm = hypervisor.create("guest", memory, cpus)
    vm.set_cpuid(cpuid.shape(vm.supported_cpuid(), cpuid.Topology(cores=cpus)))
    vcpu = vm.create_vcpu(0)
    vcpu.set_apic_mode(apic)
    start = _ORIGIN[mode] if org is None else org
    memory.write(start, image)
    enter_guest(vcpu, memory, mode, start)
    vm.memory_written(0, memory.low_size)
    guest = Guest(vm, vcpu, memory, software_kvm=hypervisor.name == "kvm" and not hypervisor.probe().accelerated)
    guest._watch()
    return guest


def enter_guest(vcpu: VirtualCpu, memory: GuestMemory, mode: Mode, start: int) -> None:
    registers = {Reg.RIP: start, Reg.RSP: _STACK[mode], Reg.RFLAGS: 2}
    data = [SegmentName.DS, SegmentName.ES, SegmentName.SS, SegmentName.FS, SegmentName.GS]
    if mode is Mode.REAL:
        vcpu.set_segment(SegmentName.CS, Segment(0, 0, 0xFFFF, _access(_CODE, Access.S)))
        for name in data:
            vcpu.set_segment(name, Segment(0, 0, 0xFFFF, _access(_DATA_KIND, Access.S)))
        vcpu.set_table("idtr", Table(0, 0x3FF))
        vcpu.set_registers({**registers, Reg.CR0: 0x10})
        return
    task = _write_tables(memory, mode)
    paging = {Reg.CR0: 0x11}
    if mode is Mode.LONG:  # PE, ET, NE, WP, PG; PAE, OSFXSR, OSXMMEXCPT; LME, LMA, NXE
        paging = {Reg.CR0: 0x80010031, Reg.CR3: TABLES, Reg.CR4: 0x620, Reg.EFER: 0xD00}
    vcpu.set_registers({**registers, **paging})
    vcpu.set_segment(SegmentName.CS, _code(mode))
    for name in data:
        vcpu.set_segment(name, _data())
    vcpu.set_segment(SegmentName.TR, task)
    vcpu.set_segment(SegmentName.LDTR, Segment(0, 0, 0, int(Access.UNUSABLE)))
    vcpu.set_table("gdtr", Table(GDT, 0x37))
    vcpu.set_table("idtr", Table(IDT, 0xFFF))
