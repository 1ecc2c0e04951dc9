"""Showing a case whose results differ."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

from tests.vmm.soft.native import layout
from tests.vmm.soft.native.compare import Difference
from tests.vmm.soft.native.generate import Blob

_GPRS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_WORDS = {8 * n: name for n, name in enumerate(_GPRS)} | {
    layout.FLAGS: "rflags",
    layout.VECTOR: "vector",
    layout.ERROR: "error code",
    layout.CR2: "cr2",
    layout.FAULT_RIP: "rip of the fault",
    layout.O_FSBASE: "fs base",
    layout.O_GSBASE: "gs base",
}
_X87 = ((0, 2, "fcw"), (2, 2, "fsw"), (4, 1, "ftw"), (24, 4, "mxcsr"), (28, 4, "mxcsr mask"))


def disassemble(blob: Blob) -> list[str]:
    """One line an instruction; plain bytes where there is no objdump."""
    code = blob.code()
    if shutil.which("objdump") is None:
        return [item.data.hex() for item in blob.items]
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        done = subprocess.run(
            ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", f"--adjust-vma={blob.address:#x}",
             "--insn-width=15", file.name], text=True, capture_output=True, check=False,
        )  # fmt: skip
    return [line for line in done.stdout.splitlines() if line.startswith(" ")]


def _parts(record: bytes) -> list[tuple[str, int]]:
    """The registers of a record of results."""
    found = [(name, int.from_bytes(record[at : at + 8], "little")) for at, name in _WORDS.items()]
    image = record[layout.XSTATE :]
    found += [(name, int.from_bytes(image[at : at + size], "little")) for at, size, name in _X87]
    found += [(f"st{n}", int.from_bytes(image[32 + 16 * n : 48 + 16 * n], "little")) for n in range(8)]
    for n in range(32 if layout.HAS_AVX512 else 16):
        raw = b"".join(image[at : at + size] for at, size in layout.vector_parts(n))
        found.append((f"{'zmm' if layout.HAS_AVX512 else 'ymm'}{n}", int.from_bytes(raw, "little")))
    if layout.HAS_AVX512:
        places = [layout.OPMASK_AT + 8 * n for n in range(8)]
        found += [(f"k{n}", int.from_bytes(image[at : at + 8], "little")) for n, at in enumerate(places)]
    return found


def _state(blob: Blob, number: int) -> str:
    state = blob.states[number]
    record = blob.record(state)
    values = [int.from_bytes(record[8 * n : 8 * n + 8], "little") for n in range(16)]
    registers = " ".join(f"{n}={v:#x}" for n, v in zip(_GPRS, values, strict=True) if v)
    return (f"state {number}: {registers} flags={state.flags:#x} fs={state.fs_base:#x} gs={state.gs_base:#x} "
            f"fcw={state.xstate[:2][::-1].hex()} mxcsr={state.xstate[24:28][::-1].hex()}")  # fmt: skip


def show(difference: Difference, seed: str, others: list[Blob]) -> str:
    """All that there is to say about a difference; ``others`` must run too for it to be seen."""
    blob = difference.blob
    lines = [f"--- seed {seed}: native and engine differ"]
    if len(others) > 3:
        lines.append(f"together with {len(others)} other blobs of the batch")
    else:
        for other in others:
            lines += ["together with", *disassemble(other), *(_state(other, n) for n in range(len(other.states)))]
    lines.append(f"bytes: {blob.code()[:-5].hex()}")
    lines += disassemble(blob)
    lines += [_state(blob, number) for number in range(difference.state + 1)]
    if difference.died:
        return "\n".join([*lines, difference.died])
    start = dict(_parts(blob.record(blob.states[difference.state])))
    for (name, native), (_, ours) in zip(_parts(difference.native), _parts(difference.engine), strict=True):
        if native != ours:
            before = "" if name in ("vector", "error code", "cr2", "rip of the fault") else f", before {start[name]:#x}"
            lines.append(f"{name}: native {native:#x}, engine {ours:#x}{before}")
    if not difference.native:
        return "\n".join(lines)
    vector = int.from_bytes(difference.native[layout.VECTOR : layout.VECTOR + 8], "little")
    if vector != layout.NO_VECTOR:
        lines.append(f"(natively it ended with exception {vector})")
    places = [n for n in range(layout.SLOT) if difference.native_memory[n] != difference.engine_memory[n]]
    if places:
        at, end = places[0], min(places[-1] + 1, places[0] + 32)
        slot = layout.SLOTS + blob.slot * layout.SLOT
        lines.append(f"memory: {len(places)} bytes differ from {slot + at:#x} on: native "
                     f"{difference.native_memory[at:end].hex()}, engine {difference.engine_memory[at:end].hex()}")  # fmt: skip
    return "\n".join(lines)
