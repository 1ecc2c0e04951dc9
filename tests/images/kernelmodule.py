"""Makes ELF objects with a ``.modinfo`` section, the part of a kernel module that the image builder reads."""

import struct


def module(*, bits=64, **info):
    """A module for a kernel of ``bits``; values are strings or lists of them."""
    items = []
    for key, value in info.items():
        for one in [value] if isinstance(value, str) else value:
            items.append(f"{key}={one}".encode() + b"\0")
    modinfo = b"".join(items)
    names = b"\0.modinfo\0.shstrtab\0"
    data = modinfo + names
    start = 64 if bits == 64 else 52
    table = start + len(data)
    sections = [(0, 0, 0), (1, start, len(modinfo)), (10, start + len(modinfo), len(names))]
    if bits == 32:
        rows = b"".join(struct.pack("<10I", name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in sections)
        ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
        header = ident + struct.pack("<HHIIIIIHHHHHH", 1, 3, 1, 0, 0, table, 0, 52, 0, 0, 40, len(sections), 2)
        return header + data + rows
    rows = b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in sections)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, len(sections), 2)
    return header + data + rows
