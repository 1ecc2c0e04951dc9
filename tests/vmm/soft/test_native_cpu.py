"""The engine against the host's CPU: random user-level instructions with random state, equal to the bit.

Longer runs: ``python -m tests.vmm.soft.native --cases 10000000``.
"""

import pytest

from tests.vmm.soft.oracle import check


@pytest.mark.timeout(300)
def test_random_instructions_do_what_the_hosts_cpu_does():
    output = check("tests.vmm.soft.native", "--cases", "100000", limit=280)
    assert "forms tried; not: []" in output
