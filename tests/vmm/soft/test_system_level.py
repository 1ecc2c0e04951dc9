"""What the engine does beyond user level agrees with a model that was written without it.

Bochs judges descriptor loads, far transfers, gates, interrupts, IRET, system calls, page walks, control registers,
strings and stacks in every mode; a model in a few lines judges I/O permissions, which Bochs cannot be asked about.
``python -m tests.vmm.soft.bochs`` runs more of the former.
"""

from __future__ import annotations

import importlib
import os
import random
import struct
import time

import pytest

from tests.vmm.soft.bochs.families import FAMILIES

SEED = int(os.environ.get("PYHYVE_SEED", "1"), 0)
CASES = 3000
SECONDS = 15.0


@pytest.fixture(scope="module")
def engine() -> None:
    """Skips where the engine is not built."""
    try:
        importlib.import_module("pyhyve.vmm.soft.engine")
    except ImportError as error:
        pytest.skip(f"backend soft: {error}")


@pytest.mark.usefixtures("engine")
def test_engine_and_bochs_come_to_the_same_state() -> None:
    from tests.vmm.soft.bochs.compare import run, unusable

    why_not = unusable()
    if why_not:
        pytest.skip(f"no bochscpu (PyPI: bochscpu-python): {why_not}")
    end = time.monotonic() + SECONDS
    tally = run(range(SEED, SEED + CASES), most=3, go_on=lambda: time.monotonic() < end)
    print(f"seeds {SEED} to {SEED + tally.cases - 1}: {dict(tally.families)} {dict(tally.ends)}")
    assert not tally.differences, "\n\n".join(found.report() for found in tally.differences)
    if tally.cases == CASES:
        assert tally.compared > CASES * 0.85, dict(tally.ends)
        assert set(tally.families) == set(FAMILIES)


@pytest.mark.usefixtures("engine")
def test_io_permission_follows_iopl_and_bitmap() -> None:
    """SDM Vol. 1 19.5: ports are free to CPL <= IOPL outside virtual-8086 mode; else the TSS's bitmap decides."""
    from tests.vmm.soft.bochs.ground import REAL, SIZE, TSS, V86, Ground
    from tests.vmm.soft.bochs.subject import Subject

    subject = Subject(SIZE)
    ends = set()
    try:
        for seed in range(SEED, SEED + 400):
            rng = random.Random(f"{seed} ports")
            ground = Ground(rng, seed % 0x1000)
            size, code = rng.choice(((1, b"\xee"), (2, b"\x66\xef"), (4, b"\xef")))
            if ground.bits == 16 and size > 1:
                size = 6 - size
            port = rng.choice((0, 7, 8, 15, rng.randrange(0x40)))
            base = rng.choice((0x68, 0x68, 0x40, 0x67, 0xFFFF))
            limit = rng.choice((0x67, 0x68, 0x69, 0x70, 0xFF))
            kind = ground.tss_kind | 2
            task = ground.pages[TSS]
            struct.pack_into("<H", task, 0x66, base)
            for at in range(base, min(base + 16, 0x100)):
                task[at] = rng.choice((0, 0, 0, 0xFF, 1 << rng.randrange(8)))
            ground.segments["tr"] = (*ground.segments["tr"][:2], limit, 0x80 | kind)
            ground.registers["rdx"] = port
            ground.code = code
            state = ground.finish()
            state.code[ground.slot] = code + b"\x90" * 8
            iopl = ground.registers["rflags"] >> 12 & 3
            base = struct.unpack_from("<H", state.pages[TSS], 0x66)[0]
            free = ground.mode == REAL or (ground.mode != V86 and ground.cpl <= iopl)
            in_bitmap = kind == 0xB and base + port // 8 + 1 <= limit
            if in_bitmap:
                bits = struct.unpack_from("<H", state.pages[TSS], base + port // 8)[0]
                in_bitmap = not bits >> (port & 7) & ((1 << size) - 1)
            end = subject.step(state).end
            ends.add(end)
            assert (end == "port") == (free or in_bitmap), f"seed {seed}: {ground.mode} CPL {ground.cpl}, {end}"
    finally:
        subject.close()
    assert ends >= {"port", "step"}
