"""Drives gdb as a person at its prompt would."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import pexpect

PROMPT = "(gdb) "


class Debugger:
    """gdb with the symbols of ``program``."""

    def __init__(self, program: Path | str, patience: float = 120.0) -> None:
        settings = ("pagination off", "confirm off", "style enabled off", "width 0", "tcp connect-timeout 60")
        options = [word for setting in settings for word in ("-iex", f"set {setting}")]
        plain = {**os.environ, "TERM": "dumb"}  # no line editing between the answers
        arguments = ["-nx", "-q", *options, str(program)]
        self._child = pexpect.spawn("gdb", arguments, timeout=patience, encoding="utf-8", echo=False, env=plain)
        self._child.delaybeforesend = None
        self.said = self.wait()

    def send(self, line: str) -> None:
        """Type a command."""
        self._child.sendline(line)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._child.sendintr()

    def wait(self) -> str:
        """Until the next prompt; what was printed."""
        try:
            self._child.expect_exact(PROMPT)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            raise AssertionError(f"{type(error).__name__}: gdb said last:\n{self._child.before}") from None
        return str(self._child.before).replace("\r", "")

    def expect(self, text: str) -> None:
        """Until gdb prints ``text``."""
        self._child.expect_exact(text)

    def __call__(self, line: str) -> str:
        """The answer to a command."""
        self.send(line)
        return self.wait()

    def number(self, expression: str) -> int:
        """The value of an expression."""
        answer = self(f"output/x {expression}")
        return int(answer.split()[0], 16)

    def close(self) -> None:
        self._child.close(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
