"""A short run of every fuzzer; ``python -m tests.hw.fuzz`` has the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhyve.hw import registry
from tests.hw.fuzz.devices import FUZZERS

BRIDGES = {"hostbridge", "amd_hostbridge", "lpc", "q35", "ich9"}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", FUZZERS)
def test_a_hostile_driver_is_survived(name: str, seed: int, tmp_path: Path) -> None:
    FUZZERS[name](name, tmp_path, seed).run(3000)


def test_every_device_has_a_fuzzer() -> None:
    family = {name.partition("-")[0] if name.startswith("ahci") else name for name in registry.names()}
    assert family - BRIDGES - set(FUZZERS) <= {"passthru"}  # which has a model of its own
