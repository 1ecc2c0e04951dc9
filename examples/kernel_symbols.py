#!/usr/bin/env python3
"""Make a file of symbols for gdb from a kernel's own list of them.

    kernel_symbols.py LOG FILE.elf

LOG is any text that holds lines of /proc/kallsyms (as root) or of a System.map: a saved console will do. FILE.elf is an
ELF file with one section, which has no contents, and these symbols in it.
"""

import re
import struct
import sys

LINE = re.compile(r"^([0-9a-f]{16}) ([A-Za-z]) ([^\s\[]+)$", re.MULTILINE)
KERNEL = 0xFFFFFFFF80000000
MODULES = 0xFFFFFFFFA0000000
FUNCTION, OBJECT, GLOBAL = 2, 1, 1 << 4
NOBITS, SYMTAB, STRTAB = 8, 2, 3
HEADER, SECTION, SYMBOL = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")


def symbols(log: str) -> list[tuple[int, str, str]]:
    """The kernel's symbols in a text: address, kind, name, by address."""
    rows = {(int(address, 16), kind, name) for address, kind, name in LINE.findall(log.replace("\r", ""))}
    return sorted(row for row in rows if KERNEL <= row[0] < MODULES)


def elf(rows: list[tuple[int, str, str]]) -> bytes:
    """The file's bytes."""
    start, end = rows[0][0], rows[-1][0] + 4096
    names, table = bytearray(b"\0"), bytearray(SYMBOL.size)
    for address, kind, name in rows:
        info = GLOBAL | (FUNCTION if kind in "tTwW" else OBJECT)
        table += SYMBOL.pack(len(names), info, 0, 1, address, 0)
        names += name.encode() + b"\0"
    sections = b"\0.kernel\0.symtab\0.strtab\0"
    at = HEADER.size
    parts = bytes(table), bytes(names), sections
    rooms = [at, at + len(table), at + len(table) + len(names)]
    headers = [
        bytes(SECTION.size),
        SECTION.pack(1, NOBITS, 6, start, at, end - start, 0, 0, 16, 0),
        SECTION.pack(9, SYMTAB, 0, 0, rooms[0], len(parts[0]), 3, 1, 8, SYMBOL.size),
        SECTION.pack(17, STRTAB, 0, 0, rooms[1], len(parts[1]), 0, 0, 1, 0),
        SECTION.pack(17, STRTAB, 0, 0, rooms[2], len(parts[2]), 0, 0, 1, 0),
    ]
    body = b"".join(parts)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = HEADER.pack(
        identity, 2, 62, 1, 0, 0, at + len(body), 0, HEADER.size, 0, 0, SECTION.size, len(headers), len(headers) - 1
    )
    return header + body + b"".join(headers)


def main() -> int:
    """Read, write."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    with open(sys.argv[1], errors="replace") as log:
        rows = symbols(log.read())
    if not rows:
        print(f"{sys.argv[1]}: no kernel symbols in it", file=sys.stderr)
        return 1
    with open(sys.argv[2], "wb") as out:
        out.write(elf(rows))
    print(f"{sys.argv[2]}: {len(rows)} symbols")
    return 0


if __name__ == "__main__":
    sys.exit(main())
