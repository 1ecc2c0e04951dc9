"""Clock ports: counters that the engine reads out itself (``vmm.api.ClockPort``)."""

import time

from pyhyve.vmm.api import ClockPort
from pyhyve.vmm.exits import InOut
from tests.guests import END, assemble, boot_guest, find_backend


def test_clock_ports_count_at_their_rate_without_exits():
    guest = boot_guest(find_backend("soft"), assemble("clock", 0x10000))
    try:
        start = time.monotonic_ns()
        guest.vm.clock_port(0x408, ClockPort(3_579_545, start, 32))
        guest.vm.clock_port(0x42, ClockPort(1_193_182, start, 16, 0xFFFF, -1, True))
        assert guest.next() == InOut(END, 1, False, guest.register("rax") & 0xFF)
        most = (time.monotonic_ns() - start) * 3_579_545 // 1_000_000_000 + 100
        first, last, counter = guest.words(3)
        assert 0 <= first <= last <= most
        down = 0xFFFF - counter
        # The count may wait up to 200 us for a loop that begins to poll it.
        assert last // 3 - 2 - 1500 <= down <= most // 3 + 2
        # Three byte reads: the flip-flop stands at the high byte.
        assert guest.vm.clock_port(0x42, None) == 3
        assert guest.vm.clock_port(0x408, None) == 1001
    finally:
        guest.close()


def test_a_port_taken_back_exits_again():
    guest = boot_guest(find_backend("soft"), assemble("clock", 0x10000))
    try:
        guest.vm.clock_port(0x408, ClockPort(3_579_545, time.monotonic_ns(), 32))
        guest.vm.clock_port(0x408, None)
        assert guest.next() == InOut(0x408, 4, True)
    finally:
        guest.close()
