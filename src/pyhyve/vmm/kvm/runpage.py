"""The page that a vCPU shares with KVM, and what it says: exits decoded, answers written back.

Source: the kernel's KVM API documentation §5, the kvm_run structure. After KVM_RUN it holds the exit's reason and
details. What the exit wants (the result of IN, RDMSR or a read of device memory) is written into the same page and
taken by the next KVM_RUN. KVM hands over REP INS as one exit with many elements; here they come out one at a time, and
the answers go back together. ``InOut.string`` is set for those; KVM does not tell a single INS or OUTS from IN or OUT.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

from pyhyve.vmm.exits import (
    Bogus,
    EntryFailed,
    Exit,
    Hlt,
    InOut,
    InstEmul,
    InstEmulFailed,
    RdMsr,
    Suspended,
    WrMsr,
)
from pyhyve.vmm.exits import SuspendReason as Why
from pyhyve.vmm.kvm import structs
from pyhyve.vmm.kvm.ioctls import ExitReason, InternalError, SystemEvent

_SYSTEM_EVENTS = {
    SystemEvent.SHUTDOWN: Why.POWER_OFF,
    SystemEvent.RESET: Why.RESET,
    SystemEvent.CRASH: Why.HALT,
}
_INTERNAL_ERRORS = {
    InternalError.SIMULTANEOUS_EXCEPTIONS: "exceptions that cannot happen together",
    InternalError.EVENT_DELIVERY: "an exit while an event was being delivered",
    InternalError.UNEXPECTED_EXIT: "an exit that KVM did not expect",
}


@dataclass(slots=True)
class _Elements:
    """What is left of a string of INs or OUTs: ``left`` elements of ``size`` bytes from ``at`` in the page."""

    port: int
    size: int
    is_in: bool
    at: int
    left: int


class RunPage:
    """A view of one vCPU's kvm_run.

    ``rip`` reads the vCPU's instruction pointer, for exits that report it; ``on_debug`` makes an exit of DR6.
    """

    def __init__(self, page: mmap.mmap, rip: Callable[[], int], on_debug: Callable[[int], Exit | None]) -> None:
        self._page = page
        self._rip = rip
        self._on_debug = on_debug
        self._elements: _Elements | None = None
        self._answer_at = 0
        self._answer_size = 0
        self.msr_pending = False
        self._decoders: dict[int, Callable[[], Exit | None]] = {
            ExitReason.UNKNOWN: self._unknown,
            ExitReason.IO: self._io,
            ExitReason.DEBUG: self._debug,
            ExitReason.HLT: Hlt,
            ExitReason.MMIO: self._mmio,
            ExitReason.IRQ_WINDOW_OPEN: Bogus,
            ExitReason.SHUTDOWN: lambda: Suspended(Why.TRIPLE_FAULT),
            ExitReason.FAIL_ENTRY: self._fail_entry,
            ExitReason.INTR: Bogus,
            ExitReason.INTERNAL_ERROR: self._internal_error,
            ExitReason.SYSTEM_EVENT: self._system_event,
            ExitReason.X86_RDMSR: self._rdmsr,
            ExitReason.X86_WRMSR: self._wrmsr,
        }

    def request_exit(self, on: bool) -> None:
        """Make KVM_RUN finish what the last exit left undone and come straight back, or not."""
        self._page[structs.RUN_IMMEDIATE_EXIT] = on

    def decode(self) -> Exit | None:
        """The exit that KVM_RUN has just left in the page; None where ``on_debug`` made none."""
        (reason,) = structs.RUN_EXIT_REASON.unpack_from(self._page)
        decoder = self._decoders.get(reason)
        return decoder() if decoder else self._unexpected(reason)

    def next_element(self) -> Exit | None:
        """The next element of a string, or None when the whole of the last exit has been handed out."""
        return self._take(self._elements) if self._elements else None

    def _take(self, elements: _Elements) -> Exit:
        at, size = elements.at, elements.size
        elements.at += size
        elements.left -= 1
        if not elements.left:
            self._elements = None
        if elements.is_in:
            self._want(at, size)
            return InOut(elements.port, size, True, string=True)
        value = int.from_bytes(self._page[at : at + size], "little")
        return InOut(elements.port, size, False, value, string=True)

    def answer(self, value: int) -> None:
        """Give the last exit what it wants. Without a question this does nothing."""
        at, size = self._answer_at, self._answer_size
        if size:
            self._page[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def refuse_msr(self) -> None:
        """Complete RDMSR or WRMSR with #GP(0)."""
        self._page[structs.RUN_MSR_ERROR] = 1

    def forget(self) -> None:
        """The last exit is over: nothing waits for an answer."""
        self._answer_size = 0
        self.msr_pending = False

    def _want(self, at: int, size: int) -> None:
        # Until the machine answers, a read finds all ones: nobody drives the bus.
        self._answer_at, self._answer_size = at, size
        self._page[at : at + size] = b"\xff" * size

    def _io(self) -> Exit:
        direction, size, port, count, at = structs.RUN_IO.unpack_from(self._page, structs.RUN_UNION)
        is_in = direction != structs.RUN_IO_OUT
        if count > 1:
            self._elements = _Elements(port, size, is_in, at, count)
            return self._take(self._elements)
        if is_in:
            self._want(at, size)
            return InOut(port, size, True)
        return InOut(port, size, False, int.from_bytes(self._page[at : at + size], "little"))

    def _mmio(self) -> Exit:
        gpa, value, size, is_write = structs.RUN_MMIO.unpack_from(self._page, structs.RUN_UNION)
        if is_write:
            return InstEmul(gpa, size, True, value & (1 << 8 * size) - 1)
        self._want(structs.RUN_MMIO_DATA, size)
        return InstEmul(gpa, size, False)

    def _rdmsr(self) -> Exit:
        _, _, index, _ = structs.RUN_MSR.unpack_from(self._page, structs.RUN_UNION)
        self._page[structs.RUN_MSR_ERROR] = 0
        self._answer_at, self._answer_size = structs.RUN_MSR_DATA, 8
        self.msr_pending = True
        self.answer(0)
        return RdMsr(index)

    def _wrmsr(self) -> Exit:
        _, _, index, value = structs.RUN_MSR.unpack_from(self._page, structs.RUN_UNION)
        self._page[structs.RUN_MSR_ERROR] = 0
        self.msr_pending = True
        return WrMsr(index, value)

    def _debug(self) -> Exit | None:
        _, _, dr6, _ = structs.RUN_DEBUG.unpack_from(self._page, structs.RUN_UNION)
        return self._on_debug(dr6)

    def _system_event(self) -> Exit:
        (kind,) = structs.RUN_SYSTEM_EVENT.unpack_from(self._page, structs.RUN_UNION)
        why = _SYSTEM_EVENTS.get(kind)
        return Suspended(why) if why else Bogus()

    def _fail_entry(self) -> Exit:
        reason, cpu = structs.RUN_FAIL_ENTRY.unpack_from(self._page, structs.RUN_UNION)
        detail = f"the CPU refused to enter the guest (hardware reason {reason:#x}, host CPU {cpu})"
        return self._failure(ExitReason.FAIL_ENTRY, reason, detail)

    def _internal_error(self) -> Exit:
        suberror, count, *data = structs.RUN_INTERNAL.unpack_from(self._page, structs.RUN_UNION)
        words = data[: min(count, len(data))]
        if suberror == InternalError.EMULATION:
            return InstEmulFailed(self._rip(), _instruction_bytes(words))
        detail = _INTERNAL_ERRORS.get(suberror, f"KVM internal error {suberror}")
        if words:
            detail += ": data " + " ".join(f"{word:#x}" for word in words)
        return self._failure(ExitReason.INTERNAL_ERROR, suberror, detail, words[0] if words else 0)

    def _unknown(self) -> Exit:
        (reason,) = structs.RUN_HARDWARE.unpack_from(self._page, structs.RUN_UNION)
        return self._failure(ExitReason.UNKNOWN, reason, f"KVM does not know hardware exit {reason:#x}")

    def _unexpected(self, reason: int) -> Exit:
        return self._failure(reason, reason, f"KVM exit {reason} was not asked for")

    def _failure(self, status: int, reason: int, detail: str, qualification: int = 0) -> EntryFailed:
        return EntryFailed(
            rip=self._rip(),
            inst_length=0,
            status=int(status),
            exit_reason=reason,
            qualification=qualification,
            inst_type=0,
            inst_error=0,
            detail=detail,
        )


def _instruction_bytes(words: list[int]) -> str:
    """KVM_INTERNAL_ERROR_EMULATION: flags, then the instruction's length and bytes if flag 0 says so."""
    if len(words) < 3 or not words[0] & 1:
        return ""
    raw = b"".join(word.to_bytes(8, "little") for word in words[1:3])
    return f"bytes {raw[1 : 1 + min(raw[0], 15)].hex(' ')}"
