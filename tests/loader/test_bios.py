"""A boot ROM that is a PC BIOS has a copy below 1 MiB."""

from pyhyve.loader import bios
from pyhyve.memory import GuestMemory

FAR_JUMP = bytes.fromhex("ea5be000f0")


def rom(size: int, start: bytes) -> bytes:
    body = bytes(range(256)) * (size // 256)
    return body[:-16] + start.ljust(16, b"\x90")


def test_a_jump_to_its_segment_tells_a_bios() -> None:
    assert bios.is_bios(rom(0x40000, FAR_JUMP))
    assert not bios.is_bios(rom(0x40000, bytes.fromhex("9090e9")))
    assert not bios.is_bios(b"\xea")


def test_its_last_128_kib_lie_below_1_mib() -> None:
    with_code = rom(0x40000, FAR_JUMP)
    memory = GuestMemory(4 << 20)
    try:
        bios.shadow(memory, with_code)
        assert memory.read(0xE0000, 0x20000) == with_code[-0x20000:]
        assert memory.read(0xDF000, 0x1000) == bytes(0x1000)
    finally:
        memory.close()


def test_a_small_one_lies_at_the_end() -> None:
    memory = GuestMemory(4 << 20)
    try:
        bios.shadow(memory, rom(0x10000, FAR_JUMP))
        assert memory.read(0xFFFF0, 5) == FAR_JUMP
        assert memory.read(0xEFFFF, 1) == b"\0"
    finally:
        memory.close()
