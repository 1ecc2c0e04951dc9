"""Builds small kernel files for loader tests: bzImage, ELF, multiboot. Not bootable, but right in every header."""

import struct


def bzimage(
    body=b"\x90" * 0x1000,
    *,
    setup_sects=4,
    version=0x020F,
    loadflags=1,
    xloadflags=1,
    relocatable=1,
    alignment=0x200000,
    pref_address=0x1000000,
    init_size=0x800000,
    initrd_addr_max=0x7FFFFFFF,
    cmdline_size=2047,
    payload=(0, 0),
    syssize=None,
    jump=0x6A,
):
    """A bzImage of boot protocol ``version`` whose protected-mode part is ``body``."""
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    setup[0x1F1] = setup_sects
    struct.pack_into("<I", setup, 0x1F4, -(-len(body) // 16) if syssize is None else syssize)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200] = 0xEB
    setup[0x201] = jump
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<I", setup, 0x230, alignment)
    setup[0x234] = relocatable
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, cmdline_size)
    struct.pack_into("<II", setup, 0x248, *payload)
    struct.pack_into("<Q", setup, 0x258, pref_address)
    struct.pack_into("<I", setup, 0x260, init_size)
    return bytes(setup) + body


def note(name, kind, value, align=4):
    """One ELF note."""

    def pad(data):
        return data + bytes(-len(data) % align)

    return pad(struct.pack("<III", len(name), len(value), kind) + name) + pad(value)


def elf(
    segments=((0x1000000, b"\xf4" * 64, 0x1000),),
    notes=b"",
    *,
    bits=64,
    machine=62,
    kind=2,
    entry=0x1000000,
    virtual_offset=0,
    encoding=1,
):
    """An ELF executable. ``segments`` are (physical address, content, size in memory)."""
    count = len(segments) + bool(notes)
    header_size, entry_size = (64, 56) if bits == 64 else (52, 32)
    offset = header_size + count * entry_size
    table, data = b"", b""
    rows = [(1, address, content, size) for address, content, size in segments]
    if notes:
        rows.append((4, 0, notes, len(notes)))
    for p_type, address, content, size in rows:
        virtual = address + virtual_offset
        position = offset + len(data)
        if bits == 64:
            table += struct.pack("<IIQQQQQQ", p_type, 7, position, virtual, address, len(content), size, 4)
        else:
            table += struct.pack("<8I", p_type, position, virtual, address, len(content), size, 7, 4)
        data += content
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, encoding, 1]).ljust(12, b"\0")
    if bits == 64:
        header = struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    else:
        header = struct.pack("<HHIIIIIHHHHHH", kind, machine, 1, entry, 52, 0, 0, 52, 32, count, 0, 0, 0)
    return ident + header + table + data


def pvh_note(entry, size=8):
    """XEN_ELFNOTE_PHYS32_ENTRY."""
    return note(b"Xen\0", 18, entry.to_bytes(size, "little"))


def multiboot_header(flags=0, addresses=()):
    """A multiboot header with a right checksum."""
    magic = 0x1BADB002
    return struct.pack("<III", magic, flags, -(magic + flags) & 0xFFFFFFFF) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )
