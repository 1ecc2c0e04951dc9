"""The ground a scenario stands on: page tables, descriptors, gates, tasks, stacks and registers of one mode.

    0x00000  real-mode vectors                       0x20000  stacks and data, eight pages
    0x01000  PML4, PDPT, PD, PT; PAE PDPT; 32-bit PD, PT; then a second PDPT, PD, PT for the paging family
    0x0B000  stacks of 16-bit tasks                  0x80000  code, 16 bytes a case, never used twice
    0x0C000  handlers: NOPs, in reach of 16 bits
    0x10000  GDT, LDT, IDT, TSS, another TSS

Linear addresses are physical below 2 MiB, and the same again from ``HIGH`` on in long mode. Descriptors 1-4 are code
and 5-8 data for privilege levels 0-3, 9-12 code of long mode's 64-bit kind where the mode has both; others are random.
"""

from __future__ import annotations

import random
import struct
from functools import cache

from tests.vmm.soft.bochs.state import CONTROL, GENERAL, MSRS, SEGMENTS, UNUSABLE, Descriptor, State
from tests.vmm.soft.fuzz.tables import A, D, P, U, W, descriptor, dwords, gate, loaded, qwords

SIZE = 2 << 20
PML4, PDPT, PD, PT, PAE_PDPT, PD32, PT32, PDPT2, PD2, PT2 = range(0x1000, 0xB000, 0x1000)
LOW_STACK = 0xB000
HANDLERS, HANDLERS_SIZE = 0xC000, 0x4000
GDT, LDT, IDT, TSS, TSS2 = 0x10000, 0x11000, 0x12000, 0x14000, 0x15000
STACKS, STACKS_SIZE = 0x20000, 0x8000
CODE, CODE_SLOT = 0x80000, 16
SLOTS = 0x3FFF
APIC = 0xFEE00000
HIGH = 0xFFFF800000000000
ALL = P | W | U

GATES = 64
"""Vectors with gates of their own; those from here on have the same again."""

LONG, COMPAT, PROT32, PROT16, V86, REAL = "long compat prot32 prot16 v86 real".split()
MODES = (LONG, COMPAT, PROT32, PROT16, V86, REAL)


@cache
def _still_pages() -> dict[int, bytes]:
    """Pages that look the same at the start of every scenario."""
    pages = {
        0: dwords(*(HANDLERS + 16 * vector for vector in range(256))).ljust(4096, b"\0"),
        PML4: bytearray(4096),
        PDPT: qwords(PD | ALL | A).ljust(4096, b"\0"), PD: qwords(PT | ALL | A).ljust(4096, b"\0"),
        PAE_PDPT: qwords(PD | P).ljust(4096, b"\0"), PD32: dwords(PT32 | ALL | A).ljust(4096, b"\0"),
        PT: qwords(*(page << 12 | ALL | _accessed(page) for page in range(512))),
        PT32: dwords(*(page << 12 | ALL | _accessed(page) for page in range(512))).ljust(4096, b"\0"),
        PDPT2: bytes(4096), PD2: bytes(4096), PT2: bytes(4096), LOW_STACK: bytes(4096),
        **{HANDLERS + offset: b"\x90" * 4096 for offset in range(0, HANDLERS_SIZE, 4096)},
    }  # fmt: skip
    for index in (0, 256):
        struct.pack_into("<Q", pages[PML4], 8 * index, PDPT | ALL | A)
    return {gpa: bytes(data) for gpa, data in pages.items()}


def _accessed(page: int) -> int:
    """Code is accessed beforehand: how far a processor fetches ahead is its own affair."""
    return A if HANDLERS >> 12 <= page < GDT >> 12 or page >= CODE >> 12 else 0


