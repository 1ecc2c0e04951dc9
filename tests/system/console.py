"""Drives a guest through its serial console, as a user at a terminal would: ``bhyve`` runs on a pty."""

from __future__ import annotations

import itertools
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pexpect

PROMPT = "root@debian:~# "
PATIENCE = 120.0
"""Seconds after which a guest that says nothing of what is waited for has failed."""

_CLOCK_SAMPLES = 5
_numbers = itertools.count()  # a name is one machine's at a time


def command(backend: str, kernel: Path, initrd: Path, cpus: int = 1) -> list[str]:
    """``bhyve`` with the options of a Linux guest on its first serial port."""
    options = f"-A -c {cpus} -m 512M -H -s 0,hostbridge -s 31,lpc -l com1,stdio".split()
    boot = ["-o", f"boot.kernel={kernel}", "-o", f"boot.initrd={initrd}", "-o", "boot.cmdline=console=ttyS0"]
    name = f"linux{next(_numbers)}"
    return [sys.executable, "-m", "pyhyve.commands.bhyve", *options, "-o", f"vmm.backend={backend}", *boot, name]


@dataclass(frozen=True, slots=True)
class Done:
    """What a command printed, with plain line ends, and its exit status."""

    output: str
    status: int


class Guest:
    """A Linux guest, at its prompt unless ``at_prompt`` is false. ``argv`` is what ``command`` gives."""

    def __init__(self, argv: Sequence[str], *, at_prompt: bool = True) -> None:
        # a wide terminal, so that the echo of a command is not broken into lines
        self._child = pexpect.spawn(
            argv[0], list(argv[1:]), timeout=PATIENCE, encoding="utf-8", dimensions=(50, 1000), codec_errors="replace"
        )
        self._child.delaybeforesend = None
        if at_prompt:
            try:
                self.reach_prompt()
            except BaseException:
                self.close()
                raise

    def reach_prompt(self) -> None:
        """Wait until it has booted."""
        self.expect(PROMPT)
        # late messages of the kernel would stand between a command's lines
        self.run("dmesg -n 1")

    def log_in(self) -> None:
        """Wait for a login, and become root, who has no password."""
        self.expect("debian login: ", 3 * PATIENCE)
        self.send("root\n")
        self.reach_prompt()
        self.run("export TERM=dumb SYSTEMD_PAGER=")  # no colours, no pages

    def expect(self, text: str, patience: float = PATIENCE) -> str:
        """Read up to and including ``text``; what came before it."""
        try:
            self._child.expect_exact(text, patience)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            said = "\n".join((self._child.before or "").replace("\r", "").splitlines()[-30:])
            raise AssertionError(f"{type(error).__name__} instead of {text!r}; the guest said last:\n{said}") from None
        return str(self._child.before)

    def send(self, text: str) -> None:
        """Type ``text``."""
        self._child.send(text)

    def run(self, script: str) -> Done:
        """Run ``script`` (one line) at the prompt."""
        # quoted, so that the echo of the line is not taken for its beginning or end
        self.send(f"echo '<'go'>'; {script}; echo '<'status $?'>'\n")
        self.expect("<go>")
        self.expect("\n")
        output = self.expect("<status ")
        status = int(self.expect(">"))
        self.expect(PROMPT)
        # two carriage returns where both terminals, the guest's and the host's, add one to a line's end
        return Done(output.replace("\r", ""), status)

    def output(self, script: str) -> str:
        """What ``script`` prints; it has to end with status 0."""
        done = self.run(script)
        assert done.status == 0, f"{script}: {done}"
        return done.output

    def clock_offset(self) -> float:
        """The host's monotonic clock minus the guest's, in seconds.

        The answer is always late, so the smallest of several differences is the best.
        """
        return min(self._clock_difference() for _ in range(_CLOCK_SAMPLES))

    def _clock_difference(self) -> float:
        found = re.match(r"[0-9.]+", self.output("cat /proc/uptime"))
        assert found
        return time.monotonic() - float(found[0])

    def kill(self, number: int) -> None:
        """Send ``bhyve`` a signal."""
        self._child.kill(number)

    def end(self) -> int:
        """Wait for ``bhyve`` to end by itself; its status."""
        self._child.expect(pexpect.EOF)
        self._child.wait()
        return int(self._child.exitstatus)

    def close(self) -> None:
        """End ``bhyve``, whatever it is doing."""
        if self._child.isalive():
            self._child.kill(signal.SIGKILL)
            self._child.wait()  # pexpect's own close gives up on a busy host
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
