"""``costs``: what the engine takes for each of its ways, a line a figure, beside QEMU's where it has the same.

translation   of a boot up to the prompt, by the engine's own counters: how fast, and what share of the boot's time
memory        the code cache at the prompt and after the suite's python3, what of it is resident, the TLBs; QEMU's by
              its monitor (``info jit``)
accesses      a program in the guest (``workloads/costs.c``): a hit in the TLB, one in the second, a page walk; jumps
the loop      tiny guests: what leaves translated code for a function of the engine's, and interrupts
exits         ports and memory-mapped I/O that Python serves: the lines of ``pio`` and ``mmio``
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import exits
from benchmarks.boot import own_memory
from benchmarks.console import PROMPT, Console
from benchmarks.counters import counters
from benchmarks.machines import MEMORY_MB, Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, alternate
from benchmarks.suite import PLACE, guest_image, pack

ACCESSES, QUICK_ACCESSES = 400_000, 40_000
_PROMPT = f"root@debian:{PLACE}# ".encode()
_MB = 1 << 20

PROGRAM = {
    "load-hit": "load, page in the TLB",
    "store-hit": "store, page in the TLB",
    "load-second": "load, 8 MB: page in the second TLB",
    "store-second": "store, 8 MB: page in the second TLB",
    "load-walk": "load, 256 MB: a page walk",
    "store-walk": "store, 256 MB: a page walk",
    "chain": "jump inside a page",
    "crossing": "jump to another page and back, each",
    "call-found": "call by register, in the jump cache",
    "call-missed": "call by register, not in the jump cache",
}
"""The lines of ``workloads/costs.c``, and what they mean on our engine."""

_SEGMENTS = """
    lgdt 8f
    ljmp $8, $1f
1:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lidt 9f
    mov $0x1B, %ecx             # IA32_APIC_BASE
    rdmsr
    test $0x400, %eax           # from x2APIC mode to registers in memory
    jz 6f
    mov $0xFEE00100, %eax
    wrmsr
    or $0x800, %eax
    wrmsr
6:  movl $0x1FF, 0xFEE000F0     # the local APIC on
    mov $2f, %eax
    mov %ax, 7f + 8 * 0x41
    shr $16, %eax
    mov %ax, 7f + 8 * 0x41 + 6
    mov $3f, %eax
    mov %ax, 7f + 8 * 0x42
    shr $16, %eax
    mov %ax, 7f + 8 * 0x42 + 6
    jmp 4f
2:  incl %ebx                   # vector 0x41, from the local APIC
    movl $0, 0xFEE000B0
    iret
3:  iret                        # vector 0x42, from INT
    .align 8
5:  .quad 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
8:  .word 23
    .long 5b
9:  .word 8 * 0x43 - 1
    .long 7f
    .align 8
7:  .rept 0x43
    .quad 0x00008E0000080000
    .endr
4:
"""
_CPUID = """
    mov ${rounds}, %esi
0:  xor %eax, %eax
    cpuid
    dec %esi
    jnz 0b
"""
_RDMSR = """
    mov ${rounds}, %esi
    mov $0x277, %ecx            # IA32_PAT
0:  rdmsr
    dec %esi
    jnz 0b
"""
_INT = """
    mov ${rounds}, %esi
0:  int $0x42
    dec %esi
    jnz 0b
"""
_IPI = """
    mov ${rounds}, %esi
    xor %ebx, %ebx
    mov $0xFF, %al
    out %al, $0x21              # the PIC's lines masked
    out %al, $0xA1
    sti
0:  lea 1(%ebx), %ecx
    movl $0x44041, 0xFEE00300   # to itself
1:  cmp %ecx, %ebx
    jne 1b
    dec %esi
    jnz 0b
    cli
"""


@dataclass(frozen=True, slots=True)
class Loop:
    """A tiny guest: ``what`` its ``loop`` does, and how often so that the time can be told on the host's console."""

    what: str
    rounds: int
    loop: str
    before: str = ""

    def body(self, rounds: int) -> str:
        """The guest that goes round so often."""
        return self.before + self.loop.replace("{rounds}", str(rounds))


