"""The state in which a start-up IPI sets a processor going (SDM Vol. 3A §9.4.4 and table 10-1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyhyve.vmm.registers import GENERAL, Access, Reg, Segment, SegmentName, Table

if TYPE_CHECKING:
    from pyhyve.vmm.api import VirtualCpu

# What INIT leaves, but for the start address that the start-up IPI brings.
_INIT_REGISTERS: Mapping[Reg, int] = {
    **{reg: 0 for reg in GENERAL if reg is not Reg.RDX},  # RDX tells family and model
    Reg.RFLAGS: 0x2,
    Reg.RIP: 0,
    Reg.CR0: 0x10,
    Reg.CR3: 0,
    Reg.CR4: 0,
    Reg.EFER: 0,
}
_DATA_SEGMENT = Segment(0, 0, 0xFFFF, int(Access.PRESENT | Access.S) | 0x3)
_CODE_ACCESS = int(Access.PRESENT | Access.S) | 0xB


def start_at_sipi(cpu: VirtualCpu, vector: int) -> None:
    """Put a vCPU in real mode at CS base ``vector << 12``, IP 0."""
    cpu.set_registers(_INIT_REGISTERS)
    for name in (SegmentName.DS, SegmentName.ES, SegmentName.FS, SegmentName.GS, SegmentName.SS):
        cpu.set_segment(name, _DATA_SEGMENT)
    cpu.set_segment(SegmentName.CS, Segment(vector << 8, vector << 12, 0xFFFF, _CODE_ACCESS))
    cpu.set_table("gdtr", Table())
    cpu.set_table("idtr", Table())
