"""Where things are in the image of a batch: the same virtual addresses in the native process and in the guest."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from pyhyve.vmm.soft import xstate

HERE = Path(__file__).parent

BASE = 0x30000000
HOST_PROGRAM = 0x2FF00000
"""Where the native program itself is linked; nothing is there in the guest."""

HARNESS = BASE
DATA = BASE + 0x1000
CODE = BASE + 0x2000
"""The blobs."""
CODE_SIZE = 0x1E000
IN = BASE + 0x20000
RECORD_BITS = 12
RECORD = 1 << RECORD_BITS
CASES = 256
OUT = IN + CASES * RECORD
SLOTS = OUT + CASES * RECORD
"""Memory for the cases: one slot a blob: a page that cannot be reached, two pages, a page to be read only."""
SLOT = 0x4000
BLOBS = 64
REGION = SLOTS + BLOBS * SLOT - BASE

# The harness's own variables
CURSOR, COUNT, PHASE, TARGET, SAVED_RSP, FINISH = (DATA + 8 * n for n in range(6))
STACK = DATA + 0x800

# Records: sixteen general registers, then
FLAGS = 128
I_CODE, I_FSBASE, I_GSBASE = 136, 144, 152
VECTOR, ERROR, CR2, FAULT_RIP, O_FSBASE, O_GSBASE = 136, 144, 152, 160, 168, 176
XSTATE = 192
XSTATE_MASK = xstate.carried_components()
"""The state components of the processor that the engine carries: x87, SSE, AVX, and AVX-512 where there is that."""
XSTATE_SIZE = xstate.image_size(XSTATE_MASK)
HAS_AVX512 = XSTATE_MASK & 0xE0 == 0xE0
OPMASK_AT, ZMM_HIGH_AT, ZMM_16_AT = (xstate.component_place(number) for number in (5, 6, 7))
NO_VECTOR = 0xFFFF_FFFF_FFFF_FFFF

DONE = HARNESS + 0x200
GUEST_FINISH = HARNESS + 0x400
GATE = 0x40
"""The interrupt by which the guest ends a batch."""

_AT_HWCAP2 = 26


def vector_parts(register: int) -> list[tuple[int, int]]:
    """Where a vector register lies in an XSAVE image: offset and bytes of each part."""
    if register >= 16:
        return [(ZMM_16_AT + 64 * (register - 16), 64)]
    parts = [(160 + 16 * register, 16), (576 + 16 * register, 16)]
    return [*parts, (ZMM_HIGH_AT + 32 * register, 32)] if HAS_AVX512 else parts


@cache
def has_fsgsbase() -> bool:
    """Whether user code here may use RDFSBASE and its kin."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    return bool(libc.getauxval(_AT_HWCAP2) & 2)


def symbols() -> dict[str, int]:
    """What the assembly sources know of the layout."""
    names = """BASE REGION CODE IN OUT SLOTS CURSOR COUNT PHASE TARGET SAVED_RSP FINISH STACK FLAGS I_CODE I_FSBASE
               I_GSBASE VECTOR ERROR CR2 FAULT_RIP O_FSBASE O_GSBASE XSTATE DONE RECORD_BITS XSTATE_MASK""".split()
    return {name: globals()[name] for name in names} | {"START": HARNESS, "HAVE_FSGSBASE": int(has_fsgsbase())}


def build(source: str, origin: int, output: Path | None = None) -> bytes:
    """Assemble and link ``source``: to a flat binary, or to a program at ``output``."""
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"no `{tool}` on this host (binutils)")
    with tempfile.TemporaryDirectory() as place:
        obj, flat = Path(place, "obj"), Path(place, "flat")
        defines = [word for name, value in symbols().items() for word in ("--defsym", f"{name}={value:#x}")]
        _tool(["as", "--64", *defines, "-o", str(obj), str(HERE / source)])
        form = [] if output else ["--oformat=binary"]
        _tool(["ld", f"-Ttext={origin:#x}", "-e", f"{origin:#x}", *form, "-o", str(output or flat), str(obj)])
        return b"" if output else flat.read_bytes()


def _tool(command: list[str]) -> None:
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]}: {done.stderr}")
