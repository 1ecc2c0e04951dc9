"""The registers as gdb numbers them, and the target description that tells it so.

Source: "Debugging with GDB", G "Target Descriptions" and G.5.15 "x86 Features" for the names, their order and their
sizes; SDM Vol. 1 §10.5.1 (FXSAVE) and §13.4 (XSAVE) for where x87, SSE and AVX registers lie. Where AVX-512's lie
differs between processors: the guest's CPUID says it.

The layout is that of a 64-bit processor whatever mode the guest is in, as a debugger asks for the description once.
The features beyond gdb's own hold the base of the inactive GS, the control registers and EFER.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from pyhyve.errors import PyhyveError
from pyhyve.vmm.api import VirtualCpu
from pyhyve.vmm.registers import GENERAL, Reg, Segment, SegmentName

_KERNEL_GS_BASE = 0xC0000102
_CR0_PE = 1 << 0
_FLAGS_VM = 1 << 17

# Offsets in an XSAVE area.
_FCW, _FSW, _FTW, _FOP, _FIP, _FDP, _MXCSR = 0, 2, 4, 6, 8, 16, 24
_ST, _XMM, _XSTATE_BV = 32, 160, 512
_X87, _SSE, _AVX = 1, 2, 4
# State components by number (SDM Vol. 1 §13.1), and their sizes.
_YMM, _OPMASK, _ZMM_HIGH, _ZMM_16 = 2, 5, 6, 7
_SIZES = {_YMM: 256, _OPMASK: 64, _ZMM_HIGH: 512, _ZMM_16: 1024}
_AVX512 = frozenset({_YMM, _OPMASK, _ZMM_HIGH, _ZMM_16})
_FCW_INITIAL = 0x37F
_TAG_VALID, _TAG_ZERO, _TAG_SPECIAL, _TAG_EMPTY = range(4)

# How gdb numbers the general registers; ours are in encoding order.
_GDB_ORDER = (0, 3, 1, 2, 6, 7, 5, 4, *range(8, 16))
_POINTERS = {Reg.RSP: "data_ptr", Reg.RBP: "data_ptr", Reg.RIP: "code_ptr"}
_SYSTEM = (Reg.CR0, Reg.CR2, Reg.CR3, Reg.CR4, Reg.CR8, Reg.EFER)
_WANTED = (*GENERAL, Reg.RIP, Reg.RFLAGS, *_SYSTEM)

_FLAGS_TYPE = """<flags id="i386_eflags" size="4">
<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>
<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>
<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>
<field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>
<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>
<field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/></flags>
"""
_VEC128_TYPE = """<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>
"""
_MXCSR_TYPE = """<flags id="i386_mxcsr" size="4">
<field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/><field name="ZE" start="2" end="2"/>
<field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/><field name="PE" start="5" end="5"/>
<field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/><field name="DM" start="8" end="8"/>
<field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/><field name="UM" start="11" end="11"/>
<field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/></flags>
"""
_V2UI128_TYPE = '<vector id="v2ui128" type="uint128" count="2"/>\n'
_TYPES = {"core": _FLAGS_TYPE, "sse": _VEC128_TYPE + _MXCSR_TYPE, "avx512": _VEC128_TYPE + _V2UI128_TYPE}


class CannotWrite(PyhyveError):
    """A register that does not take a value."""


class View:
    """A resting vCPU's registers, each group read once. A view is good until one of them is written."""

    def __init__(self, cpu: VirtualCpu, components: Mapping[int, int]) -> None:
        self.cpu = cpu
        self.components = components

    @cached_property
    def values(self) -> dict[Reg, int]:
        return self.cpu.get_registers(_WANTED)

    @cached_property
    def xsave(self) -> bytes:
        """The XSAVE area with what is in its initial state filled in."""
        area = bytearray(self.cpu.get_xsave())
        present = int.from_bytes(area[_XSTATE_BV : _XSTATE_BV + 8], "little")
        if not present & _X87:
            area[:_MXCSR] = _FCW_INITIAL.to_bytes(2, "little") + bytes(_MXCSR - 2)
            area[_ST:_XMM] = bytes(_XMM - _ST)
        if not present & _SSE:
            area[_XMM : _XMM + 256] = bytes(256)
        for number, offset in self.components.items():
            if number in _SIZES and not present >> number & 1:
                area[offset : offset + _SIZES[number]] = bytes(_SIZES[number])
        return bytes(area)

    def area(self, offset: int, size: int) -> int:
        """A field of the XSAVE area."""
        return int.from_bytes(self.xsave[offset : offset + size], "little")


@dataclass(frozen=True, slots=True)
class Register:
    """One register as gdb sees it: ``bits`` wide, of gdb's type ``type``, in feature ``feature``."""

    name: str
    bits: int
    type: str
    feature: str
    read: Callable[[View], int]
    write: Callable[[View, int], None]
    group: str = ""


# -- the kinds of registers --


