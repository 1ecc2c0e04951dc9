"""``python -m benchmarks.endurance --minutes 30``: disks and network at work together for long; nothing may fail.

One guest with two vCPUs, a ``virtio-blk`` and an ``ahci-hd`` disk and a network of its own. On each disk a fio writes
at random places, in requests of many sizes, and reads back and verifies every block against its checksum; besides,
iperf3 sends to the host and from it in turn. It ends with status 0 if every fio and every iperf3 did so, no disk stood
still meanwhile, and the guest's kernel complained of nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.machines import Context, ours
from benchmarks.measure import BenchmarkError
from benchmarks.network import GATEWAY, parse_iperf, serve

SIZE_MB = 512
ROUND = 30
"""Seconds of one iperf3, and between two looks at the guest."""
DISKS = ("vda", "sda")
_FIO = (
    "fio --name={disk} --filename=/dev/{disk} --size=100% --thread --direct=1 --ioengine=libaio --iodepth=16"
    " --rw=randrw --bsrange=4k-256k --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based"
    " --clocksource=clock_gettime --runtime={seconds} --minimal"
)
_COMPLAINT = re.compile(
    rb".*(?:I/O error|BUG|Oops|soft lockup|rcu: INFO|hung_task|blocked for more than|NETDEV WATCHDOG|exception Emask"
    rb"|failed command|Call Trace|timed out).*"
)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 with a line that says what failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description="Disks and network for long.")
    parser.add_argument("--minutes", type=float, default=30, metavar="N", help="how long (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pyhyve-bench-") as folder:
        os.environ["PYHYVE_RUNTIME_DIR"] = folder
        try:
            run(Context(1, False, None, Path(folder)), int(60 * arguments.minutes))
        except BenchmarkError as error:
            print(f"endurance: {error}", file=sys.stderr)
            return 1
    return 0


def run(context: Context, seconds: int) -> None:
    """Boot, work, look. Raises ``BenchmarkError``."""
    image = context.with_tools(context.generic_image)
    slots = ["5,virtio-net,user"]
    for number, kind in ((3, "virtio-blk"), (4, "ahci-hd")):
        path = context.folder / f"{kind}.img"
        with path.open("wb") as file:
            file.truncate(SIZE_MB << 20)
        slots.append(f"{number},{kind},{path}")
    with serve("127.0.0.1") as port, Console(ours(image.kernel, image.initrd, cpus=2, slots=slots)) as console:
        console.expect(PROMPT)
        console.time("dmesg -n 1")
        console.time("until ip addr show eth0 | grep -q 'inet '; do usleep 100000; done")
        for disk in DISKS:
            fio = _FIO.format(disk=disk, seconds=seconds)
            console.time(f"({fio} >/tmp/{disk}.log 2>&1; echo $? >/tmp/{disk}.end) & true")
        begin = time.monotonic()
        rounds, moved = 0, 0.0
        before: dict[str, tuple[bytes, bytes]] = {}
        while any(console.time(f"[ -e /tmp/{disk}.end ] && echo over || true")[1].strip() != b"over" for disk in DISKS):
            direction = ("", "-R")[rounds % 2]
            _, output = console.time(f"iperf3 -f m -c {GATEWAY} -p {port} -t {ROUND} {direction}")
            moved += parse_iperf(output) * ROUND / 1e6
            rounds += 1
            _look(console)
            for disk in DISKS:
                fields = console.time(f"cat /sys/block/{disk}/stat")[1].split()
                ended, under_way = (fields[0], fields[4]), int(fields[8])  # reads and writes that are over
                if ended == before.get(disk) and under_way:
                    raise BenchmarkError(f"{disk} stands still with {under_way} requests under way")
                before[disk] = ended
            elapsed = time.monotonic() - begin
            print(f"{elapsed:6.0f} s: {rounds} rounds of iperf3, {moved:.0f} MB", flush=True)
            if elapsed > 2 * seconds + 300:
                raise BenchmarkError("fio does not end")
        for disk in DISKS:
            _, output = console.time(f"cat /tmp/{disk}.end; tail -n 5 /tmp/{disk}.log")
            text = output.decode(errors="replace")
            line = next((line for line in text.splitlines() if line.startswith("3;")), "")
            fields = line.split(";")
            if not text.strip().startswith("0") or len(fields) < 50 or fields[4] != "0":
                raise BenchmarkError(f"fio on {disk}: {text.strip()}")
            print(f"{disk}: {int(fields[5]) >> 10} MB read and verified, {int(fields[46]) >> 10} MB written, no error")
        _look(console)


def _look(console: Console) -> None:
    """Raise ``BenchmarkError`` if the guest's kernel complains."""
    _, log = console.time("dmesg")
    complaint = _COMPLAINT.search(log)
    if complaint is not None:
        raise BenchmarkError(f"the guest's kernel says: {complaint[0].decode(errors='replace').strip()}")


if __name__ == "__main__":
    sys.exit(main())
