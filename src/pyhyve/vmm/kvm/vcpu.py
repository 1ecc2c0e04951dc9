"""One vCPU on KVM: the run loop's inner step, kicks, capabilities and events.

Source: the kernel's KVM API documentation. ``run`` is one KVM_RUN, made by the vCPU's own thread with the GIL dropped;
the exit is decoded from the shared page (``runpage``). KVM finishes an exit's instruction at the start of the next
KVM_RUN: registers read between an exit and the next ``run`` may still be those before it, and those after a ``Bogus``
are exact. A halted vCPU, and an application processor that waits for its start-up message, sleep inside ``run``.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fcntl import ioctl
from typing import TYPE_CHECKING

from pyhyve.errors import BackendError
from pyhyve.vmm.api import ApicMode, Capability, CpuidEntry, Point, VirtualCpu
from pyhyve.vmm.cpuid import with_apic_id
from pyhyve.vmm.exits import Bogus, Debug, EntryFailed, Exit, Mtrap
from pyhyve.vmm.kvm import ioctls, kick, structs
from pyhyve.vmm.kvm.counters import Counters
from pyhyve.vmm.kvm.points import SINGLE_STEP, DebugRegisters
from pyhyve.vmm.kvm.runpage import RunPage
from pyhyve.vmm.kvm.state import CpuState
from pyhyve.vmm.registers import Access, Reg, SegmentName

if TYPE_CHECKING:
    from pyhyve.vmm.kvm.vm import KvmMachine

_GP = 13
_APIC_BASE_X2APIC = 1 << 10  # IA32_APIC_BASE, SDM Vol. 3A §11.4.4 and §11.12.1
_APIC_BASE_ENABLE = 1 << 11
_MSI_ADDRESS = 0xFEE00000  # SDM Vol. 3A §11.11
_MSI_DESTINATION_SHIFT = 12
_MSI_NMI = 4 << 8


class KvmCpu(CpuState, VirtualCpu):
    """vCPU ``index`` of ``machine``."""

    def __init__(self, machine: KvmMachine, system: int, index: int) -> None:
        fd = ioctls.call(machine.fd, ioctls.CREATE_VCPU, index, doing=f"create vCPU {index}")
        try:
            size = ioctls.call(system, ioctls.GET_VCPU_MMAP_SIZE, doing="tell the size of its run page")
            self._page = mmap.mmap(fd, size)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise BackendError(f"KVM cannot share the run page of vCPU {index}: {error}") from None
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, system, f"vCPU {index}")
        self.index = index
        self._machine = machine
        self._run = RunPage(self._page, self._rip, self._debug_exit)
        self._points = DebugRegisters()
        self._stepping = False
        self._over = False  # pass over a breakpoint at the next instruction
        self._passing: int | None = None  # the breakpoint that is being passed over, by a single step
        self._fresh = True
        self._inside = False
        self._thread = 0
        self._thread_id = 0
        self._apic_mode: ApicMode | None = None
        self._has_cpuid = False
        self._counters: Counters | None = None
        kick.install()

    def _rip(self) -> int:
        return self.get_registers((Reg.RIP,))[Reg.RIP]

    # Running.

    def run(self) -> Exit:
        element = self._run.next_element()
        if element is not None:
            return element
        if self._thread != threading.get_ident():
            self._adopt_thread()
        if self._points:
            self._pass_over()
        self._over = False
        exit_ = self._enter()
        while exit_ is None:  # a breakpoint was passed over
            exit_ = self._enter()
        return exit_

    def _enter(self) -> Exit | None:
        while True:
            self._inside = True
            try:
                ioctl(self._fd, ioctls.RUN, 0)
            except OSError as error:
                self._inside = False
                self._run.forget()
                if error.errno == errno.EINTR:
                    self._run.request_exit(False)
                    return Bogus()
                if error.errno == errno.EAGAIN:  # an application processor has got its start-up message
                    continue
                return self._run_failed(error)
            self._inside = False
            self._run.forget()
            return self._run.decode()

    def _adopt_thread(self) -> None:
        kick.unblock()
        self._thread_id = threading.get_native_id()
        self._thread = threading.get_ident()
        self._count()

    def _run_failed(self, error: OSError) -> Exit:
        number = error.errno or 0
        detail = f"KVM_RUN failed: {os.strerror(number)}"
        return EntryFailed(self._rip(), 0, number, 0, 0, 0, 0, detail)

    def answer(self, value: int) -> None:
        self._run.answer(value)

    def kick(self) -> None:
        # The page first: a vCPU that is about to enter sees it, one that is inside gets the signal.
        self._run.request_exit(True)
        if self._inside:
            kick.send(self._thread_id)

    def _finish_instruction(self) -> None:
        """Let KVM complete the last exit's instruction without running the guest."""
        self._run.request_exit(True)
        with suppress(InterruptedError):
            ioctl(self._fd, ioctls.RUN, 0)
        self._run.request_exit(False)
        self._run.forget()

    # Capabilities and configuration.

    def set_capability(self, cap: Capability, on: bool) -> None:
        if not self._machine.capability(cap):
            if not on:
                return
            raise BackendError(f"KVM cannot do this on this host: {cap.value}")
        if cap is Capability.MTRAP_EXIT:
            self._stepping = on
            self._set_debugging()
        elif not on:
            raise BackendError(f"KVM cannot switch this off: {cap.value}")

    # Single steps, breakpoints and watchpoints.

    def set_points(self, points: Iterable[Point]) -> None:
        self._points = DebugRegisters(points)
        self._set_debugging()

    def _set_debugging(self) -> None:
        request = structs.GuestDebug()
        if self._stepping or self._passing is not None:
            request.control |= ioctls.GUESTDBG_ENABLE | ioctls.GUESTDBG_SINGLESTEP | self._machine.step_flags
        if self._points:
            request.control |= ioctls.GUESTDBG_ENABLE | ioctls.GUESTDBG_USE_HW_BP
            for number, address in enumerate(self._points.addresses):
                request.debugreg[number] = address
            request.debugreg[7] = self._points.control(breakpoints=self._passing is None)
        self._write(ioctls.SET_GUEST_DEBUG, request, "debugging")

    def _linear_rip(self) -> int:
        code = self.get_segment(SegmentName.CS)
        rip = self._rip()
        return rip if code.access & Access.LONG else (rip + code.base) & 0xFFFFFFFF

    def _pass_over(self) -> None:
        """Take breakpoints away for one step where the next instruction is one that was reported."""
        if self._passing is not None:
            # An exit of the instruction's own, or a kick, came between.
            if self._linear_rip() == self._passing:
                return
            self._passing = None
            self._set_debugging()
        if self._over:
            linear = self._linear_rip()
            if self._points.stops_at(linear):
                self._passing = linear
                self._set_debugging()

    def _debug_exit(self, dr6: int) -> Exit | None:
        """The exit for what DR6 reports; None where a breakpoint was passed over."""
        passed = self._passing is not None
        if passed:
            self._passing = None
            self._set_debugging()
        watched = self._points.watched(dr6)
        if watched is None and passed and not self._stepping:
            return None
        self._over = True
        if watched is not None:
            return Debug(self._rip(), watched.gva)
        return Mtrap() if dr6 & SINGLE_STEP else Debug(self._rip())

    def set_registers(self, values: Mapping[Reg, int]) -> None:
        super().set_registers(values)
        if Reg.RIP in values:
            self._over = True

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """Give this vCPU its CPUID table, with its own APIC id in it."""
        table = bytearray()
        count = 0
        for entry in with_apic_id(entries, self.index):
            table += structs.CpuidEntry2(
                function=entry.leaf,
                index=entry.subleaf or 0,
                flags=0 if entry.subleaf is None else structs.CPUID_SIGNIFICANT_INDEX,
                eax=entry.eax,
                ebx=entry.ebx,
                ecx=entry.ecx,
                edx=entry.edx,
            )
            count += 1
        table[:0] = bytes(structs.CpuidHeader(nent=count))
        ioctls.call(self._fd, ioctls.SET_CPUID2, table, doing=f"set the CPUID of {self._label}")
        self._has_cpuid = True
        if self._apic_mode is not None:
            self.set_apic_mode(self._apic_mode)

    def set_apic_mode(self, mode: ApicMode) -> None:
        self._apic_mode = mode
        if not self._has_cpuid:
            return  # KVM checks x2APIC against CPUID: ``set_cpuid`` comes back here
        sregs = self._sregs()
        sregs.apic_base |= _APIC_BASE_ENABLE
        if mode is ApicMode.X2APIC:
            sregs.apic_base |= _APIC_BASE_X2APIC
        else:
            sregs.apic_base &= ~_APIC_BASE_X2APIC
        self._set_sregs(sregs)

    # Events.

    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        if self._run.msr_pending:
            if vector == _GP and error_code == 0:
                self._run.refuse_msr()
                return
            # KVM can only complete the MSR access or raise #GP(0): complete it, then take its effects back.
            regs = structs.Regs()
            self._read(ioctls.GET_REGS, regs, "registers")
            self._finish_instruction()
            self._write(ioctls.SET_REGS, regs, "registers")
        events = structs.VcpuEvents()
        self._read(ioctls.GET_VCPU_EVENTS, events, "pending events")
        events.exception_injected = 1
        events.exception_nr = vector
        events.exception_has_error_code = error_code is not None
        events.exception_error_code = error_code or 0
        events.flags = 0
        self._write(ioctls.SET_VCPU_EVENTS, events, "a pending exception")

    def inject_nmi(self) -> None:
        # KVM_NMI would wait until the vCPU leaves KVM_RUN; a message of delivery mode NMI does not.
        self._machine.send_msi(_MSI_ADDRESS | self.index << _MSI_DESTINATION_SHIFT, _MSI_NMI)

    # The end, and the counters.

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._counters:
            self._counters.close()
        self._page.close()
        super().close()
        self._fd = -1

    def stats(self) -> Mapping[str, float]:
        """KVM's counters of this vCPU (``exits``, ``halt_exits``, ``io_exits``, ...). From any thread, at any time."""
        return self._count().read()

    def _count(self) -> Counters:
        # Before the guest runs: the ioctl behind it would wait until the vCPU leaves KVM_RUN; reading does not.
        if self._counters is None:
            self._counters = Counters(self._fd)
        return self._counters
