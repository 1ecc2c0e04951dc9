"""A process whose standard input and output are a guest's serial console, waited for and timed."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from benchmarks.measure import BenchmarkError

PROMPT = b"root@debian:~# "
PATIENCE = 300.0
"""Seconds after which a guest that says nothing of what is waited for is given up."""


class Console:
    """``argv`` started with pipes. ``spawned`` is when, in ``time.monotonic()``.

    ``pass_fds`` are inherited by the process besides its standard descriptors.
    """

    def __init__(self, argv: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self._name = os.path.basename(argv[0])
        self._seen = bytearray()
        self.spawned = time.monotonic()
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, pass_fds=pass_fds
        )

    def expect(self, text: bytes, timeout: float = PATIENCE) -> float:
        """Read up to and including ``text``; when it was there. Raises ``BenchmarkError`` if it does not come."""
        return self._read_until(text, timeout)[0]

    def _read_until(self, text: bytes, timeout: float) -> tuple[float, bytes]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        at = time.monotonic()
        while (found := self._seen.find(text)) < 0:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise BenchmarkError(f"{self._name}: no {text!r} within {timeout:g} s; it said last:\n{self._tail()}")
            chunk = os.read(self.process.stdout.fileno(), 65536)
            at = time.monotonic()
            if not chunk:
                status = self.process.wait()
                raise BenchmarkError(f"{self._name}: ended with status {status} before {text!r}:\n{self._tail()}")
            self._seen += chunk
        before = bytes(self._seen[:found])
        del self._seen[: found + len(text)]
        return at, before

    def _tail(self) -> str:
        lines = self._seen.decode(errors="replace").replace("\r", "").splitlines()
        return "\n".join(f"    {line}" for line in lines[-8:])

    def send(self, text: str) -> None:
        """Type ``text``."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    def time(self, command: str, prompt: bytes = PROMPT) -> tuple[float, bytes]:
        """Run ``command`` at the prompt: the seconds it takes, as the host sees them, and what it printed.

        ``prompt`` is the one that it leaves behind.

        Raises ``BenchmarkError`` if its status is not 0.
        """
        # quoted, so that the echo of the command is not taken for its beginning or end
        self.send(f"echo '<'go'>'; {command}; echo '<'status $?'>'\n")
        start = self.expect(b"<go>\r\n")
        end, output = self._read_until(b"<status ", PATIENCE)
        _, status = self._read_until(b">", PATIENCE)
        if status != b"0":
            raise BenchmarkError(f"{command}: status {status.decode()}: {output.decode(errors='replace').strip()}")
        self.expect(prompt)
        return end - start, output

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
