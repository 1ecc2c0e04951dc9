"""Blocks against single steps: guests that run alike, and one in which a difference is meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyhyve.debug import lockstep
from pyhyve.debug.lockstep import Flat, Options, Undecided, compare
from pyhyve.errors import PyhyveError
from pyhyve.vmm.api import Hypervisor
from tests.guests import Mode, assemble, boot_guest, find_backend

ORIGIN = 0x10000

# A read that faults, with arithmetic flags that nobody reads (ADD overwrites them): the one place where the engine may
# leave them stale. The handler tells what it found in the frame.
STALE = """
.include "guest.inc"
    gate64 14, handler
    mov $NOT_MAPPED, %rbp
    mov $5, %ecx
again:
    dec %ecx
    jnz again
    jmp faulty
    .balign 64
faulty:
    xor %eax, %eax
    nop
culprit:
    mov (%rbp), %rdx
    add $1, %rdx
    finish
handler:
    mov 24(%rsp), %rax
    mov %rax, DATA
    finish
"""


@pytest.fixture
def soft() -> Hypervisor:
    return find_backend("soft")


def maker(soft: Hypervisor, source: str, mode: Mode = Mode.LONG, **symbols: int) -> Callable[[], lockstep.Subject]:
    image = assemble(source, 0x8000 if mode is Mode.REAL else ORIGIN, mode, **symbols)
    return lambda: boot_guest(soft, image, mode)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("exceptions", Mode.LONG),
        ("mmio", Mode.LONG),
        ("mmio_modify", Mode.LONG),
        ("mmio_strings", Mode.LONG),
        ("modify", Mode.LONG),
        ("ports", Mode.LONG),
        ("software", Mode.LONG),
        ("step", Mode.LONG),
        ("strings", Mode.LONG),
        ("triple", Mode.LONG),
        ("user", Mode.LONG),
        ("vector", Mode.LONG),
        ("x87", Mode.LONG),
        ("protected", Mode.PROTECTED),
        ("real", Mode.REAL),
        ("modes", Mode.REAL),
    ],
)
def test_guests_do_the_same_in_blocks_and_stepped(soft: Hypervisor, name: str, mode: Mode) -> None:
    found = compare(maker(soft, name, mode))
    assert found is None, found.report()


def test_the_instruction_that_makes_the_difference_is_found(soft: Hypervisor) -> None:
    found = compare(maker(soft, STALE))
    assert found is not None
    image = assemble(STALE, ORIGIN)
    culprit = ORIGIN + image.index(bytes.fromhex("488b5500"))
    assert (found.rip, found.gpa) == (culprit, culprit)
    assert any(change.startswith("rax: ") for change in found.changes)
    assert any(change.startswith("memory at 0x20000: ") for change in found.changes)
    assert found.block is not None
    assert found.block.gpa == culprit
    report = found.report()
    assert f"differs: the instruction at {culprit:#x}" in report
    assert "in blocks, to               InOut(port=244" in report


def test_memory_can_be_left_out(soft: Hypervisor) -> None:
    quiet = STALE.replace("mov %rax, DATA", "xor %eax, %eax")
    assert compare(maker(soft, quiet)) is not None
    assert compare(maker(soft, quiet), Options(memory=False)) is None


def test_a_guest_without_end_is_told(soft: Hypervisor) -> None:
    with pytest.raises(Undecided, match="no difference at 0 exits, but the guest came to no end"):
        compare(maker(soft, "spin", HALT=0), Options(limit=1000))


def test_a_guest_that_is_not_the_same_twice_is_told(soft: Hypervisor) -> None:
    count = 0

    def make() -> lockstep.Subject:
        nonlocal count
        count += 1
        return boot_guest(soft, assemble(f"    mov ${count}, %eax\n    out %al, $0xF4\n", ORIGIN))

    with pytest.raises(Undecided, match="does not do the same twice"):
        compare(make)


# The command.


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., str]:
    def write(source: str, mode: Mode = Mode.LONG) -> str:
        file = tmp_path / "image"
        file.write_bytes(assemble(source, 0x8000 if mode is Mode.REAL else ORIGIN, mode))
        return str(file)

    return write


@pytest.mark.parametrize(
    ("name", "mode"), [("modify", Mode.LONG), ("protected", Mode.PROTECTED), ("real", Mode.REAL), ("modes", Mode.REAL)]
)
def test_the_command_takes_flat_images(
    soft: Hypervisor, image: Callable[..., str], capsys: pytest.CaptureFixture[str], name: str, mode: Mode
) -> None:
    assert lockstep.main([image(name, mode), "--mode", mode]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_the_command_shows_a_difference_with_status_1(
    soft: Hypervisor, image: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    beyond = STALE.replace("mov $NOT_MAPPED, %rbp", "mov $1 << 40, %rbp")
    assert lockstep.main([image(beyond)]) == 1
    assert "differs: the instruction at " in capsys.readouterr().out
    assert lockstep.main([image(beyond), "--limit", "10"]) == 4


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert lockstep.main(["/nowhere/image"]) == 4
    assert capsys.readouterr().err == "lockstep: cannot read /nowhere/image: No such file or directory\n"


def test_a_flat_machine_that_does_not_fit_is_refused(soft: Hypervisor) -> None:
    with pytest.raises(PyhyveError):
        Flat.of(bytes(100), org=4 << 20)