def _read_reg(reg: Reg, view: View) -> int:
    return view.values[reg]


def _write_reg(reg: Reg, view: View, value: int) -> None:
    view.cpu.set_registers({reg: value})


def _read_selector(name: SegmentName, view: View) -> int:
    return view.cpu.get_segment(name).selector


def _write_selector(name: SegmentName, view: View, value: int) -> None:
    old = view.cpu.get_segment(name)
    if value == old.selector:
        return
    state = view.values
    if state[Reg.CR0] & _CR0_PE and not state[Reg.RFLAGS] & _FLAGS_VM:
        raise CannotWrite(f"{name}: outside real mode a selector alone makes no segment")
    view.cpu.set_segment(name, Segment(value & 0xFFFF, (value & 0xFFFF) << 4, old.limit, old.access))


def _read_base(name: SegmentName, view: View) -> int:
    return view.cpu.get_segment(name).base


def _write_base(name: SegmentName, view: View, value: int) -> None:
    old = view.cpu.get_segment(name)
    view.cpu.set_segment(name, Segment(old.selector, _canonical(value), old.limit, old.access))


def _read_msr(index: int, view: View) -> int:
    try:
        return view.cpu.get_msr(index)
    except KeyError:
        return 0


def _write_msr(index: int, view: View, value: int) -> None:
    try:
        view.cpu.set_msr(index, _canonical(value))
    except KeyError:
        raise CannotWrite(f"no MSR {index:#x}") from None


def _canonical(value: int) -> int:
    if value >> 47 not in (0, 0x1FFFF):
        raise CannotWrite(f"{value:#x} is not a canonical address")
    return value


def _read_area(offset: int, size: int, view: View) -> int:
    return view.area(offset, size)


