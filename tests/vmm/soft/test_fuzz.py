"""Whatever a guest executes, the engine lives: no crash, no hang, no byte written outside guest memory.

``python -m tests.vmm.soft.fuzz --seconds N`` hunts longer, with ``--crowd`` on several vCPUs.
"""

from __future__ import annotations

import importlib
import os

import pytest

from tests.vmm.soft.fuzz.cases import ASPECTS, MODES, Spec, build
from tests.vmm.soft.fuzz.world import HIGH_SIZE, LOW_SIZE, FencedMemory

SEED = int(os.environ.get("PYHYVE_SEED", "1"), 0)
SECONDS = 12.0
CROWD_SECONDS = 8.0


def test_engine_survives_random_guests() -> None:
    try:
        importlib.import_module("pyhyve.vmm.soft.engine")
    except ImportError as error:
        pytest.skip(f"backend soft: {error}")
    from tests.vmm.soft.fuzz.hunt import hunt

    tally = hunt(SEED, SECONDS, shrink_seconds=40)
    print(f"seeds {SEED} to {SEED + tally.cases - 1}: {dict(tally.modes)} {dict(tally.ends)}")
    assert not tally.findings, "\n\n".join(finding.report() for finding in tally.findings)
    assert set(tally.modes) == set(MODES)


def test_engine_survives_random_guests_on_several_vcpus() -> None:
    try:
        importlib.import_module("pyhyve.vmm.soft.engine")
    except ImportError as error:
        pytest.skip(f"backend soft: {error}")
    from tests.vmm.soft.fuzz.hunt import CROWD, hunt

    tally = hunt(SEED, CROWD_SECONDS, module=CROWD)
    print(f"seeds {SEED} to {SEED + tally.cases - 1}: {dict(tally.modes)} {dict(tally.ends)}")
    assert not tally.findings, "\n\n".join(finding.report() for finding in tally.findings)
    assert tally.ends["flushed"] > 0
    assert tally.ends["invalidated"] > 0


def test_case_is_the_same_for_the_same_seed() -> None:
    assert build(Spec(SEED)) == build(Spec(SEED))
    assert build(Spec(SEED)) != build(Spec(SEED + 1))


def test_smaller_case_keeps_the_chunks_it_is_told_to() -> None:
    seed = next(seed for seed in range(SEED, SEED + 100) if len(build(Spec(seed)).chunks) > 4)
    whole = build(Spec(seed))
    small = build(Spec(seed, ASPECTS, (0, 1)))
    assert small.mode == whole.mode
    assert len(small.chunks) == 2
    assert not small.thread
    assert small.xsave is None


def test_canaries_notice_a_write_beside_guest_memory() -> None:
    memory = FencedMemory(bytes(range(1, 17)))
    try:
        assert memory.damage() == ""
        beside = memory.regions[0].offset + LOW_SIZE
        kept = memory._map[beside]
        memory._map[beside] = kept ^ 1
        assert "canary" in memory.damage()
        memory._map[beside] = kept
        memory._map[memory.rom_offset] ^= 1
        assert "ROM" in memory.damage()
        memory._map[memory.rom_offset] ^= 1
        inside = memory.regions[1].offset + HIGH_SIZE - 16
        memory._map[inside : inside + 16] = memory.secret
        assert "copied" in memory.damage()
    finally:
        memory.close()
