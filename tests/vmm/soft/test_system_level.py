"""The engine against Bochs: descriptors, gates, interrupts, page walks, mode changes; whole states after one step.

Longer runs: ``python -m tests.vmm.soft.bochs --cases 100000``. Bochs comes from PyPI (bochscpu-python 0.3.1).
"""

import importlib.util

import pytest

from tests.vmm.soft.oracle import check


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("bochscpu") is None, reason="bochscpu-python 0.3.1 is not installed")
def test_system_instructions_do_what_bochs_does():
    output = check("tests.vmm.soft.bochs", "--cases", "3000", "--brief", limit=280)
    assert " 0 differ" in output
