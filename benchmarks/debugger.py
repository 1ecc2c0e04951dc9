"""``gdb``: a single step by the gdb remote protocol, from the packet that asks for it to the one that says it is done.

A client of a few lines speaks to the server of a guest that counts in registers, without gdb in between, whose own work
would be measured too. QEMU's server is asked the same.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from benchmarks.console import Console
from benchmarks.machines import Context, ours, qemu_options
from benchmarks.measure import BenchmarkError, Result, alternate

_COUNT = """
0:  inc %eax
    jmp 0b
"""
_PATIENCE = 30.0


class _Client:
    """Waits for the server to listen, then sends a packet at a time."""

    def __init__(self, port: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), _PATIENCE)
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise BenchmarkError("the gdb server does not listen") from None
                time.sleep(0.02)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        self.ask(b"?")
        self.ask(b"QStartNoAckMode")

    def ask(self, body: bytes) -> bytes:
        """The answer to a packet."""
        self._socket.sendall(b"$%b#%02x" % (body, sum(body) & 0xFF))
        answer = bytearray()
        while not answer.endswith(b"#"):
            byte = self._answers.read(1)
            if not byte:
                raise BenchmarkError("the gdb server hung up")
            answer += byte
        self._answers.read(2)
        return bytes(answer)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def run_gdb(context: Context) -> Iterator[Result]:
    """Single steps."""
    steps = 200 if context.quick else 2000

    def run(argv: list[str], port: int) -> float:
        with Console(argv):
            client = _Client(port)
            try:
                start = time.perf_counter()
                for _ in range(steps):
                    client.ask(b"s")
                return (time.perf_counter() - start) / steps * 1000
            finally:
                client.close()

    def run_ours() -> float:
        port = _free_port()
        *words, name = ours(kernel)
        return run([*words, "-G", f"w{port}", name], port)

    def run_qemu() -> float:
        port = _free_port()
        options = ["-kernel", str(kernel), "-gdb", f"tcp:127.0.0.1:{port}", "-S"]
        return run([*qemu_options(str(context.qemu)), *options], port)

    kernel = context.kernel("count", _COUNT)
    times = alternate(context.runs, run_ours, run_qemu if context.qemu else None)
    yield Result("gdb single-step round trip", "ms", *times, limit=2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
