"""A short run of the fuzzer of passthru, with seeds of its own."""

from __future__ import annotations

import pytest

from tests.hw.pci.passthru_fuzz import run


@pytest.mark.parametrize("seed", range(4))
def test_random_accesses_do_no_harm(seed: int) -> None:
    run(5000, seed)
