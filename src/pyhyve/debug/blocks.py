"""What the CPU engine has translated: a dump of its blocks, guest and host code side by side, and a map for perf.

``SoftMachine.blocks()`` gives each block that is valid when it is asked: guest and host bytes, and for every piece of
host code the page offset of the guest instruction that it belongs to. A block's host code begins with its entry (where
events are looked for), then comes one piece an instruction, then the slow paths, each again with its instruction.

objdump (binutils) disassembles both sides; where it is missing, the dump shows the bytes. Addresses in the guest's code
are guest-physical: the engine knows blocks by those. A perf map has one line a block (perf's
``tools/perf/Documentation/jit-interface.txt``); code that was dropped or moved before the map is written is not in it.

From a command line: ``-o soft.blocks=FILE``, ``-o soft.blocks_range=FIRST-LAST`` and ``-o soft.perf_map=1``. All are
written when the machine ends.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

from pyhyve.config import Config
from pyhyve.errors import ConfigError

CHUNK = 500
"""Blocks for which objdump is run once."""
PERF_DIRECTORY = Path("/tmp")  # perf looks nowhere else

_GUEST_WIDTH = 62
_PADDING = b"\x90" * 15
_MACHINES = {64: "i386:x86-64", 32: "i386", 16: "i8086"}
_TARGET = re.compile(r"^((?:j\w+|call|loop\w*|jmp|xbegin)\w*(?:,p[nt])?\s+)0x([0-9a-f]+)|(# )0x([0-9a-f]+)")


class Mode(IntFlag):
    """What the meaning of a code byte depends on: ``MODE_*`` of the engine's ``state.pxd``."""

    CODE64 = 0x1
    CODE32 = 0x2
    USER = 0x4
    FLAT = 0x8
    STACK32 = 0x10
    PROTECTED = 0x20
    TS = 0x40
    EM = 0x80
    MP = 0x100
    SSE = 0x200
    AVX = 0x400
    AVX512 = 0x800
    AC = 0x1000
    TSC = 0x2000
    VM86 = 0x4000
    LMA = 0x8000
    FSGSBASE = 0x10000
    IOPL_OK = 0x20000
    CPL0 = 0x40000
    STEP = 0x80000
    CS_PAGES = 0x100000
    FS_OPEN = 0x200000
    GS_OPEN = 0x400000
    ALIGN = 0x800000
    SINGLY = 0x1000000


@runtime_checkable
class Translator(Protocol):
    """A virtual machine that can tell what it has translated."""

    def blocks(self) -> list[tuple[int, int, bytes, int, bytes, list[tuple[int, int]]]]:
        """Blocks as (gpa, mode, guest bytes, host address, host code, [(offset in it, page offset of the guest)])."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Host code of one guest instruction (``guest`` is its guest-physical address), or the entry (None)."""

    guest: int | None
    code: bytes
    host: int
    data: bytes
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """One translated block."""

    gpa: int
    mode: Mode
    guest: bytes
    host: int
    code: bytes
    places: tuple[tuple[int, int], ...]

    @property
    def bits(self) -> int:
        """The size of its code segment: 16, 32 or 64."""
        return 64 if self.mode & Mode.CODE64 else 32 if self.mode & Mode.CODE32 else 16

    def holds(self, gpa: int) -> bool:
        """Whether the byte at ``gpa`` was translated here."""
        return self.gpa <= gpa < self.gpa + len(self.guest)

    def pieces(self) -> list[Piece]:
        """The host code, cut where it belongs to another instruction."""
        start = self.gpa & 0xFFF
        hot = 1
        while hot < len(self.places) and self.places[hot][1] > self.places[hot - 1][1]:
            hot += 1
        offsets = [guest - start for _, guest in self.places[:hot]] + [len(self.guest)]
        instructions = {at: self.guest[at:end] for at, end in pairwise(offsets)}
        ends = [host for host, _ in self.places[1:]] + [len(self.code)]
        found = [Piece(None, b"", self.host, self.code[: self.places[0][0]])]
        for number, ((host, guest), end) in enumerate(zip(self.places, ends, strict=True)):
            at = guest - start
            code = instructions.get(at, b"")  # the slow path of several pushes has each by itself
            found.append(Piece(self.gpa + at, code, self.host + host, self.code[host:end], slow=number >= hot))
        return found


def translated(machine: Translator, first: int = 0, last: int | None = None) -> list[Block]:
    """The blocks of ``machine`` that touch the guest-physical bytes ``first`` to ``last``, oldest first."""
    found = (
        Block(gpa, Mode(mode), guest, host, code, tuple(places))
        for gpa, mode, guest, host, code, places in machine.blocks()
    )
    return [b for b in found if b.gpa + len(b.guest) > first and (last is None or b.gpa <= last)]