LOOPS = {
    "cpuid": Loop("CPUID: a function of the engine's", 4_000_000, _CPUID),
    "rdmsr": Loop("RDMSR: a function of the engine's", 4_000_000, _RDMSR),
    "int": Loop("INT and IRET", 1_000_000, _INT, _SEGMENTS),
    "ipi": Loop("interrupt: sent to itself, taken, EOI, IRET", 500_000, _IPI, _SEGMENTS),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """A code cache: host code in it, what the engine keeps about it, bytes of host code for a byte of the guest's."""

    code_mb: float
    data_mb: float = 0
    own_mb: float = 0
    """Resident memory of the process, without the guest's RAM."""
    expansion: float | None = None


@dataclass(frozen=True, slots=True)
class Boot:
    """A machine up to the prompt, through python3 and through ``workloads/costs.c``. Of ours, the counters too."""

    seconds: float
    prompt: Moment
    after: Moment
    printed: dict[str, float]
    counters: Counter[str]


def run_costs(context: Context) -> Iterator[Result]:
    """All of them."""
    mine, theirs = _boots(context)
    yield from translation(mine)
    for moment, when in (("prompt", "at the prompt"), ("after", "after python3")):
        both = [[getattr(boot, moment) for boot in boots] for boots in (mine, theirs)]
        code = [[one.code_mb for one in moments] for moments in both]
        yield Result(f"code cache {when}: code", "MB", *code)
        yield Result(f"code cache {when}: about it", "MB", [one.data_mb for one in both[0]])
        yield Result(f"the VMM's own memory {when}", "MB", *([one.own_mb for one in moments] for moments in both))
    grown = [[b.after.expansion for b in boots if b.after.expansion is not None] for boots in (mine, theirs)]
    if grown[0]:
        yield Result("host code for a byte of the guest's", "B", *grown)
    yield Result("TLBs of a vCPU", "MB", [boot.counters["vm.tlb-bytes"] / _MB for boot in mine])
    for name, what in PROGRAM.items():
        yield Result(what, "ns", *([boot.printed[name] for boot in boots] for boots in (mine, theirs)))
    for name, loop in LOOPS.items():
        rounds = loop.rounds // 10 if context.quick else loop.rounds
        found = exits.compare(context, name, loop.body(rounds), rounds)
        yield Result(loop.what, "ns", *([1000 * value for value in values] for values in found))
    yield from exits.run_pio(context)
    yield from exits.run_mmio(context)


def translation(boots: Sequence[Boot]) -> Iterator[Result]:
    """How fast code was translated up to the prompt."""
    counts = [(boot.counters, boot.counters["vcpu.translate-ns"] / 1e9) for boot in boots]
    yield Result("translation: guest code", "MB/s", [c["vcpu.block-bytes"] / _MB / s for c, s in counts])
    yield Result("translation: instructions", "M/s", [c["vcpu.instructions-translated"] / 1e6 / s for c, s in counts])
    yield Result("translation: a block", "µs", [1e6 * s / c["vcpu.blocks"] for c, s in counts])
    shares = [100 * boot.counters["vcpu.translate-ns"] / 1e9 / boot.seconds for boot in boots]
    note = f"{boots[-1].counters['vcpu.blocks']} blocks"
    yield Result("translation: share of a boot", "%", shares, note=note)


def _boots(context: Context) -> tuple[list[Boot], list[Boot]]:
    folder = context.folder / "costs"
    folder.mkdir()
    cargo = pack(folder)
    image = guest_image(context.image, cargo, context.folder / "costs.initrd")
    program = f"./costs {QUICK_ACCESSES if context.quick else ACCESSES}"
    python = f"{cargo.python} {1 if context.quick else 10}"

    def boot(argv: list[str], look: Callable[[], tuple[Moment, Counter[str]]]) -> Boot:
        with Console(argv) as console:
            seconds = console.expect(PROMPT) - console.spawned
            smaps = Path(f"/proc/{console.process.pid}/smaps")

            def moment() -> tuple[Moment, Counter[str]]:
                found, counts = look()
                return replace(found, own_mb=own_memory(smaps.read_text(), MEMORY_MB)), counts

            (prompt, before) = moment()
            console.time("dmesg -n 1")  # the kernel's late messages would stand between a command's lines
            console.time(f"cd {PLACE}", prompt=_PROMPT)
            console.time(python, prompt=_PROMPT)
            after, counts = moment()
            if counts:
                after = replace(after, expansion=expansion(before, counts))
            return Boot(seconds, prompt, after, parse_program(console.time(program, prompt=_PROMPT)[1]), before)

    mine = ours(image.kernel, image.initrd)
    monitor = str(context.folder / "monitor")
    peer = None
    if context.qemu:
        peer = qemu_linux(context.qemu, image, devices=["-monitor", f"unix:{monitor},server,nowait"])
    return alternate(
        context.runs,
        lambda: boot(mine, _look),
        (lambda: boot(peer, lambda: (parse_jit(_ask(monitor, "info jit")), Counter()))) if peer else None,
    )


def _look() -> tuple[Moment, Counter[str]]:
    found = counters("bench")
    return Moment(found["vm.code-bytes"] / _MB, found["vm.data-bytes"] / _MB), found


def _ask(monitor: str, question: str) -> str:
    """What QEMU's monitor at the socket ``monitor`` answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(10)
        line.connect(monitor)
        found = b""
        for prompts, text in ((1, question + "\n"), (2, "")):
            while found.count(b"(qemu) ") < prompts:
                found += line.recv(65536)
            line.sendall(text.encode())
    return found.decode()


def parse_program(output: bytes) -> dict[str, float]:
    """Nanoseconds by name, of the output of ``workloads/costs.c``. Raises ``BenchmarkError`` if it is another."""
    found = {name: float(value) for name, value in re.findall(r"^(\S+) ([\d.]+)\r?$", output.decode(), re.MULTILINE)}
    if found.keys() != PROGRAM.keys():
        raise BenchmarkError(f"costs: {output!r}")
    return found


def parse_jit(text: str) -> Moment:
    """QEMU's code cache, of what its monitor answers to ``info jit``."""
    size = re.search(r"gen code size\s+(\d+)", text)
    ratio = re.search(r"TB avg host size.*expansion ratio: ([\d.]+)", text)
    if not size or not ratio:
        raise BenchmarkError(f"info jit: {text!r}")
    return Moment(int(size[1]) / _MB, expansion=float(ratio[1]))


def expansion(before: Counter[str], after: Counter[str]) -> float | None:
    """Host bytes for a guest byte, of what was translated in between; None if the cache was flushed meanwhile."""
    if before["vm.code-flushes"] != after["vm.code-flushes"]:
        return None
    code, guest = (after[name] - before[name] for name in ("vm.code-bytes", "vcpu.block-bytes"))
    return code / guest if guest else None