class Ground:
    """One state under construction. ``rng`` is the scenario's only source of chance."""

    def __init__(self, rng: random.Random, slot: int, modes: tuple[str, ...] = MODES) -> None:
        self.rng = rng
        self.mode = rng.choice(modes)
        self.long = self.mode in (LONG, COMPAT)
        self.paging = self.long or (self.mode != REAL and rng.random() < 0.5)
        self.pae = self.long or (self.paging and rng.random() < 0.5)
        self.cpl = {REAL: 0, V86: 3}.get(self.mode, rng.choice((0, 0, 0, 3, 3, 3, 1, 2)))
        self.high = HIGH if self.mode == LONG and rng.random() < 0.3 else 0
        self.bits = {LONG: 64, COMPAT: 32, PROT32: 32}.get(self.mode, 16)
        self.slot = CODE + CODE_SLOT * slot
        self.code = b"\x90"
        self.pages = {gpa: bytearray(data) for gpa, data in _still_pages().items()}
        self.stack = bytearray(rng.randbytes(STACKS_SIZE))
        self.registers = dict.fromkeys((*GENERAL, *CONTROL, *MSRS), 0)
        self.segments: dict[str, Descriptor] = dict.fromkeys(SEGMENTS, UNUSABLE)
        self.tables: dict[str, tuple[int, int]] = {}
        self.steps = 1
        self.leaves_traps = False
        self._descriptors()
        self._gates()
        self._tasks()
        self._control()
        self._registers()

    def one_of(self, *values: int) -> int:
        """Any of them."""
        return self.rng.choice(values)

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.rng.random() < probability

    # Descriptors

    def code_descriptor(self, dpl: int, long: int, big: int, *, odd: bool = False) -> int:
        """A flat code segment; an odd one may be conforming, absent, small or unreadable."""
        access = 0x9A | dpl << 5 | self.chance(0.7)
        small = odd and self.chance(0.15)
        if odd:
            access ^= 4 * self.chance(0.25) | 0x80 * self.chance(0.1) | 2 * self.chance(0.3)
        return descriptor(0, 0xFFFF if small else 0xFFFFF, access, (0 if small else 8) | big << 2 | long << 1)

    def data_descriptor(self, dpl: int, big: int = 1, *, odd: bool = False) -> int:
        """A flat data segment; an odd one may be absent, read-only, expand-down, small or elsewhere."""
        access = 0x92 | dpl << 5 | self.chance(0.7)
        base, limit, granular = 0, 0xFFFFF, 8
        if odd:
            access ^= 0x80 * self.chance(0.1) | 2 * self.chance(0.2)
            base = self.one_of(0, 0, 0x100)
            big = int(self.chance(0.8))
            if self.chance(0.2):
                access |= 4
                limit = self.one_of(0x0F, 0x1F, 0x20)
            elif self.chance(0.3):
                limit, granular = self.one_of(0xFFFF, 0x2FFFF, 0x27FFF), 0
        return descriptor(base, limit, access, granular | big << 2)

    def _descriptors(self) -> None:
        rng, long = self.rng, self.long
        gdt = [0] * 64
        for slot in range(13, 32):
            kind, dpl = rng.random(), self.one_of(0, 0, 0, 3, 3, 1, 2)
            if kind < 0.45:
                wide = int(self.chance(0.6 if long else 0.1))
                gdt[slot] = self.code_descriptor(dpl, wide, int(self.chance(0.1 if wide else 0.7)), odd=True)
            elif kind < 0.8:
                gdt[slot] = self.data_descriptor(dpl, odd=True)
            else:
                gdt[slot] = rng.getrandbits(64) & ~(0xFFF << 52) & ~(0xF << 36) | rng.getrandbits(4) << 52
        for dpl in range(4):
            gdt[1 + dpl] = self.code_descriptor(dpl, int(self.mode == LONG), int(self.mode not in (LONG, PROT16)))
            gdt[5 + dpl] = self.data_descriptor(dpl, int(self.mode != PROT16))
            gdt[9 + dpl] = self.code_descriptor(dpl, int(long and self.chance(0.8)), int(not long))
        self.gdt = gdt
        self._system(
            32, descriptor(LDT, 0x3F, 0x82 | self.one_of(0, 0, 0x60)), self.one_of(0, 0, 0, rng.getrandbits(64))
        )
        self.tss_kind = self.one_of(9, 9, 0xB, 9 if long else 1, 9 if long else 3)
        self._system(34, descriptor(TSS, self.one_of(0x67, 0x67, 0x67, 0x30), 0x80 | self.tss_kind), self.high >> 32)
        self._system(36, descriptor(TSS2, 0x67, 0x80 | self.one_of(9, 0xB, 1) | self.one_of(0, 0x60)))
        for slot in range(38, 48, 2):
            kind = self.one_of(*((0xC,) * 6 if long else (0xC, 0xC, 0xC, 4)), 4, 5, 0xE, self.one_of(0, 8, 10, 13))
            target = self.one_of(rng.randrange(1, 13), rng.randrange(1, 13), rng.randrange(40)) * 8 | self.one_of(0, 3)
            if kind == 5:
                target = self.one_of(34, 36, 36) * 8
            value = gate(
                target, self.handler(), kind, self.one_of(0, 3, 3), int(self.chance(0.9)), self.one_of(0, 0, 1, 3, 31)
            )
            self._system(slot, value, self.high >> 32 if self.chance(0.9) else rng.getrandbits(64))
        self.pages[GDT] = bytearray(qwords(*gdt).ljust(4096, b"\0"))
        ldt = []
        for _ in range(8):
            dpl = self.one_of(0, 3, self.cpl)
            big = int(not long)
            ldt.append(
                self.code_descriptor(dpl, int(long and self.chance(0.5)), big)
                if self.chance(0.5)
                else self.data_descriptor(dpl)
            )
        self.pages[LDT] = bytearray(qwords(*ldt).ljust(4096, b"\0"))
        self.tables["gdtr"] = (GDT | self.high, self.one_of(0x1FF, 0x1FF, 0x1FF, 0x17F, 0xFF))

    def _system(self, slot: int, value: int, upper: int = 0) -> None:
        self.gdt[slot] = value
        if self.long:
            self.gdt[slot + 1] = upper

    def handler(self) -> int:
        """An address at which a NOP is."""
        return HANDLERS + self.rng.randrange(HANDLERS_SIZE - 16)

    def _gates(self) -> None:
        idt = bytearray()
        strange = self.one_of(0, 0, 10, 60)
        for vector in range(GATES):
            selector = (9 if self.mode == COMPAT or (self.mode == LONG and self.chance(0.5)) else 1) * 8
            kind, dpl, present, count, upper = (
                self.one_of(0xE, 0xF),
                self.one_of(0, 3, 3),
                1,
                self.one_of(0, 0, 1, 2),
                self.high,
            )
            if vector != 8 and self.rng.randrange(100) < strange:
                selector = self.one_of(8, 8, 72, 8 * self.rng.randrange(16), 8 * self.rng.randrange(40)) | self.one_of(
                    0, 0, 0, 3, 4
                )
                kinds = (0xE, 0xF, 0xE, 0xF, 6, 5) if self.long else (0xE, 0xE, 0xF, 6, 7, 5)
                kind = self.one_of(*kinds)
                if kind == 5:
                    selector = self.one_of(34, 36, 36, 36) * 8
                dpl, present, count = (
                    self.one_of(0, 3, 3, self.cpl),
                    int(self.chance(0.93)),
                    self.one_of(0, 0, 0, 1, 7, 3),
                )
                upper = upper if self.chance(0.95) else self.rng.getrandbits(64)
            idt += qwords(gate(selector, HANDLERS + 16 * vector, kind, dpl, present, count))
            if self.long:
                idt += qwords(upper >> 32)
        self.pages[IDT] = (idt * (256 // GATES))[:4096].ljust(4096, b"\0")
        limit = self.one_of(*(0xFFF,) * 6, 0x1FF, 0x1FF, 0x7F)
        self.tables["idtr"] = (IDT | self.high, limit)
        if self.mode == REAL:
            self.tables["idtr"] = (0, self.one_of(0x3FF, 0x3FF, 0x3FF, 0x7F))

    def stack_top(self, *, near: bool = False) -> int:
        """A good top for a stack that an interrupt switches to; a ``near`` one is in reach of 16 bits."""
        if near or self.mode == PROT16:
            return LOW_STACK + self.one_of(0x800, 0xFF8, 0x7FC, 0x10)
        return STACKS + 0x1000 * self.rng.randrange(1, 7) + self.one_of(0x800, 0x800, 0x7FC, 0xFF8, 0x10, 8, 4)

    def _tasks(self) -> None:
        rng = self.rng
        if self.long:
            tops = [self.stack_top() | self.high for _ in range(11)]
            tops[3] = 0
            if self.chance(0.1):
                tops[rng.randrange(11)] = self.one_of(rng.getrandbits(64), 0x800000000000, 0x800000000008, HIGH)
            task = dwords(0) + qwords(*tops)
        elif self.tss_kind in (1, 3):
            words = [0]
            for level in range(3):
                words += [self.stack_top(near=True), self.task_stack(level)]
            task = b"".join(struct.pack("<H", word & 0xFFFF) for word in words)
        else:
            words = [0]
            for level in range(3):
                words += [self.stack_top(), self.task_stack(level)]
            task = dwords(*words)
        self.pages[TSS] = bytearray(task.ljust(4096, b"\0"))
        struct.pack_into("<I", self.pages[TSS], 0x64, 0x68 << 16)
        if not self.long:
            struct.pack_into("<H", self.pages[TSS], 0, self.one_of(36 * 8, 36 * 8, 34 * 8, rng.getrandbits(16)))
        self._other_task()

    def task_stack(self, level: int) -> int:
        """A stack selector of a TSS."""
        return (5 + level) * 8 | level if self.chance(0.9) else self.any_selector()

    def _other_task(self) -> None:
        level = self.one_of(0, 0, 3, self.cpl)
        eip, flags = self.handler(), self.rng.getrandbits(12) & 0xED5 | 2 | self.one_of(0, 0, 0, 0x20000)
        registers = [self.rng.getrandbits(32) for _ in range(8)]
        registers[4] = self.stack_top()
        good = self.chance(0.7)
        code, data = (1 + level) * 8 | level, (5 + level) * 8 | level
        names = [data, code, data, data, data, data, self.one_of(0, 32 * 8)]
        if not good:
            names[self.rng.randrange(7)] = self.any_selector()
        if (self.gdt[36] >> 40 & 0xF) in (1, 3):
            registers[4] = self.stack_top(near=True)
            values = [eip & 0xFFFF, flags & 0xFFFF, *(value & 0xFFFF for value in registers), *names[:4], names[6]]
            task = bytes(14) + b"".join(struct.pack("<H", value) for value in values)
        else:
            cr3 = PAE_PDPT if self.pae else PD32
            task = bytes(0x1C) + dwords(cr3, eip, flags, *registers, *names, 0x68 << 16)
        self.pages[TSS2] = bytearray(task.ljust(4096, b"\0"))
        struct.pack_into("<H", self.pages[TSS2], 0, self.one_of(34 * 8, self.rng.getrandbits(16)))

    # Registers

    def any_selector(self) -> int:
        """A selector that is likely to name something, with any RPL and table."""
        slot = self.one_of(
            self.rng.randrange(13), self.rng.randrange(13), self.rng.randrange(48), self.rng.randrange(30, 50)
        )
        return slot * 8 | self.one_of(0, self.cpl, 3, 4, 4 | self.cpl, self.rng.randrange(8))

    def _control(self) -> None:
        r, rng = self.registers, self.rng
        r["cr0"] = 0x10 | (self.mode != REAL) | self.one_of(0, 0x10000) | (0x80000000 if self.paging else 0)
        r["cr4"] = (0x20 if self.pae else 0) | self.one_of(0, 0x10) | self.one_of(0, 0, 0, 0x800)
        r["efer"] = self.one_of(1, 1, 0) | (0x500 if self.long else 0) | self.one_of(0, 0x800)
        if self.paging:
            r["cr3"] = PML4 if self.long else PAE_PDPT if self.pae else PD32
        flags = 2 | rng.getrandbits(12) & 0xCD5 | self.one_of(0, 0x3000, 0x1000) | self.one_of(0, 0x200)
        flags |= 0x4000 * self.chance(0.1)
        if self.mode == V86:
            flags |= 0x20000 | self.one_of(0x3000, 0x3000, 0)
        r["rflags"] = flags & ~0x100
        r["xcr0"] = 1
        r["dr6"], r["dr7"] = 0xFFFF0FF0, 0x400
        r["star"] = rng.getrandbits(64)
        r["lstar"], r["cstar"] = self.handler() | self.high, self.handler()
        r["sfmask"] = rng.getrandbits(22)
        r["kernel_gs_base"] = rng.getrandbits(40)
        r["sysenter_cs"] = self.one_of(0, 8, rng.getrandbits(16))
        r["sysenter_esp"], r["sysenter_eip"] = self.stack_top(), self.handler()

    def _registers(self) -> None:
        rng, r = self.rng, self.registers
        for name in GENERAL:
            r[name] = rng.getrandbits(64 if self.mode == LONG else 32)
        self.sp = (
            STACKS
            + 0x1000 * rng.randrange(1, 7)
            + self.one_of(0x800, 0x800, 0x7FC, 0xFF0, 0xFF8, 0xFFE, 0xFFC, 0x20, 0x10, 8, 4, 0)
        )
        self.data = STACKS + 0x7000 + self.one_of(0x100, 0x100, 0xFF0, 0xFF8, 0xFFA)
        segments = self.segments
        if self.mode in (REAL, V86):
            access = 0xF3 if self.mode == V86 else 0x93
            for name in ("es", "fs", "gs"):
                selector = rng.getrandbits(12)
                segments[name] = (selector, selector << 4, 0xFFFF, access)
            segments["ss"] = segments["ds"] = (STACKS >> 4, STACKS, 0xFFFF, access)
            # Code lies beyond what a selector reaches in 16-bit offsets only together with its own base.
            segments["cs"] = ((self.slot & ~0xFFFF) >> 4, self.slot & ~0xFFFF, 0xFFFF, access)
            self.base = STACKS
        else:
            level = self.cpl
            segments["cs"] = self.from_gdt(1 + level, level)
            segments["ss"] = self.from_gdt(5 + level, level)
            for name in ("es", "ds", "fs", "gs"):
                segments[name] = self.from_gdt(5 + self.one_of(level, 3), 3) if self.chance(0.8) else UNUSABLE
            if self.mode != LONG:
                segments["ds"] = self.from_gdt(8, 3)
            self.base = 0
            if self.mode == PROT16:
                segments["ss"] = (segments["ss"][0], STACKS, 0xFFFFFFFF, segments["ss"][3])
                segments["cs"] = (segments["cs"][0], self.slot & ~0xFFFF, *segments["cs"][2:])
        stack_base = segments["ss"][1] if self.mode != LONG else 0
        r["rsp"] = self.sp - stack_base | self.high
        if self.mode in (REAL, V86):
            r["rsp"] |= rng.getrandbits(16) << 16
        r["rbx"] = self.data - self.base | self.high
        r["rip"] = self.slot - (segments["cs"][1] if self.mode != LONG else 0) | self.high
        segments["ldtr"] = (32 * 8, LDT, 0x3F, 0x82) if self.chance(0.8) else UNUSABLE
        limit = self.one_of(0x67, 0x67, 0x67, 0x30) if not self.long else self.one_of(0x67, 0x67, 0x67, 0x2B)
        segments["tr"] = (34 * 8, TSS | self.high, limit, 0x80 | self.tss_kind | 2)

    def from_gdt(self, slot: int, rpl: int) -> Descriptor:
        """What a segment register holds after a load of this descriptor."""
        segment = loaded(self.gdt[slot] | 1 << 40, slot * 8 | rpl)
        return segment.selector, segment.base, segment.limit, segment.access

    # Memory

    def push(self, size: int, *values: int) -> None:
        """Put values at the top of the stack, the first lowest."""
        at = self.sp - STACKS
        for value in values:
            self.stack[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            at += size
        del self.stack[STACKS_SIZE:]

    def at_data(self, data: bytes) -> None:
        """Put bytes where EBX points."""
        at = self.data - STACKS
        self.stack[at : at + len(data)] = data
        del self.stack[STACKS_SIZE:]

    def map_apic(self) -> None:
        """Map the local APIC's page where it is in physical memory, for privilege level 0 to 3."""
        entry, third, second, first = ALL | A | D, APIC >> 30, APIC >> 21 & 511, APIC >> 12 & 511
        if self.pae:
            directory = PDPT if self.long else PAE_PDPT
            struct.pack_into("<Q", self.pages[directory], 8 * third, PD2 | (entry if self.long else P))
            struct.pack_into("<Q", self.pages[PD2], 8 * second, PT2 | entry)
            struct.pack_into("<Q", self.pages[PT2], 8 * first, APIC | entry)
        else:
            struct.pack_into("<I", self.pages[PD32], 4 * (APIC >> 22), PT2 | entry)
            struct.pack_into("<I", self.pages[PT2], 4 * (APIC >> 12 & 1023), APIC | entry)

    def spoil_pages(self) -> None:
        """Take rights from stack and table pages."""
        if not self.paging:
            return
        for _ in range(self.one_of(1, 2)):
            page = self.one_of(*(STACKS + 0x1000 * i >> 12 for i in range(8)), GDT >> 12, TSS >> 12, IDT >> 12)
            bits = self.one_of(6, 5, 3, 1, 0)
            if page in (GDT >> 12, TSS >> 12, IDT >> 12):
                bits = self.one_of(5, 3, 6)
            struct.pack_into("<Q", self.pages[PT], 8 * page, page << 12 | bits)
            struct.pack_into("<I", self.pages[PT32], 4 * page, page << 12 | bits)

    def finish(self) -> State:
        """The state, complete."""
        pages = {gpa: bytes(data) for gpa, data in self.pages.items()}
        for offset in range(0, STACKS_SIZE, 4096):
            pages[STACKS + offset] = bytes(self.stack[offset : offset + 4096])
        self.pages = {}
        return State(self.registers, self.segments, self.tables, pages, self.steps, self.leaves_traps)
