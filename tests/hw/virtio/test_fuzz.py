from __future__ import annotations

from pathlib import Path

import pytest

from tests.hw.virtio.fuzz import Fuzzer


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["virtio-rnd", "virtio-blk", "virtio-console"])
def test_a_hostile_driver_is_survived(name: str, seed: int, tmp_path: Path) -> None:
    Fuzzer(name, tmp_path, seed).run(10_000)
