"""Random bytes in every mode and privilege: the process never crashes, never hangs, never writes outside guest memory.

Longer runs: ``python -m tests.vmm.soft.fuzz --seconds 3600``.
"""

import pytest

from tests.vmm.soft.oracle import check


@pytest.mark.timeout(200)
def test_whatever_a_guest_executes_harms_only_itself():
    output = check("tests.vmm.soft.fuzz", "--seconds", "15", limit=180)
    assert " 0 findings" in output