def disassemble(pieces: Sequence[tuple[int, bytes]], bits: int, *, whole: bool = False) -> list[list[tuple[int, str]]]:
    """For each (address, bytes): its instructions as (address, text). Without objdump: one line of hexadecimal.

    ``whole``: the bytes are surely whole instructions, as what the engine emits; that goes faster.
    """
    plain = [[(address, data.hex(" "))] if data else [] for address, data in pieces]
    objdump = shutil.which("objdump")
    if objdump is None or not pieces:
        return plain
    starts, image = [], bytearray()
    for _, data in pieces:
        starts.append(len(image))
        image += data if whole else data + _PADDING  # what is no instruction must not reach into the next piece
    with tempfile.NamedTemporaryFile(prefix="pyhyve-") as file:
        file.write(image)
        file.flush()
        command = f"{objdump} -D -z -b binary -m {_MACHINES[bits]} -M intel --insn-width=15 {file.name}"
        done = subprocess.run(command.split(), text=True, capture_output=True, check=False)
    if done.returncode:
        return plain
    found: list[list[tuple[int, str]]] = [[] for _ in pieces]
    number = 0
    for line in done.stdout.splitlines():
        head, _, rest = line.partition(":\t")
        if not rest:
            continue
        at = int(head, 16)
        while number + 1 < len(starts) and at >= starts[number + 1]:
            number += 1
        if at - starts[number] < len(pieces[number][1]):
            address = pieces[number][0]
            text = _shift(rest.partition("\t")[2].strip(), starts[number], address, bits)
            found[number].append((address + at - starts[number], text))
    return found


def _shift(text: str, start: int, address: int, bits: int) -> str:
    """Jump targets and RIP-relative addresses as they are at the piece's own address."""

    def moved(match: re.Match[str]) -> str:
        distance = int(match[2] or match[4], 16) - start
        if bits == 16:
            distance = (distance + 0x8000 & 0xFFFF) - 0x8000
        return f"{match[1] or match[3]}{address + distance & 0xFFFFFFFFFFFFFFFF:#x}"

    return _TARGET.sub(moved, text) if text[:1] in "jclx" or "#" in text else text


def dump(blocks: Iterable[Block], out: TextIO) -> None:
    """Write every block: guest code on the left, the host code it became on the right."""
    chunk: list[Block] = []
    for block in blocks:
        chunk.append(block)
        if len(chunk) == CHUNK:
            _dump_chunk(chunk, out)
            chunk = []
    _dump_chunk(chunk, out)


def _dump_chunk(blocks: Sequence[Block], out: TextIO) -> None:
    cut = [block.pieces() for block in blocks]
    host = iter(disassemble([(piece.host, piece.data) for pieces in cut for piece in pieces], 64, whole=True))
    guest: dict[tuple[int, bytes, int], str] = {}
    for bits in _MACHINES:
        wanted = [
            (piece.guest, piece.code)
            for block, pieces in zip(blocks, cut, strict=True)
            for piece in pieces
            if block.bits == bits and piece.guest is not None and not piece.slow
        ]
        for (address, code), lines in zip(wanted, disassemble(wanted, bits), strict=True):
            guest[address, code, bits] = "; ".join(text for _, text in lines)
    for block, pieces in zip(blocks, cut, strict=True):
        names = " ".join((flag.name or "").lower() for flag in block.mode)
        out.write(
            f"block {block.gpa:#x} ({block.bits}-bit: {names})\n"
            f"  guest {len(block.guest)} bytes, host {len(block.code)} bytes at {block.host:#x}\n"
        )
        cold = False
        for piece in pieces:
            if piece.slow and not cold:
                cold = True
                out.write("  slow paths\n")
            left = "entry"
            if piece.guest is not None:
                left = f"{piece.guest:x}"
                if not piece.slow:
                    left += f"  {piece.code.hex():22}  {guest[piece.guest, piece.code, block.bits]}"
            for address, text in next(host) or [(piece.host, "")]:
                out.write(f"  {left:{_GUEST_WIDTH}} | +{address - block.host:04x}  {text}\n".replace(" \n", "\n"))
                left = ""
        out.write("\n")


def perf_map(blocks: Iterable[Block]) -> Iterator[str]:
    """Lines of a perf map: host address, size, and a name that says which guest code it is."""
    for block in blocks:
        ring = "user" if block.mode & Mode.USER else "kernel"
        yield f"{block.host:x} {len(block.code):x} guest_{ring}{block.bits}_{block.gpa:x}\n"


def read_range(text: str) -> tuple[int, int]:
    """``FIRST-LAST``, guest-physical addresses, both included."""
    first, dash, last = text.partition("-")
    try:
        bounds = int(first, 0), int(last, 0)
    except ValueError:
        bounds = (1, 0)
    if not dash or bounds[0] > bounds[1]:
        raise ConfigError(f"soft.blocks_range: '{text}' is not FIRST-LAST, two guest-physical addresses")
    return bounds


def at_end(config: Config, machine: object) -> Callable[[], None] | None:
    """What to call when ``machine`` has ended, before it is closed, to write what ``config`` asks for, if anything.

    Raises ``ConfigError`` at once for a file that cannot be written, and where the backend translates nothing.
    """
    path = config.get("soft.blocks")
    bounds = config.get("soft.blocks_range")
    wants_map = config.get_bool("soft.perf_map", False)
    first, last = read_range(bounds) if bounds else (0, None)
    if bounds and not path:
        raise ConfigError("soft.blocks_range needs soft.blocks=FILE")
    if not path and not wants_map:
        return None
    if not isinstance(machine, Translator):
        raise ConfigError("soft.blocks and soft.perf_map need the CPU engine (vmm.backend=soft)")
    translator: Translator = machine
    if path:
        with _written(path):
            pass

    def write() -> None:
        if wants_map:
            with _written(str(PERF_DIRECTORY / f"perf-{os.getpid()}.map")) as out:
                out.writelines(perf_map(translated(translator)))
        if path:
            with _written(path) as out:
                dump(translated(translator, first, last), out)

    return write


@contextmanager
def _written(path: str) -> Iterator[TextIO]:
    # A name that anybody can guess in a directory where anybody can write: not through a link.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, 0o666), "w", encoding="utf-8") as out:
            yield out
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
