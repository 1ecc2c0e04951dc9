"""A case: the whole state of a small machine, made from a seed.

Every aspect draws from a random stream of its own, so that a shrinker can switch one off (``Spec.off``) or leave
instructions out (``Spec.keep``) and all else stays as it was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

from pyhyve.memory import HIGH_BASE
from pyhyve.vmm.api import Point, PointKind
from pyhyve.vmm.registers import GENERAL, Reg, Segment, SegmentName, Table
from tests.vmm.soft.fuzz import instructions, world
from tests.vmm.soft.fuzz.tables import NX, PS, UNUSABLE, A, D, G, P, U, W, descriptor, dwords, gate, loaded, qwords

ASPECTS = (
    "thread", "events", "msrs", "vectors", "step", "wild", "entries", "descriptors", "filler", "handlers", "registers",
    "flags", "offset", "points", "breakpoints",
)  # fmt: skip
"""What a shrinker may switch off."""

MODES = {"real": 16, "v86": 16, "prot16": 16, "prot32": 32, "pae32": 32, "psd32": 32, "compat": 32, "long": 64}
"""Mode and the size of its code. prot32 has no paging, psd32 32-bit page tables, pae32 PAE."""
_WEIGHTS = (2, 1, 1, 2, 2, 2, 2, 6)
_DATA_SEGMENTS = (SegmentName.ES, SegmentName.SS, SegmentName.DS, SegmentName.FS, SegmentName.GS)


@dataclass(frozen=True, slots=True)
class Spec:
    """Which case: a seed, the aspects switched off, and the chunks kept (None: all)."""

    seed: int
    off: tuple[str, ...] = ()
    keep: tuple[int, ...] | None = None


@dataclass(slots=True)
class Case:
    """The state to set, and how to run."""

    spec: Spec
    mode: str
    flavour: str
    cpl: int
    chunks: list[bytes] = field(default_factory=list)
    pages: dict[int, bytes] = field(default_factory=dict)
    registers: dict[Reg, int] = field(default_factory=dict)
    segments: dict[SegmentName, Segment] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    msrs: dict[int, int] = field(default_factory=dict)
    xsave: bytes | None = None
    step: bool = False
    hlt_exit: bool = True
    thread: bool = False
    events: bool = False
    points: list[Point] = field(default_factory=list)

    def describe(self) -> str:
        """For people: the state and the code."""
        code = "\n".join(f"    {number:3}: {chunk.hex(' ')}" for number, chunk in enumerate(self.chunks))
        state = " ".join(f"{name}={value:#x}" for name, value in self.registers.items())
        segments = "\n".join(
            f"    {name}: {value.selector:#x} {value.base:#x} {value.limit:#x} {value.access:#x}"
            for name, value in self.segments.items()
        )
        return (
            f"seed {self.spec.seed} off {','.join(self.spec.off)} keep {self.spec.keep}\n"
            f"  mode {self.mode} cpl {self.cpl} flavour {self.flavour} step {self.step} thread {self.thread}\n"
            f"  {state}\n{segments}\n  code:\n{code}"
        )


_ENTRIES = (
    (world.PT, 8, 40),
    (world.PT32, 4, 40),
    (world.PD, 8, 8),
    (world.PDPT, 8, 4),
    (world.PML4, 8, 2),
    (world.PD32, 4, 8),
)
"""Tables, the size of their entries, and how many entries a case may spoil."""


@cache
def _page_tables() -> dict[int, bytes]:
    """The first 2 MiB by small pages; aliases of RAM, devices, the local APIC, and nothing, by large ones."""
    all_rights = P | W | U
    pages = [number << 12 | all_rights for number in range(1024)]
    large = [world.PT | all_rights, all_rights | PS, all_rights | PS | NX, HIGH_BASE | all_rights | PS, 0xFEE00000 | all_rights | PS,
             0, 0x2000 | all_rights | PS, world.PT | all_rights, P | PS]  # fmt: skip
    large += [number << 21 | all_rights | PS for number in range(len(large), 512)]
    huge = [number << 30 | all_rights | PS for number in range(512)]
    huge[0] = huge[2] = huge[510] = huge[511] = world.PD | all_rights
    huge[1] = all_rights | PS
    top = [0] * 512
    for index in (0, 1, 256, 511):
        top[index] = world.PDPT | all_rights
    top[2] = top[257] = world.PML4 | all_rights
    small = [world.PT32 | all_rights, all_rights | PS, 0xFEC00000 | all_rights | PS, 0]
    small += [number << 22 | all_rights | PS for number in range(4, 1024)]
    return {
        world.PML4: qwords(*top), world.PDPT: qwords(*huge), world.PD: qwords(*large), world.PT: qwords(*pages[:512]),
        world.PAE_PDPT: qwords(world.PD | P, world.PD | P, 0, world.PD | P),
        world.PD32: dwords(*small), world.PT32: dwords(*pages),
    }  # fmt: skip


@cache
def _vectors() -> bytes:
    """The vectors of real mode."""
    return dwords(*(world.HANDLERS >> 4 << 16 | 16 * vector for vector in range(256)))


class _Builder:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        rng = self.stream("mode")
        mode = rng.choices(list(MODES), _WEIGHTS)[0]
        flavour = rng.choice(list(instructions.MAKERS))
        cpl = {"real": 0, "v86": 3}.get(mode, rng.choice((0, 0, 0, 3, 3, 1, 2)))
        self.case = Case(spec, mode, flavour, cpl)
        self.bits = MODES[mode]
        self.long = mode in ("long", "compat")
        self.paging = self.long or mode in ("pae32", "psd32") or (mode == "v86" and rng.random() < 0.5)
        self.gdt: list[int] = []
        half = rng.choice((0, 0, world.HIGH_HALF, world.KERNEL_HALF)) if mode == "long" else 0
        self.half = half

    def stream(self, name: str) -> random.Random:
        return random.Random(f"{self.spec.seed} {name}")

    def on(self, aspect: str) -> bool:
        return aspect not in self.spec.off

    def build(self) -> Case:
        self.descriptors()
        self.interrupt_table()
        self.task_states()
        self.page_tables()
        self.state()
        self.code()
        self.extras()
        return self.case

    def put(self, gpa: int, data: bytes) -> None:
        self.case.pages[gpa] = data

    # Tables

    def descriptors(self) -> None:
        rng = self.stream("descriptors")
        long = self.long
        bit64 = int(self.case.mode == "long")
        wide = int(self.case.mode not in ("prot16", "long"))
        gdt = [0] * 64
        for dpl in range(4):
            gdt[1 + dpl] = descriptor(0, 0xFFFFF, 0x9B | dpl << 5, 8 | wide << 2 | bit64 << 1)
            gdt[5 + dpl] = descriptor(0, 0xFFFFF, 0x93 | dpl << 5, 8 | (self.case.mode != "prot16") << 2)
            gdt[9 + dpl] = descriptor(0, 0xFFFFF, 0x9B | dpl << 5, 0xA if long else 0xC)
        for slot in range(13, 32):
            if self.on("descriptors"):
                kind = rng.random()
                if kind < 0.3:
                    gdt[slot] = rng.getrandbits(64)
                elif kind < 0.7:
                    gdt[slot] = descriptor(rng.choice((0, 0, world.DATA, world.CODE)), rng.choice((0xFFFFF, 0xFFFF, 0xFFF, 0)),
                                           0x90 | rng.getrandbits(4) | rng.randrange(4) << 5, rng.randrange(16))  # fmt: skip
                else:
                    gdt[slot] = gdt[rng.randrange(1, 13)] ^ 1 << rng.randrange(64)
        gdt[32] = descriptor(world.LDT, 0xFF, 0x82)
        gdt[34] = descriptor(world.TSS, 0x67, 0x8B)
        gdt[36] = descriptor(world.TSS2, 0x67, 0x89)
        for slot in range(40, 56, 2):
            kind = rng.choice((0xC, 0xC, 4, 5, 0xE))
            target = rng.choice((1, 9, rng.randrange(40), 36 if kind == 5 else 1)) * 8
            gdt[slot] = gate(
                target, world.HANDLERS + rng.randrange(0x1000), kind, rng.choice((0, 3, 3)), 1, rng.choice((0, 0, 3))
            )
            gdt[slot + 1] = 0 if long else gdt[slot]
        self.gdt = gdt
        self.put(world.GDT, qwords(*gdt))
        ldt = list(gdt[:32])
        self.put(world.LDT, qwords(*ldt))

    def interrupt_table(self) -> None:
        rng = self.stream("idt")
        selector = (9 if self.long else 1) * 8
        gates = [
            gate(selector, world.HANDLERS + 16 * vector, 0xE | vector & 1, 3 * (vector & 1)) for vector in range(256)
        ]
        uppers = [0] * 256
        for _ in range(rng.randrange(60) if self.on("descriptors") else 0):
            vector = rng.choice((rng.randrange(20), rng.randrange(256)))
            kind = rng.choice((5, 6, 7, 0xE, 0xF, rng.randrange(32)))
            odd = rng.choice((selector, 36 * 8 if kind == 5 else rng.randrange(64) * 8, rng.getrandbits(16)))
            gates[vector] = gate(odd, world.HANDLERS + 16 * vector, kind, rng.choice((0, 3)), 1, rng.choice((0, 1, 7)))
            uppers[vector] = rng.choice((0, 0, rng.getrandbits(32)))
        pairs = [word for pair in zip(gates, uppers, strict=True) for word in pair] if self.long else gates
        self.put(world.IDT, qwords(*pairs))
        self.put(0, _vectors())

    def task_states(self) -> None:
        rng = self.stream("tss")
        if self.long:
            stacks = [rng.choice((world.STACKS + 0x2000, world.STACKS + 0x3008, world.STACKS_END)) for _ in range(11)]
            if self.on("wild") and rng.random() < 0.2:
                stacks[rng.randrange(11)] = rng.getrandbits(64)
            self.put(world.TSS, dwords(0) + qwords(*stacks) + bytes(8) + dwords(0x68 << 16))
        else:
            words = [
                0,
                world.STACKS + 0x3000,
                5 * 8,
                world.STACKS + 0x2000,
                6 * 8 | 1,
                world.STACKS + 0x2800,
                7 * 8 | 2,
            ]
            self.put(world.TSS, dwords(*words) + bytes(0x48) + dwords(0x68 << 16))
        registers = [rng.getrandbits(32) for _ in range(8)]
        registers[4] = world.STACKS + 0x5000
        selectors = [5 * 8, 1 * 8, 5 * 8, 5 * 8, 5 * 8, 5 * 8, 32 * 8]
        new = [
            world.PD32,
            world.HANDLERS + rng.randrange(0x100),
            rng.getrandbits(18) | 2,
            *registers,
            *selectors,
            0x68 << 16,
        ]
        self.put(world.TSS2, bytes(0x1C) + dwords(*new))

    def page_tables(self) -> None:
        rng = self.stream("entries")
        tables = {gpa: bytearray(data) for gpa, data in _page_tables().items()}
        if self.on("entries") and rng.random() < 0.5:
            for gpa, size, count in _ENTRIES:
                for _ in range(rng.randrange(count)):
                    at = size * rng.choice((rng.randrange(16), rng.randrange(4096 // size)))
                    value = int.from_bytes(tables[gpa][at : at + size], "little")
                    value ^= rng.choice((P, W, U, A, D, PS, G, NX, 1 << rng.randrange(64)))
                    value &= (1 << 8 * size) - 1
                    if gpa not in (world.PT, world.PT32) or not world.CODE <= at // size << 12 < world.CODE + 0x2000:
                        tables[gpa][at : at + size] = value.to_bytes(size, "little")
        for gpa, table in tables.items():
            self.put(gpa, bytes(table))

    # Registers

    def interesting(self, rng: random.Random) -> int:
        base = rng.choice((world.CODE, world.CODE, world.DATA, world.DATA, world.STACKS, world.PML4, world.GDT, 0xBFFF8, 0xC0000,
                           0xFEE00000, 0x200000, 0x400000, 0x600000, 0x40000000, HIGH_BASE, HIGH_BASE + 0xFFF8, 0xFFFFFFFF,
                           0x800000000000, 0x7FFFFFFFFFFF, world.HIGH_HALF, world.HIGH_HALF + world.CODE))  # fmt: skip
        return base + rng.choice((0, 0, -8, 0xFFC, 0xFFF, rng.randrange(-64, 0x4000)))

    def state(self) -> None:
        case, mode, cpl = self.case, self.case.mode, self.case.cpl
        rng = self.stream("registers")
        values = [
            rng.choice((self.interesting(rng), rng.getrandbits(64), rng.randrange(256), self.interesting(rng)))
            for _ in range(16)
        ]
        if not self.on("registers"):
            values = [world.DATA + 0x100 * i for i in range(16)]
        values[4] = (
            rng.choice((world.STACKS + 0x4000, world.STACKS + 0x4000, world.STACKS + 0x4FFC, world.STACKS + 0x1003))
            + self.half
        )
        rng = self.stream("flags")
        flags = 2
        if self.on("flags"):
            flags |= (
                rng.getrandbits(12) & 0xED5
                | rng.choice((0, 0x3000))
                | rng.choice((0, 0, 0, 0x100))
                | rng.choice((0, 0, 0x40000))
            )
            flags |= rng.choice((0,) * 9 + (0x4000,))
        if mode == "v86":
            flags |= 0x20000 | rng.choice((0, 0x3000)) | rng.choice((0, 0, 0x80000, 0x100000))
        cr0 = 0x10 | (mode != "real") | (0x80000000 if self.paging else 0)
        cr4 = 0x600 | (0x20 if self.long or mode == "pae32" else 0)
        efer = 0xD00 if self.long else 0
        if self.on("flags"):
            cr0 |= rng.choice((0, 0x10000, 0x10000, 0x1002E)) | rng.choice((0, 0, 0, 8, 4, 0x40000))
            cr4 |= rng.choice((0x10, 0x90)) | rng.choice((0, 0x40000)) | rng.choice((0, 0, 0x800, 0x10000, 4))
            cr4 ^= rng.choice((0, 0, 0, 0x200, 0x100000, 0x200000)) | rng.choice((0, 0, 1, 2, 3))
            efer |= rng.choice((0, 1, 0x800))
        cr3 = world.PML4 if self.long else world.PAE_PDPT if cr4 & 0x20 else world.PD32
        case.registers = dict(zip(GENERAL, (value & 0xFFFFFFFFFFFFFFFF for value in values), strict=True))
        case.registers |= {Reg.RFLAGS: flags, Reg.CR0: cr0, Reg.CR3: cr3, Reg.CR4: cr4, Reg.EFER: efer}
        case.registers[Reg.XCR0] = rng.choice((1, 3, 7, 7, 0xE7, 0xE7))
        if self.on("flags") and rng.random() < 0.1:
            case.registers |= {Reg.DR0: world.DATA, Reg.DR1: world.CODE, Reg.DR7: rng.getrandbits(32)}
        case.tables = {"gdtr": Table(world.GDT + self.half, 0x1FF), "idtr": Table(world.IDT + self.half, 0xFFF)}
        self.segment_registers(cpl)
        self.wild_state()

    def segment_registers(self, cpl: int) -> None:
        case, rng = self.case, self.stream("segments")
        if case.mode in ("real", "v86"):
            access = 0xF3 if case.mode == "v86" else 0x93
            places = (world.CODE, world.STACKS, world.DATA, 0, 0xB8000)
            for name in _DATA_SEGMENTS:
                base = world.STACKS if name == SegmentName.SS else rng.choice(places)
                case.segments[name] = Segment(base >> 4, base, 0xFFFF, access)
            case.segments[SegmentName.CS] = Segment(world.CODE >> 4, world.CODE, 0xFFFF, access)
            case.registers[Reg.RSP] -= world.STACKS
            case.tables["idtr"] = Table(
                0 if case.mode == "real" else world.IDT, 0x3FF if case.mode == "real" else 0xFFF
            )
        else:
            for name in _DATA_SEGMENTS:
                case.segments[name] = loaded(self.gdt[5 + cpl], (5 + cpl) * 8 | cpl)
                if name != SegmentName.SS and rng.random() < 0.15:
                    case.segments[name] = UNUSABLE
            case.segments[SegmentName.CS] = loaded(self.gdt[1 + cpl], (1 + cpl) * 8 | cpl)
        case.segments[SegmentName.TR] = loaded(self.gdt[34], 34 * 8)
        case.segments[SegmentName.LDTR] = loaded(self.gdt[32], 32 * 8)

    def wild_state(self) -> None:
        """States that no sequence of instructions leads to, or hardly one."""
        case, rng = self.case, self.stream("wild")
        if not self.on("wild") or rng.random() > 0.1:
            return
        kind = rng.randrange(5)
        if kind == 0:
            name = rng.choice(list(SegmentName))
            base = rng.choice((0, 0, world.DATA, rng.getrandbits(32), rng.getrandbits(64)))
            case.segments[name] = Segment(rng.getrandbits(16), base, rng.getrandbits(32), rng.getrandbits(17))
        elif kind == 1:
            case.registers[rng.choice((Reg.CR0, Reg.CR4, Reg.EFER))] ^= 1 << rng.randrange(32)
        elif kind == 2:
            case.tables[rng.choice(("gdtr", "idtr"))] = Table(rng.getrandbits(64), rng.getrandbits(16))
        elif kind == 3:
            case.registers[Reg.CR3] = rng.choice(
                (rng.getrandbits(40), rng.getrandbits(64), 0xBF000, 0xC0000, 0x100000000)
            )
        else:
            case.registers[rng.choice(list(Reg))] = rng.getrandbits(64)

    # Code

    def code(self) -> None:
        case = self.case
        rng = self.stream("offset")
        offset = rng.choice((0, 0x80, 0xFE0, 0xFF8, 0xFFF, rng.randrange(0x1000))) if self.on("offset") else 0
        start = world.CODE + offset
        base = world.CODE if self.bits == 16 and case.mode in ("real", "v86") else 0
        targets = (start, start, world.CODE + 0x1000, world.DATA, world.DATA + 0xFF0, world.STACKS + 0x4000, 0x200000 + start,
                   0xBFFF0, world.HANDLERS, 0xFEE00000)  # fmt: skip
        rng = self.stream("code")
        selectors = [
            8 * slot | rpl
            for slot in (*range(1, 16), 20, 25, 32, 34, 36, *range(40, 56, 2), 0, 63)
            for rpl in (0, 3, 4)
        ]
        count = rng.randint(1, 24)
        chunks = []
        at = start
        for number in range(count):
            chunk_rng = random.Random(f"{self.spec.seed} chunk {number}")
            place = instructions.Place(self.bits, at + self.half if self.bits == 64 else at - base, start + 256, tuple(
                target + self.half if self.half else target - base for target in targets), tuple(selectors))  # fmt: skip
            chunk = instructions.make(chunk_rng, case.flavour, place)
            if self.spec.keep is None or number in self.spec.keep:
                chunks.append(chunk)
                at += len(chunk)
        case.chunks = chunks
        image = b"".join(chunks)
        rng = self.stream("filler")
        tail = world.CODE_SIZE - offset - len(image)
        if not self.on("filler") or rng.random() < 0.5:
            filler = b"\xf4" * tail
        elif self.bits != 16 and rng.random() < 0.5:
            filler = b"\xf4" * 64 + bytes(tail - 64)
        else:
            filler = rng.randbytes(tail)
        self.put(world.CODE, b"\xf4" * offset + image + filler)
        case.registers[Reg.RIP] = start + self.half - base
        self.handlers()
        rng = self.stream("data")
        self.put(world.DATA, rng.randbytes(0x3000))
        self.put(
            world.STACKS, rng.randbytes(world.STACKS_END - world.STACKS) if rng.random() < 0.5 else self.frames(rng)
        )

    def frames(self, rng: random.Random) -> bytes:
        """A stack full of what RET, RETF and IRET may like."""
        values = (
            world.CODE + self.half,
            world.HANDLERS,
            1 * 8,
            4 * 8 | 3,
            8 * 8 | 3,
            5 * 8,
            0x202,
            0x20202,
            world.STACKS + 0x4000,
        )
        make = qwords if self.bits == 64 else dwords
        size = 8 if self.bits == 64 else 4
        page = make(*rng.choices(values, k=4096 // size))
        return page * ((world.STACKS_END - world.STACKS) // 4096)

    def handlers(self) -> None:
        rng = self.stream("handlers")
        iret = b"\x48\xcf" if self.long else b"\xcf"
        choices = [b"\xf4", iret, b"\x48\xff\x04\x24" + iret if self.long else b"\x58\xcf", b"\x83\xc4\x04" + b"\xcf"]
        slots = [body.ljust(16, b"\xf4") for body in choices]
        if self.on("handlers"):
            slots += [rng.randbytes(16), rng.randbytes(16)]
        self.put(world.HANDLERS, b"".join(rng.choices(slots, k=0x200)))

    # The rest

    def extras(self) -> None:
        case, rng = self.case, self.stream("extras")
        case.thread = self.on("thread") and rng.random() < 0.15
        case.events = self.on("events") and rng.random() < 0.5
        case.step = self.on("step") and rng.random() < 0.2
        case.hlt_exit = rng.random() < 0.97
        rng = self.stream("msrs")
        if self.on("msrs"):
            case.msrs = {0xC0000081: (9 * 8 | 3) << 48 | 1 * 8 << 32, 0xC0000082: world.HANDLERS, 0x174: 1 * 8,
                         0x175: world.STACKS + 0x3000, 0x176: world.HANDLERS, 0xC0000084: rng.getrandbits(22)}  # fmt: skip
            if rng.random() < 0.5:
                case.msrs |= {0xC0000100: self.interesting(rng), 0xC0000101: self.interesting(rng)}
        rng = self.stream("vectors")
        if self.on("vectors"):
            image = bytearray(rng.randbytes(832))
            image[0:2] = rng.choice((b"\x7f\x03", b"\x40\x03", rng.randbytes(2)))
            image[24:32] = dwords(rng.choice((0x1F80, 0x1F80, rng.getrandbits(16))), 0)
            image[512:576] = bytes([rng.randrange(8)]) + bytes(63)
            case.xsave = bytes(image)
        rng = self.stream("points")
        if self.on("points") and rng.random() < 0.3:
            case.points = [self.point(rng) for _ in range(rng.choice((1, 3, 20)))]
        rng = self.stream("breakpoints")
        if self.on("breakpoints") and rng.random() < 0.3:
            kinds = rng.getrandbits(32)
            case.registers |= {reg: self.point(rng).gva for reg in (Reg.DR0, Reg.DR1, Reg.DR2, Reg.DR3)}
            case.registers[Reg.DR7] = kinds if rng.random() < 0.7 else 0x401

    def point(self, rng: random.Random) -> Point:
        """Somewhere in the code, in the stack, or where a register may lead to."""
        place = rng.choice(
            (world.CODE, world.CODE, world.HANDLERS, world.STACKS + 0x4000, world.DATA, world.TSS, world.IDT)
        )
        start = self.case.registers[Reg.RIP] + rng.randrange(64)
        gva = rng.choice((start, place + self.half + rng.randrange(-32, 0x100), self.interesting(rng)))
        return Point(rng.choice(list(PointKind)), gva & 0xFFFFFFFFFFFFFFFF, rng.choice((1, 1, 2, 4, 8, 8, 4096)))


def build(spec: Spec) -> Case:
    """The case that ``spec`` names."""
    return _Builder(spec).build()
