"""INST_EMUL: an instruction on device memory does what it does on RAM.

The same instruction runs twice, on a cell of RAM and on a cell that nobody maps, whose accesses come as exits and are
answered from a copy of the cell. Registers, defined flags and the cell must come out the same. No expectation is
written down: the CPU's own behaviour on RAM is it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pyhyve.vmm.api import Hypervisor
from pyhyve.vmm.exits import Bogus, InstEmul, InstEmulFailed, Suspended
from pyhyve.vmm.registers import Reg
from tests.guests import DEVICE, END, Guest, assemble, boot_guest, is_end

ORIGIN, SLOT = 0x10000, 256
RESULTS, RESULT = 0x400000, 64
CELLS, CELL = 0x600000, 64
SCRATCH = 0x700000
PATTERN = bytes((17 * n + 0x81) & 0xFF for n in range(CELL))

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL = CF | PF | AF | ZF | SF | OF
SIZES = {"b": "%al", "w": "%ax", "l": "%eax", "q": "%rax"}


@dataclass(frozen=True)
class Form:
    """``undefined`` are the flags that the manual leaves open (SDM Vol. 2, the instruction's page)."""

    text: str
    undefined: int = 0


def forms() -> Iterator[Form]:
    yield from moves()
    yield from arithmetic()
    yield from shifts_and_bits()
    yield from strings()
    yield from vectors()


def moves() -> Iterator[Form]:
    for suffix, reg in SIZES.items():
        yield Form(f"mov{suffix} (%rsi), {reg}")
        yield Form(f"mov{suffix} {reg}, (%rsi)")
        yield Form(f"mov{suffix} $0x5a, 3(%rsi)")
        yield Form(f"xchg{suffix} {reg}, (%rsi)")
        yield Form(f"xadd{suffix} {reg}, (%rsi)")
        yield Form(f"cmpxchg{suffix} {reg.replace('a', 'b')}, (%rsi)")
    for narrow, wide in ("bw", "bl", "bq", "wl", "wq"):
        reg = SIZES[wide].replace("a", "d")
        yield Form(f"movz{narrow}{wide} (%rsi), {reg}")
        yield Form(f"movs{narrow}{wide} 5(%rsi), {reg}")
    yield Form("movslq 4(%rsi), %rdx")
    yield Form("mov %ah, (%rsi)")
    yield Form("mov (%rsi), %dh")
    yield Form("movq $-2, 8(%rsi)")
    yield Form("mov (%rsi,%rcx,8), %rdx")
    yield Form("movnti %rax, 8(%rsi)")
    for condition in ("c", "nc", "z", "g"):
        yield Form(f"cmov{condition} (%rsi), %rdx")
        yield Form(f"set{condition} 7(%rsi)")
    yield Form("push (%rsi); pop %rdx")
    yield Form("push %rax; pop 8(%rsi)")
    yield Form("movbe (%rsi), %rdx")
    yield Form("movbe %eax, 4(%rsi)")


def arithmetic() -> Iterator[Form]:
    for name in ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"):
        undefined = AF if name in ("or", "and", "xor") else 0
        for suffix, reg in SIZES.items():
            yield Form(f"{name}{suffix} (%rsi), {reg}", undefined)
            yield Form(f"{name}{suffix} {reg}, (%rsi)", undefined)
            yield Form(f"{name}{suffix} $-0x13, (%rsi)", undefined)
        yield Form(f"{name}l $0x12345678, 4(%rsi)", undefined)
    for suffix, reg in SIZES.items():
        yield Form(f"test{suffix} {reg}, (%rsi)", AF)
        yield Form(f"test{suffix} $0x41, (%rsi)", AF)
        yield Form(f"not{suffix} (%rsi)")
        yield Form(f"neg{suffix} (%rsi)")
        yield Form(f"inc{suffix} (%rsi)")
        yield Form(f"dec{suffix} (%rsi)")
        yield Form(f"lock add{suffix} {reg}, (%rsi)")
        yield Form(f"mul{suffix} (%rsi)", PF | AF | ZF | SF)
        yield Form(f"imul{suffix} (%rsi)", PF | AF | ZF | SF)
        yield Form(f"xor %edx, %edx; mov $77, %eax; div{suffix} (%rsi)", ALL)
    yield Form("imul (%rsi), %rdx", PF | AF | ZF | SF)
    yield Form("imul $-7, (%rsi), %edx", PF | AF | ZF | SF)
    yield Form("lock xadd %rax, 8(%rsi)")
    yield Form("lock cmpxchg %rbx, (%rsi)")
    yield Form("mov (%rsi), %eax; mov 4(%rsi), %edx; cmpxchg8b (%rsi)")
    yield Form("adcx (%rsi), %rdx")
    yield Form("adox (%rsi), %rdx")


def shifts_and_bits() -> Iterator[Form]:
    for name in ("rol", "ror", "rcl", "rcr", "shl", "shr", "sar"):
        flags = AF if name in ("shl", "shr", "sar") else 0
        for suffix in SIZES:
            yield Form(f"{name}{suffix} $1, (%rsi)", flags)
            yield Form(f"{name}{suffix} $5, (%rsi)", flags | OF)
            yield Form(f"{name}{suffix} %cl, (%rsi)", flags | OF)
    yield Form("shld $4, %rax, (%rsi)", AF | OF)
    yield Form("shrd %cl, %eax, (%rsi)", AF | OF)
    for name in ("bt", "bts", "btr", "btc"):
        for suffix in "wlq":
            yield Form(f"{name}{suffix} $3, (%rsi)", OF | SF | AF | PF)
        yield Form(f"{name}l %ecx, (%rsi)", OF | SF | AF | PF)
        yield Form(f"mov $77, %edx; {name}l %edx, (%rsi)", OF | SF | AF | PF)
    yield Form("lock btsl $7, (%rsi)", OF | SF | AF | PF)
    yield Form("bsf (%rsi), %rdx", CF | OF | SF | AF | PF)
    yield Form("bsr (%rsi), %edx", CF | OF | SF | AF | PF)
    yield Form("popcnt (%rsi), %rdx")
    yield Form("bextr %rax, (%rsi), %rdx", AF | SF | PF)


def strings() -> Iterator[Form]:
    for suffix in SIZES:
        yield Form(f"mov %rsi, %rdi; stos{suffix}")
        yield Form(f"mov %rsi, %rdi; rep stos{suffix}")
        yield Form(f"lods{suffix}")
        yield Form(f"movs{suffix}")
        yield Form(f"rep movs{suffix}")
        yield Form(f"xchg %rsi, %rdi; rep movs{suffix}")
        yield Form(f"cmps{suffix}")
        yield Form(f"mov %rsi, %rdi; scas{suffix}")
        yield Form(f"mov %rsi, %rdi; repne scas{suffix}")
        yield Form(f"add $32, %rsi; std; rep movs{suffix}; cld")
    yield Form("mov %rsi, %rdi; add $32, %rdi; rep movsb")


def vectors() -> Iterator[Form]:
    yield Form("movups (%rsi), %xmm0; movq %xmm0, %rdx")
    yield Form("movq %rax, %xmm1; movups %xmm1, 16(%rsi)")
    yield Form("movsd (%rsi), %xmm0; movq %xmm0, %rdx")
    yield Form("movd %eax, %xmm0; movd %xmm0, (%rsi)")


FORMS = list(forms())


def program(cells: int) -> str:
    """Every form in a slot of its own, between known registers and a record of what came out."""
    parts = [".text"]
    for number, form in enumerate(FORMS):
        parts += [
            f".org {number * SLOT:#x}",
            f"movabs ${cells + number * CELL:#x}, %rsi; mov ${SCRATCH + number * CELL + 24:#x}, %edi",
            "movabs $0x1122334455667788, %rax; movabs $0x8899aabbccddeeff, %rbx; mov $3, %ecx",
            "movabs $0x0102030405060708, %rdx; pushq $3; popfq",
            form.text,
            f"pushfq; pop %r8; mov ${RESULTS + number * RESULT:#x}, %r9d",
            "mov %rax, (%r9); mov %rbx, 8(%r9); mov %rcx, 16(%r9); mov %rdx, 24(%r9); mov %r8, 32(%r9)",
            "mov %rsi, 40(%r9); mov %rdi, 48(%r9)",
            f"jmp slot{number + 1}" if number + 1 < len(FORMS) else f"out %al, ${END}",
        ]
        parts[-9] += f"\nslot{number}:"
    return "\n".join(parts) + "\n"


class Cells:
    """Answers accesses to device memory from a copy of the cells."""

    def __init__(self) -> None:
        self.data = bytearray(PATTERN * len(FORMS))
        self.touched: set[int] = set()

    def serve(self, exit_: InstEmul) -> int | None:
        offset = exit_.gpa - DEVICE
        self.touched.add(offset // CELL)
        if exit_.is_write:
            self.data[offset : offset + exit_.size] = exit_.value.to_bytes(exit_.size, "little")
            return None
        return int.from_bytes(self.data[offset : offset + exit_.size], "little")


@dataclass
class Record:
    """What a run left: the registers and the cell of each form, and where its string instructions copied to."""

    results: bytes
    cells: bytes
    scratch: bytes
    skipped: set[int]


def run(guest: Guest, cells: Cells | None) -> Record:
    """Run the forms to the end. Those that a KVM without hardware virtualization cannot emulate are left out."""
    guest.memory.write(CELLS, PATTERN * len(FORMS))
    skipped = set()
    while not is_end(found := guest.vcpu.run()):
        if isinstance(found, InstEmul):
            assert cells is not None, f"RAM exits: {found}"
            answer = cells.serve(found)
            if answer is not None:
                guest.vcpu.answer(answer)
        elif isinstance(found, (InstEmulFailed, Suspended)):  # it raises #UD, or does not know
            number = (guest.register(Reg.RIP) - ORIGIN) // SLOT
            assert guest.software_kvm, f"{FORMS[number].text}: {found}"
            skipped.add(number)
            guest.vcpu.set_registers({Reg.RIP: ORIGIN + (number + 1) * SLOT})
            if number + 1 == len(FORMS):
                break
        else:
            assert isinstance(found, Bogus), f"the guest stopped: {found}"
    count = len(FORMS)
    left = bytes(cells.data) if cells is not None else guest.memory.read(CELLS, count * CELL)
    return Record(guest.memory.read(RESULTS, count * RESULT), left, guest.memory.read(SCRATCH, count * CELL), skipped)


@pytest.fixture
def boot(hypervisor: Hypervisor) -> Iterator[Callable[[int], Guest]]:
    guests: list[Guest] = []

    def start(cells: int) -> Guest:
        guest = boot_guest(hypervisor, assemble(program(cells), ORIGIN))
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.close()


def outcome(record: Record, number: int, cells: int) -> tuple[object, ...]:
    """What a form did, with the address of its cell taken out."""
    rax, rbx, rcx, rdx, flags, *pointers = struct.unpack_from("<7Q", record.results, number * RESULT)
    here = cells + number * CELL
    distances = [p - here if abs(p - here) < CELL else p for p in pointers]
    flags &= ALL & ~FORMS[number].undefined
    cell = slice(number * CELL, (number + 1) * CELL)
    return rax, rbx, rcx, rdx, flags, distances, record.cells[cell], record.scratch[cell]


def test_instructions_do_on_device_memory_what_they_do_on_ram(boot: Callable[[int], Guest]) -> None:
    cells = Cells()
    device = run(boot(DEVICE), cells)
    ram = run(boot(CELLS), None)
    skipped = device.skipped | ram.skipped
    for number, form in enumerate(FORMS):
        if number not in skipped:
            assert number in cells.touched, f"{form.text}: no access to device memory"
            assert outcome(device, number, DEVICE) == outcome(ram, number, CELLS), form.text
    simple = {number for number, form in enumerate(FORMS) if form in set(bhyves())}
    assert not simple & skipped, [FORMS[number].text for number in simple & skipped]


def bhyves() -> Iterator[Form]:
    """What bhyve's own instruction emulation knows (MOV, MOVZX, MOVSX, AND, OR, SUB, CMP, TEST, STOS, MOVS, BT)."""
    names, others = ("mov", "and", "or", "sub", "cmp", "test", "stos", "bt"), ("movbe", "movnti", "cmpxchg")
    for form in FORMS:
        name = form.text.removeprefix("rep ")
        if name.startswith(names) and not name.startswith(others) and "xmm" not in name:
            yield form
