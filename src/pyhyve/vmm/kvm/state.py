"""The registers of a vCPU, through KVM's register ioctls.

Source: the kernel's KVM API documentation §4.11-§4.57. KVM keeps registers in groups, each read and written whole: the
general ones (KVM_GET_REGS), segments and control registers (KVM_GET_SREGS), debug registers, XCR0. Setting one is
reading its group, changing it and writing it back.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping

from pyhyve.errors import BackendError
from pyhyve.vmm.kvm import ioctls, structs
from pyhyve.vmm.registers import DEBUG, GENERAL, Access, Reg, Segment, SegmentName, Table

_MAIN = frozenset({*GENERAL, Reg.RIP, Reg.RFLAGS})
_CONTROL = frozenset({Reg.CR0, Reg.CR2, Reg.CR3, Reg.CR4, Reg.CR8, Reg.EFER})
_DEBUG = frozenset(DEBUG)
_BREAKPOINTS = (Reg.DR0, Reg.DR1, Reg.DR2, Reg.DR3)
_SEGMENTS = {name: {"ldtr": "ldt"}.get(name.value, name.value) for name in SegmentName}
_TABLES = {"gdtr": "gdt", "idtr": "idt"}

_CR0_PG = 1 << 31
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10
_DPL_SHIFT = 5


def _to_segment(raw: structs.KvmSegment) -> Segment:
    access = Access(raw.type & 0xF | (raw.dpl & 3) << _DPL_SHIFT)
    for bit, on in (
        (Access.S, raw.s),
        (Access.PRESENT, raw.present),
        (Access.AVL, raw.avl),
        (Access.LONG, raw.l),
        (Access.DB, raw.db),
        (Access.GRANULARITY, raw.g),
        (Access.UNUSABLE, raw.unusable),
    ):
        if on:
            access |= bit
    return Segment(raw.selector, raw.base, raw.limit, int(access))


def _from_segment(value: Segment) -> structs.KvmSegment:
    access = value.access
    unusable = bool(access & Access.UNUSABLE)
    return structs.KvmSegment(
        base=value.base,
        limit=value.limit,
        selector=value.selector,
        type=access & Access.TYPE,
        present=bool(access & Access.PRESENT) and not unusable,
        dpl=(access & Access.DPL) >> _DPL_SHIFT,
        db=bool(access & Access.DB),
        s=bool(access & Access.S),
        l=bool(access & Access.LONG),
        g=bool(access & Access.GRANULARITY),
        avl=bool(access & Access.AVL),
        unusable=unusable,
    )


class CpuState:
    """Register access on the vCPU descriptor ``fd``. Only while that vCPU is not inside KVM_RUN."""

    def __init__(self, fd: int, system: int, label: str) -> None:
        self._fd = fd
        self._label = label
        self._xsave_size = max(structs.XSAVE_SIZE, ioctls.extension(system, ioctls.Cap.XSAVE2))

    def _read(self, request: int, into: ctypes.Structure, what: str) -> None:
        ioctls.call(self._fd, request, into, doing=f"read {what} of {self._label}")

    def _write(self, request: int, value: ctypes.Structure, what: str) -> None:
        ioctls.call(self._fd, request, value, doing=f"set {what} of {self._label}")

    def _sregs(self) -> structs.Sregs:
        sregs = structs.Sregs()
        self._read(ioctls.GET_SREGS, sregs, "control registers")
        return sregs

    def _set_sregs(self, sregs: structs.Sregs) -> None:
        # LMA is what LME and PG make of it (SDM Vol. 3A §10.8.5); KVM refuses a state where it is not.
        if sregs.efer & _EFER_LME and sregs.cr0 & _CR0_PG:
            sregs.efer |= _EFER_LMA
        else:
            sregs.efer &= ~_EFER_LMA
        self._write(ioctls.SET_SREGS, sregs, "control registers and segments")

    def get_registers(self, names: Iterable[Reg]) -> dict[Reg, int]:
        wanted = list(names)
        found: dict[Reg, int] = {}
        if not _MAIN.isdisjoint(wanted):
            regs = structs.Regs()
            self._read(ioctls.GET_REGS, regs, "registers")
            found.update((name, getattr(regs, name.value)) for name in wanted if name in _MAIN)
        if not _CONTROL.isdisjoint(wanted):
            sregs = self._sregs()
            found.update((name, getattr(sregs, name.value)) for name in wanted if name in _CONTROL)
        if not _DEBUG.isdisjoint(wanted):
            debug = self._debug_registers()
            values = dict(zip(_BREAKPOINTS, debug.db, strict=True)) | {Reg.DR6: debug.dr6, Reg.DR7: debug.dr7}
            found.update((name, values[name]) for name in wanted if name in _DEBUG)
        if Reg.XCR0 in wanted:
            found[Reg.XCR0] = self._xcrs().xcrs[0].value
        return found

    def set_registers(self, values: Mapping[Reg, int]) -> None:
        names = values.keys()
        if not _CONTROL.isdisjoint(names):
            sregs = self._sregs()
            for name in _CONTROL & names:
                setattr(sregs, name.value, values[name])
            self._set_sregs(sregs)
        if not _DEBUG.isdisjoint(names):
            debug = self._debug_registers()
            for number, name in enumerate(_BREAKPOINTS):
                debug.db[number] = values.get(name, debug.db[number])
            debug.dr6 = values.get(Reg.DR6, debug.dr6)
            debug.dr7 = values.get(Reg.DR7, debug.dr7)
            self._write(ioctls.SET_DEBUGREGS, debug, "debug registers")
        if Reg.XCR0 in names:
            xcrs = self._xcrs()
            xcrs.xcrs[0].value = values[Reg.XCR0]
            self._write(ioctls.SET_XCRS, xcrs, "XCR0")
        if not _MAIN.isdisjoint(names):
            regs = structs.Regs()
            self._read(ioctls.GET_REGS, regs, "registers")
            for name in _MAIN & names:
                setattr(regs, name.value, values[name])
            self._write(ioctls.SET_REGS, regs, "registers")

    def _debug_registers(self) -> structs.DebugRegs:
        debug = structs.DebugRegs()
        self._read(ioctls.GET_DEBUGREGS, debug, "debug registers")
        return debug

    def _xcrs(self) -> structs.Xcrs:
        xcrs = structs.Xcrs()
        self._read(ioctls.GET_XCRS, xcrs, "XCR0")
        return xcrs

    def get_segment(self, name: SegmentName) -> Segment:
        return _to_segment(getattr(self._sregs(), _SEGMENTS[name]))

    def set_segment(self, name: SegmentName, value: Segment) -> None:
        sregs = self._sregs()
        setattr(sregs, _SEGMENTS[name], _from_segment(value))
        self._set_sregs(sregs)

    def get_table(self, name: str) -> Table:
        raw = getattr(self._sregs(), _TABLES[name])
        return Table(raw.base, raw.limit)

    def set_table(self, name: str, value: Table) -> None:
        sregs = self._sregs()
        setattr(sregs, _TABLES[name], structs.KvmTable(base=value.base, limit=value.limit))
        self._set_sregs(sregs)

    def get_msr(self, index: int) -> int:
        msr = structs.OneMsr(nmsrs=1, index=index)
        if ioctls.call(self._fd, ioctls.GET_MSRS, msr, doing=f"read MSRs of {self._label}") != 1:
            raise KeyError(index)
        return int(msr.data)

    def set_msr(self, index: int, value: int) -> None:
        """Raises ``KeyError`` for an MSR that KVM has not, ``BackendError`` for a value that it does not take."""
        msr = structs.OneMsr(nmsrs=1, index=index, data=value)
        if ioctls.call(self._fd, ioctls.SET_MSRS, msr, doing=f"set MSRs of {self._label}") != 1:
            self.get_msr(index)
            raise BackendError(f"KVM does not take {value:#x} for MSR {index:#x}")

    def get_xsave(self) -> bytes:
        data = bytearray(self._xsave_size)
        request = ioctls.GET_XSAVE2 if self._xsave_size > structs.XSAVE_SIZE else ioctls.GET_XSAVE
        ioctls.call(self._fd, request, data, doing=f"read the vector state of {self._label}")
        return bytes(data)

    def set_xsave(self, data: bytes) -> None:
        if len(data) > self._xsave_size:
            raise BackendError(f"vector state of {len(data)} bytes, but this KVM holds {self._xsave_size}")
        area = bytearray(data.ljust(self._xsave_size, b"\0"))
        ioctls.call(self._fd, ioctls.SET_XSAVE, area, doing=f"set the vector state of {self._label}")

    def get_lapic(self) -> bytes:
        data = bytearray(structs.LAPIC_SIZE)
        ioctls.call(self._fd, ioctls.GET_LAPIC, data, doing=f"read the local APIC of {self._label}")
        return bytes(data)

    def set_lapic(self, data: bytes) -> None:
        if len(data) != structs.LAPIC_SIZE:
            raise BackendError(f"a local APIC's state is {structs.LAPIC_SIZE} bytes, not {len(data)}")
        ioctls.call(self._fd, ioctls.SET_LAPIC, bytearray(data), doing=f"set the local APIC of {self._label}")

    def translate(self, gva: int) -> int | None:
        request = structs.Translation(linear_address=gva)
        self._write(ioctls.TRANSLATE, request, "an address to translate")
        return int(request.physical_address) if request.valid else None

    def close(self) -> None:
        os.close(self._fd)
