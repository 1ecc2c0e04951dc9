"""Finds and reads ACPI tables in guest memory as a guest does."""

import struct

RSDP_SIZE = 36


def read_table(memory, address):
    """A table by its own length."""
    return memory.read(address, memory.read_uint(address + 4, 4))


def find_tables(memory, rsdp):
    """All tables by signature, with RSDP, RSDT and XSDT."""
    pointer = memory.read(rsdp, RSDP_SIZE)
    rsdt, xsdt = struct.unpack_from("<I", pointer, 16)[0], struct.unpack_from("<Q", pointer, 24)[0]
    tables = {"RSDP": pointer, "RSDT": read_table(memory, rsdt), "XSDT": read_table(memory, xsdt)}
    count = (len(tables["XSDT"]) - 36) // 8
    for address in struct.unpack_from(f"<{count}Q", tables["XSDT"], 36):
        table = read_table(memory, address)
        tables[table[:4].decode()] = table
    fadt = tables["FACP"]
    for name, offset in (("FACS", 36), ("DSDT", 40)):
        tables[name] = read_table(memory, struct.unpack_from("<I", fadt, offset)[0])
    return tables
