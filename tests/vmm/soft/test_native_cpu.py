"""The engine against the host's CPU: random user-level instructions with random state, equal to the bit.

Longer runs: ``python -m tests.vmm.soft.native --cases 10000000``.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

from tests.vmm.soft.oracle import check, same_modules

ENDLESS = """if True:
    import array, fcntl, signal, termios
    from tests.vmm.soft.native import {side}
    runner, unread = {side}.start(), array.array("i", [1])
    runner.image[:2] = b"\\xeb\\xfe"  # the harness begins with a jump to itself
    runner.process.stdin.write(b"\\x01")
    while unread[0]:
        fcntl.ioctl(runner.process.stdin, termios.FIONREAD, unread)
    print(runner.process.pid, flush=True)
    signal.pause()
"""


@pytest.mark.timeout(300)
def test_random_instructions_do_what_the_hosts_cpu_does():
    output = check("tests.vmm.soft.native", "--cases", "100000", limit=280)
    assert "forms tried; not: []" in output


@pytest.mark.parametrize("side", ["host", "engine"])
def test_a_batch_without_end_ends_with_the_process_that_asked_for_it(side):
    asker = subprocess.Popen(
        [sys.executable, "-c", ENDLESS.format(side=side)], env=same_modules(), stdout=subprocess.PIPE, text=True
    )
    worker = os.pidfd_open(int(asker.stdout.readline()))
    try:
        asker.kill()
        asker.wait()
        assert select.select([worker], [], [], 10)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        os.close(worker)
