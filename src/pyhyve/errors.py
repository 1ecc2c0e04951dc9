"""Every error that a user can meet: one line of text and the status the program ends with.

Statuses are those of bhyve(8) and, for a wrong command line, ``EX_USAGE`` of sysexits(3).
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Exit statuses of ``bhyve`` (bhyve(8), EXIT STATUS)."""

    RESET = 0
    POWER_OFF = 1
    HALTED = 2
    TRIPLE_FAULT = 3
    ERROR = 4
    USAGE = 64


class PyhyveError(Exception):
    """Base of every error that ends in one line on standard error.

    ``status`` is what the process exits with when nobody catches the error.
    """

    status: int = Status.POWER_OFF

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class UsageError(PyhyveError):
    """The command line or a configuration value is wrong."""

    status = Status.USAGE


class ConfigError(PyhyveError):
    """A configuration variable has a value that the machine cannot be built from."""


class BackendError(PyhyveError):
    """A hypervisor backend is missing, busy, forbidden or failed."""


class LoaderError(PyhyveError):
    """A kernel, initrd or ROM cannot be loaded."""


class MemoryError_(PyhyveError):
    """Guest memory cannot be had, or an address lies outside it."""


class DeviceError(PyhyveError):
    """A device cannot be created from its configuration."""
