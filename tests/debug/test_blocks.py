"""The dump of translated blocks, on blocks of the engine and on blocks made up for it."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import pytest

from pyhyve import Config, Machine, Status
from pyhyve.debug import blocks
from pyhyve.debug.blocks import Block, Mode, dump, perf_map, translated
from pyhyve.errors import ConfigError
from pyhyve.vmm.api import Hypervisor
from tests import kernels
from tests.guests import assemble, boot_guest, find_backend

STATE = Path(blocks.__file__).parents[1] / "vmm" / "soft" / "state.pxd"
GUEST = """
    mov $0x20000, %ebx
    mov $3, %ecx
again:
    add %ecx, (%rbx)
    loop again
    out %al, $0xF4
"""


@pytest.fixture
def soft() -> Hypervisor:
    return find_backend("soft")


@pytest.fixture
def ended(soft: Hypervisor) -> list[Block]:
    """The blocks of a small guest that has come to its end."""
    guest = boot_guest(soft, assemble(GUEST, 0x10000))
    try:
        assert guest.until_end() == []
        assert isinstance(guest.vm, blocks.Translator)
        return translated(guest.vm)
    finally:
        guest.close()


def text_of(found: list[Block]) -> str:
    out = io.StringIO()
    dump(found, out)
    return out.getvalue()


def needs_objdump() -> None:
    if shutil.which("objdump") is None:
        pytest.skip("no `objdump` on this host (binutils)")


def test_blocks_hold_the_guests_bytes_and_pieces_of_host_code_for_each_instruction(ended: list[Block]) -> None:
    assert {block.gpa for block in ended} >= {0x10000, 0x1000A}
    image = assemble(GUEST, 0x10000)
    for block in ended:
        assert block.guest == image[block.gpa - 0x10000 :][: len(block.guest)]
        assert block.bits == 64
        assert Mode.CPL0 in block.mode
        pieces = block.pieces()
        assert b"".join(piece.data for piece in pieces) == block.code
        assert b"".join(piece.code for piece in pieces if not piece.slow) == block.guest


def test_pushes_that_share_a_look_up_are_one_piece(soft: Hypervisor) -> None:
    guest = boot_guest(soft, assemble("push %rbx\npush %rcx\npush %rdx\nout %al, $0xF4\n", 0x10000))
    try:
        guest.until_end()
        assert isinstance(guest.vm, blocks.Translator)
        # The stack's page was not dirty yet: that took a block with a look-up for each.
        [single] = [block for block in translated(guest.vm) if Mode.SINGLY in block.mode]
        [block] = [block for block in translated(guest.vm) if Mode.SINGLY not in block.mode]
        assert [piece.code for piece in block.pieces() if not piece.slow][:2] == [b"", b"\x53\x51\x52"]
        assert [piece.code for piece in single.pieces() if not piece.slow][:3] == [b"", b"\x53", b"\x51"]
        assert "push" in text_of([block]) or shutil.which("objdump") is None
    finally:
        guest.close()


def test_the_dump_shows_guest_and_host_code_side_by_side(ended: list[Block]) -> None:
    needs_objdump()
    text = text_of(ended)
    assert re.search(r"^block 0x1000a \(64-bit: .*cpl0.*\)$", text, re.M)
    assert re.search(r"^  1000a  010b +add +DWORD PTR \[rbx\],ecx +\| \+", text, re.M)
    assert re.search(r"^  1000c  e2fc +loop +0x1000a ", text, re.M)
    assert re.search(r"\| \+\w{4}  add +DWORD PTR \[r10\+r14\*1\],ecx$", text, re.M)
    assert "  slow paths\n" in text
    assert "entry" in text


def test_without_objdump_the_dump_shows_bytes(ended: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    text = text_of(ended)
    assert re.search(r"^  1000a  010b +01 0b +\| \+\w{4}  [0-9a-f ]+$", text, re.M)


def test_a_range_takes_the_blocks_that_touch_it() -> None:
    class Lister:
        def blocks(self) -> list[tuple[int, int, bytes, int, bytes, list[tuple[int, int]]]]:
            return [(gpa, 1, bytes(16), gpa << 4, b"\x90", [(0, gpa & 0xFFF)]) for gpa in (0x1000, 0x1010, 0x2000)]

    assert [b.gpa for b in translated(Lister(), 0x100F, 0x1010)] == [0x1000, 0x1010]
    assert [b.gpa for b in translated(Lister(), 0x1010)] == [0x1010, 0x2000]
    assert len(translated(Lister())) == 3


@pytest.mark.parametrize(
    ("mode", "code", "expected"),
    [
        (Mode(0), "b83412ebfb", "mov +ax,0x1234; jmp +0x80000"),
        (Mode.CODE32, "b878563412ebf9", "mov +eax,0x12345678; jmp +0x80000"),
        (Mode.CODE64, "488b0500010000", r"mov +rax,QWORD PTR \[rip\+0x100\] +# 0x80107"),
    ],
    ids=["16-bit", "32-bit", "64-bit"],
)
def test_guest_code_is_shown_in_its_own_size_and_at_its_own_address(mode: Mode, code: str, expected: str) -> None:
    needs_objdump()
    guest = bytes.fromhex(code)
    text = text_of([Block(0x80000, mode, guest, 0x7F0000000000, b"\x90\x90", ((1, 0),))])
    assert re.search(rf"^  80000  .*{expected}", text, re.M)


def test_bytes_that_are_no_instruction_do_not_spoil_what_follows() -> None:
    needs_objdump()
    lines = blocks.disassemble([(0x1000, b"\x0f"), (0x2000, b"\xc3")], 64)
    assert lines[1] == [(0x2000, "ret")]


def test_a_perf_map_names_the_guest_code_of_host_addresses() -> None:
    block = Block(0x1234, Mode.CODE64 | Mode.USER, b"\x90", 0x7F00, bytes(0x20), ((0, 0x234),))
    assert list(perf_map([block])) == ["7f00 20 guest_user64_1234\n"]


def test_mode_names_are_those_of_the_engine() -> None:
    rows = re.findall(r"^    MODE_(\w+) = (0x\w+|\d+)", STATE.read_text(), re.M)
    there = {name: int(value, 0) for name, value in rows}
    assert there.pop("SLOTS")
    assert there == {flag.name: flag.value for flag in Mode}


# From a configuration.


def config_for(**more: object) -> Config:
    return Config.of(
        {
            "name": "dumped",
            "memory.size": "16M",
            "vmm.backend": "soft",
            "boot.kernel": kernels.build(kernels.POWER_OFF),
            **{name.replace("__", "."): value for name, value in more.items()},
        }
    )


def run(config: Config) -> int:
    with Machine(config) as machine:
        machine.start()
        return machine.wait()


def test_a_machine_writes_both_when_it_ends(soft: Hypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PERF_DIRECTORY", tmp_path)
    file = tmp_path / "blocks"
    assert run(config_for(soft__blocks=file, soft__perf_map=1)) == Status.POWER_OFF
    shown = set(re.findall(r"^block 0x(\w+)", file.read_text(), re.M))
    perf = (tmp_path / f"perf-{os.getpid()}.map").read_text()
    named = re.findall(r"^[0-9a-f]+ [0-9a-f]+ guest_kernel\d+_(\w+)$", perf, re.M)
    assert shown
    assert shown == set(named)


def test_a_machine_writes_the_range_that_is_asked_for(soft: Hypervisor, tmp_path: Path) -> None:
    file = tmp_path / "blocks"
    run(config_for(soft__blocks=file, soft__blocks_range="0x0-0xfff"))
    assert file.read_text() == ""


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"soft__blocks": "/nowhere/blocks"}, "cannot write /nowhere/blocks"),
        ({"soft__blocks_range": "0-1"}, r"needs soft\.blocks=FILE"),
        ({"soft__blocks": "blocks", "soft__blocks_range": "2-1"}, "'2-1' is not FIRST-LAST"),
        ({"soft__blocks": "blocks", "soft__blocks_range": "all"}, "'all' is not FIRST-LAST"),
    ],
    ids=["directory", "range without file", "backwards", "no range"],
)
def test_what_cannot_be_written_is_told_before_the_guest_runs(
    soft: Hypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        Machine(config_for(**variables))


def test_a_backend_that_translates_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="need the CPU engine"):
        blocks.at_end(Config.of({"soft.perf_map": True}), object())
