r"""The interrupt links of the LPC bridge in the DSDT: how a guest in PIC mode learns and changes PCI's ISA interrupts.

Document: ACPI specification 6.4, §6.2 (_PRS, _CRS, _SRS, _DIS), §6.2.13 (links in a _PRT); PNP0C0F, interrupt link.

The bridge's routing registers are fields ``PIRA`` to ``PIRH`` of its configuration space. Each is a device ``LNKA`` to
``LNKH``: its current setting is the register as an interrupt mask, setting it writes the register.
"""

from __future__ import annotations

from pyhyve.firmware.acpi import aml
from pyhyve.firmware.platform import PIRQS

FIRST_REGISTERS, MORE_REGISTERS = 0x60, 0x68
ROUTABLE = (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)
_REGION = "LPCR"
_CONFIG_SIZE = 0x100
_DISABLED = 0x80
_IRQ_FIELD = 0x0F
_MASK_OFFSET = 1
"""Where the mask of interrupts begins in a resource template of one IRQ descriptor."""

_PRESENT, _ENABLED, _WORKING = 0x01, 0x02, 0x08


def register(pirq: int) -> str:
    """The field of a link's routing register."""
    return f"PIR{chr(ord('A') + pirq)}"


def link(pirq: int) -> str:
    """The name of a link's device."""
    return f"LNK{chr(ord('A') + pirq)}"


def links() -> bytes:
    """The region, its fields, and the eight devices, for the scope of the LPC bridge."""
    half = PIRQS // 2
    names = [register(pirq) for pirq in range(PIRQS)]
    fields = aml.fields(
        _REGION,
        (None, 8 * FIRST_REGISTERS),
        *((name, 8) for name in names[:half]),
        (None, 8 * (MORE_REGISTERS - FIRST_REGISTERS - half)),
        *((name, 8) for name in names[half:]),
    )
    region = aml.operation_region(_REGION, aml.Region.PCI_CONFIG, 0, _CONFIG_SIZE)
    return region + fields + b"".join(_link(pirq) for pirq in range(PIRQS))


def _link(pirq: int) -> bytes:
    field = aml.path(register(pirq))
    number = aml.local(0)
    routed = aml.is_zero(aml.and_(field, aml.integer(_DISABLED)))
    there = _PRESENT | _WORKING
    return aml.device(
        link(pirq),
        aml.name("_HID", aml.eisa_id("PNP0C0F")),
        aml.name("_UID", aml.integer(pirq + 1)),
        aml.name("_PRS", aml.resources(aml.irq_level(*ROUTABLE))),
        aml.name("SET", aml.resources(aml.irq_level())),
        aml.word_field(aml.path("SET"), _MASK_OFFSET, "MASK"),
        aml.method(
            "_STA",
            0,
            aml.if_(routed, aml.return_(aml.integer(there | _ENABLED))),
            aml.return_(aml.integer(there)),
        ),
        aml.method(
            "_CRS",
            0,
            aml.store(aml.integer(0), aml.path("MASK")),
            aml.if_(
                routed,
                aml.store(aml.and_(field, aml.integer(_IRQ_FIELD)), number),
                aml.shift_left(aml.integer(1), number, aml.path("MASK")),
            ),
            aml.return_(aml.path("SET")),
        ),
        aml.method("_DIS", 0, aml.store(aml.integer(_DISABLED), field)),
        aml.method(
            "_SRS",
            1,
            aml.word_field(aml.argument(0), _MASK_OFFSET, "WANT"),
            aml.find_right_bit(aml.path("WANT"), number),
            aml.if_(number, aml.subtract(number, aml.integer(1), field)),
            serialized=True,
        ),
    )
