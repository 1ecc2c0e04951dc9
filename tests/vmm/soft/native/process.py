"""A process that runs batches: it shares the image with us, and answers a byte for every byte it gets."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import IO

PATIENCE = {"native": 2.0, "engine": 10.0}
"""Seconds that a batch may take; it takes some milliseconds."""


class Died(Exception):
    """The process ended, or came to no end, while it ran a batch."""


@dataclass
class Runner:
    """One side of the comparison. ``image`` is its copy of the region."""

    name: str
    process: subprocess.Popen[bytes]
    image: mmap.mmap

    def run(self) -> None:
        """Run the batch that is in the image."""
        command, answers = self._pipes()
        patience = PATIENCE[self.name]
        try:
            command.write(b"\x01")
            command.flush()
        except BrokenPipeError:
            raise Died(self._ending()) from None
        ready, _, _ = select.select([answers], [], [], patience)
        if not ready:
            self.process.kill()
            self.process.wait()
            raise Died(f"{self.name}: the batch came to no end in {patience:g} s")
        answer = os.read(answers.fileno(), 200)
        if answer != b"\x01":
            raise Died(answer.decode(errors="replace") or self._ending())

    def _ending(self) -> str:
        code = self.process.wait()
        return f"{self.name}: the process died of signal {-code}" if code < 0 else f"{self.name}: exit {code}"

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def close(self) -> None:
        for pipe in self._pipes():
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.image.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()