def _write_area(offset: int, size: int, component: int, view: View, value: int) -> None:
    area = bytearray(view.xsave)
    area[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    area[_XSTATE_BV] |= component
    view.cpu.set_xsave(bytes(area))


def _read_tags(view: View) -> int:
    """The tag word of two bits a register, from the one bit that FXSAVE keeps (SDM Vol. 1 §8.1.7, §10.5.1.1)."""
    used, top = view.area(_FTW, 1), view.area(_FSW, 2) >> 11 & 7
    word = 0
    for physical in range(8):
        tag = _TAG_EMPTY
        if used >> physical & 1:
            value = view.area(_ST + 16 * ((physical - top) & 7), 10)
            exponent, fraction = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            if exponent == 0 and fraction == 0:
                tag = _TAG_ZERO
            else:
                tag = _TAG_VALID if 0 < exponent < 0x7FFF and fraction >> 63 else _TAG_SPECIAL
        word |= tag << 2 * physical
    return word


def _write_tags(view: View, value: int) -> None:
    used = sum(1 << n for n in range(8) if value >> 2 * n & 3 != _TAG_EMPTY)
    _write_area(_FTW, 1, _X87, view, used)


# -- the table --


def _reg(reg: Reg, bits: int, kind: str, feature: str, name: str = "") -> Register:
    return Register(name or reg.value, bits, kind, feature, partial(_read_reg, reg), partial(_write_reg, reg))


def _field(name: str, bits: int, kind: str, feature: str, where: tuple[int, int, int], group: str) -> Register:
    offset, size, component = where
    read, write = partial(_read_area, offset, size), partial(_write_area, offset, size, component)
    return Register(name, bits, kind, feature, read, write, group)


def _core() -> Iterator[Register]:
    for number in _GDB_ORDER:
        yield _reg(GENERAL[number], 64, _POINTERS.get(GENERAL[number], "int64"), "core")
    yield _reg(Reg.RIP, 64, "code_ptr", "core")
    yield _reg(Reg.RFLAGS, 32, "i386_eflags", "core", "eflags")
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        segment = SegmentName(name)
        yield Register(name, 32, "int32", "core", partial(_read_selector, segment), partial(_write_selector, segment))
    for number in range(8):
        yield _field(f"st{number}", 80, "i387_ext", "core", (_ST + 16 * number, 10, _X87), "float")
    yield _field("fctrl", 32, "int", "core", (_FCW, 2, _X87), "float")
    yield _field("fstat", 32, "int", "core", (_FSW, 2, _X87), "float")
    yield Register("ftag", 32, "int", "core", _read_tags, _write_tags, "float")
    for name, offset, size in (
        ("fiseg", _FIP + 4, 2), ("fioff", _FIP, 4), ("foseg", _FDP + 4, 2), ("fooff", _FDP, 4), ("fop", _FOP, 2)
    ):  # fmt: skip
        yield _field(name, 32, "int", "core", (offset, size, _X87), "float")


def _avx512(components: Mapping[int, int]) -> Iterator[Register]:
    opmask, high, upper = (components[number] for number in (_OPMASK, _ZMM_HIGH, _ZMM_16))
    for number in range(16):
        where = (upper + 64 * number, 16, 1 << _ZMM_16)
        yield _field(f"xmm{number + 16}", 128, "vec128", "avx512", where, "")
    for number in range(16):
        where = (upper + 64 * number + 16, 16, 1 << _ZMM_16)
        yield _field(f"ymm{number + 16}h", 128, "uint128", "avx512", where, "")
    for number in range(8):
        yield _field(f"k{number}", 64, "uint64", "avx512", (opmask + 8 * number, 8, 1 << _OPMASK), "")
    for number in range(16):
        yield _field(f"zmm{number}h", 256, "v2ui128", "avx512", (high + 32 * number, 32, 1 << _ZMM_HIGH), "")
    for number in range(16):
        where = (upper + 64 * number + 32, 32, 1 << _ZMM_16)
        yield _field(f"zmm{number + 16}h", 256, "v2ui128", "avx512", where, "")


def _all(components: Mapping[int, int]) -> Iterator[Register]:
    yield from _core()
    for number in range(16):
        yield _field(f"xmm{number}", 128, "vec128", "sse", (_XMM + 16 * number, 16, _SSE), "")
    yield _field("mxcsr", 32, "i386_mxcsr", "sse", (_MXCSR, 4, _SSE), "vector")
    if _YMM in components:
        for number in range(16):
            yield _field(f"ymm{number}h", 128, "uint128", "avx", (components[_YMM] + 16 * number, 16, _AVX), "")
    if components.keys() >= _AVX512:
        yield from _avx512(components)
    for name in (SegmentName.FS, SegmentName.GS):
        read, write = partial(_read_base, name), partial(_write_base, name)
        yield Register(f"{name}_base", 64, "int64", "segments", read, write)
    gs_base = partial(_read_msr, _KERNEL_GS_BASE), partial(_write_msr, _KERNEL_GS_BASE)
    yield Register("k_gs_base", 64, "int64", "system", *gs_base)
    for reg in _SYSTEM:
        yield _reg(reg, 64, "int64", "system")


_FEATURES = {
    "core": "org.gnu.gdb.i386.core",
    "sse": "org.gnu.gdb.i386.sse",
    "avx": "org.gnu.gdb.i386.avx",
    "avx512": "org.gnu.gdb.i386.avx512",
    "segments": "org.gnu.gdb.i386.segments",
    "system": "org.pyhyve.i386.system",
}


class RegisterFile:
    """The registers of a machine's vCPUs in gdb's order.

    ``components`` are the numbers of the state components that an XSAVE area has, from 2 on, and where they lie.
    """

    def __init__(self, components: Mapping[int, int]) -> None:
        self.components = components
        self.registers = tuple(_all(components))
        self.numbers = {register.name: number for number, register in enumerate(self.registers)}

    def description(self) -> str:
        """The target description, ``target.xml``."""
        lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
        lines.append("<architecture>i386:x86-64</architecture>")
        feature = ""
        for register in self.registers:
            if register.feature != feature:
                if feature:
                    lines.append("</feature>")
                feature = register.feature
                lines.append(f'<feature name="{_FEATURES[feature]}">{_TYPES.get(feature, "")}')
            group = f' group="{register.group}"' if register.group else ""
            lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>')
        return "\n".join([*lines, "</feature>", "</target>", ""])

    def read(self, cpu: VirtualCpu, number: int) -> bytes:
        """One register, little-endian. Raises ``IndexError``."""
        return self._bytes(self.registers[number], View(cpu, self.components))

    def read_some(self, cpu: VirtualCpu, numbers: Iterable[int]) -> list[bytes]:
        """Several registers at once."""
        view = View(cpu, self.components)
        return [self._bytes(self.registers[number], view) for number in numbers]

    def read_all(self, cpu: VirtualCpu) -> bytes:
        """All of them, in order."""
        view = View(cpu, self.components)
        return b"".join(self._bytes(register, view) for register in self.registers)

    def write(self, cpu: VirtualCpu, number: int, data: bytes) -> None:
        """Set one. Raises ``IndexError``, ``CannotWrite``, or ``BackendError`` where the backend does not take it."""
        register = self.registers[number]
        if len(data) != register.bits // 8:
            raise CannotWrite(f"{register.name} has {register.bits} bits")
        register.write(View(cpu, self.components), int.from_bytes(data, "little"))

    def write_all(self, cpu: VirtualCpu, data: bytes) -> None:
        """Set those that differ from what ``data`` has for them; it may end early. Raises as ``write`` does."""
        at = 0
        for number, register in enumerate(self.registers):
            piece = data[at : at + register.bits // 8]
            if len(piece) < register.bits // 8:
                return
            at += len(piece)
            if piece != self.read(cpu, number):
                self.write(cpu, number, piece)

    @staticmethod
    def _bytes(register: Register, view: View) -> bytes:
        size = register.bits // 8
        return (register.read(view) & (1 << register.bits) - 1).to_bytes(size, "little")
