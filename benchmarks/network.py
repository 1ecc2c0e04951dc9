"""``user`` and ``tap``: TCP between a guest and its host, and what a packet costs the host.

Both guests run Debian's iperf3 against a server on the host, in turn: to the host, then from it. ``user`` is libslirp
in ours as in QEMU; ``tap`` is an interface that each makes for itself, for which it takes the right to, as root has.
The figure is what the receiver saw.

The host's CPU time for a packet is that of the threads other than the vCPUs', over the packets that the guest's card
counts in both directions; cards that take long segments move up to 64 KB in one.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.console import PROMPT, Console
from benchmarks.disk import device_seconds
from benchmarks.machines import Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, alternate

SECONDS, QUICK_SECONDS = 5, 1
GATEWAY = "10.0.2.2"
TAPS = ("tapbench0", "tapbench1")
# Addresses for benchmarks (RFC 2544, appendix C.2.2), four for each tap: the host's and the guest's.
HOSTS, GUESTS = ("198.18.0.1", "198.18.0.5"), ("198.18.0.2", "198.18.0.6")
DIRECTIONS = {"guest to host": "", "host to guest": "-R"}
_RECEIVED = re.compile(rb"([\d.]+) Mbits/sec\s+receiver")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of iperf3: bytes a second, and the host's µs for a packet outside the vCPUs."""

    rate: float
    cost: float


@dataclass(frozen=True, slots=True)
class Peer:
    """A guest and the address at which it finds the server."""

    console: Console
    server: str


def run_user(context: Context) -> Iterator[Result]:
    """By a network of the machine's own."""
    slots, devices = ["3,virtio-net,user"], "-netdev user,id=n -device virtio-net-pci,netdev=n".split()
    with ExitStack() as stack:
        mine, theirs = _guests(context, stack, slots, devices)
        for console in filter(None, (mine, theirs)):
            console.time("until ip addr show eth0 | grep -q 'inet '; do usleep 100000; done")
        port = stack.enter_context(serve("127.0.0.1"))
        peers = [Peer(console, GATEWAY) for console in (mine, theirs) if console]
        yield from _compare(context, "user", peers, port)


def run_tap(context: Context) -> Iterator[Result]:
    """By an interface of the host."""
    if os.geteuid() or not os.path.exists("/dev/net/tun") or shutil.which("ip") is None:
        raise BenchmarkError("interfaces of the host take root, /dev/net/tun and `ip` (iproute2)")
    slots = [f"3,virtio-net,{TAPS[0]}"]
    netdev = f"tap,id=n,ifname={TAPS[1]},script=no,downscript=no,vhost=off"
    with ExitStack() as stack:
        guests = _guests(context, stack, slots, ["-netdev", netdev, "-device", "virtio-net-pci,netdev=n"])
        peers = []
        for console, tap, host, address in zip(guests, TAPS, HOSTS, GUESTS, strict=True):
            if console is not None:
                _configure(tap, host)
                console.time(f"killall udhcpc; ip addr flush dev eth0; ip addr add {address}/30 dev eth0")
                peers.append(Peer(console, host))
        port = stack.enter_context(serve("0.0.0.0"))
        yield from _compare(context, "tap", peers, port)


def _guests(context: Context, stack: ExitStack, slots: list[str], devices: list[str]) -> tuple[Console, Console | None]:
    image = context.with_tools(context.image)

    def guest(argv: list[str]) -> Console:
        console = stack.enter_context(Console(argv))
        console.expect(PROMPT)
        console.time("dmesg -n 1")  # the kernel's late messages would stand between a command's lines
        return console

    mine = guest(ours(image.kernel, image.initrd, slots=slots))
    qemu = context.qemu
    return mine, guest(qemu_linux(qemu, image, devices=["-nic", "none", *devices])) if qemu else None


def _configure(tap: str, address: str) -> None:
    for command in (f"ip addr replace {address}/30 dev {tap}", f"ip link set {tap} up"):
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{command}: {done.stderr.strip()}")


@contextmanager
def serve(address: str) -> Iterator[int]:
    """iperf3 as a server; its port."""
    if shutil.which("iperf3") is None:
        raise BenchmarkError("`iperf3` is not on this host (Debian: apt install iperf3)")
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
    argv = ["iperf3", "--server", "--forceflush", "--bind", address, "--port", str(port)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            while b"listening" not in (line := process.stdout.readline()):
                if not line:
                    raise BenchmarkError(f"iperf3: no server at port {port}")
            # Read what it reports, or it stands still when the pipe is full.
            threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
            yield port
        finally:
            process.kill()


def _compare(context: Context, name: str, peers: Sequence[Peer], port: int) -> Iterator[Result]:
    seconds = QUICK_SECONDS if context.quick else SECONDS
    for what, option in DIRECTIONS.items():

        def run(peer: Peer, option: str = option) -> Run:
            return run_iperf(peer, f"-p {port} -t {seconds} {option}")

        theirs = (lambda: run(peers[1])) if len(peers) > 1 else None
        found = alternate(context.runs, lambda: run(peers[0]), theirs)
        yield Result(f"{name}: TCP, {what}", "MB/s", *([each.rate / 1e6 for each in r] for r in found), ratio_least=1)
        yield Result(f"{name}: host CPU a packet, {what}", "µs", *([each.cost for each in runs] for runs in found))


def run_iperf(peer: Peer, options: str) -> Run:
    """iperf3 at the prompt. Raises ``BenchmarkError``."""
    console = peer.console
    used, packets = device_seconds(console), _packets(console)
    _, output = console.time(f"iperf3 -f m -c {peer.server} {options}")
    used, packets = device_seconds(console) - used, _packets(console) - packets
    return Run(parse_iperf(output), used / packets * 1e6)


def parse_iperf(output: bytes) -> float:
    """Bytes a second at the receiver, in what iperf3 prints with ``-f m``. Raises ``BenchmarkError``."""
    found = _RECEIVED.search(output)
    if found is None:
        raise BenchmarkError(f"iperf3: {output.decode(errors='replace').strip()}")
    return float(found[1]) * 1e6 / 8


def _packets(console: Console) -> int:
    """What the guest's card has counted."""
    _, output = console.time("cat /sys/class/net/eth0/statistics/?x_packets")
    return sum(int(word) for word in output.split())
