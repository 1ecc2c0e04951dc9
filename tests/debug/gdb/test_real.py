"""Debian's gdb on a guest of a few instructions, on each backend: what a person types, and what gdb makes of it."""

import os
import re
import shutil
import subprocess
import threading

import pytest

from pyhyve import Config, Machine
from pyhyve.vmm.cpuid import xsave_components
from tests import kernels
from tests.system.debugger import Debugger

pytestmark = [
    pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb on this host"),
    pytest.mark.skipif(shutil.which("objcopy") is None, reason="no objcopy on this host (binutils)"),
]

PROGRAM = """
    mov $value, %edi
    mov $1, %eax
    mov $0x0706050403020100, %ebx
more:
    inc %eax
    call store
    cmp $1000, %eax
    jb more
    say "done\\n"
for_ever:
    inc %ecx
    jmp for_ever
.globl store
.type store, @function
store:
    mov %eax, (%edi)
    ret
.data
.globl value
value: .long 0
.text
""".replace("$0x0706050403020100", "$0x03020100")


@pytest.fixture
def machine(backend):
    """The guest, held before its first instruction, and served in a thread."""
    config = {
        "name": "test", "memory.size": "16M", "vmm.backend": backend, "pci.0.0.0.device": "hostbridge",
        "pci.0.31.0.device": "lpc", "boot.kernel": kernels.build(PROGRAM), "gdb.port": "0", "gdb.wait": "true",
    }  # fmt: skip
    with Machine(Config.of(config)) as running:
        running.start()
        thread = threading.Thread(target=running.wait)
        thread.start()
        yield running
        running.power_off()
        thread.join(20)


@pytest.fixture
def gdb(machine, tmp_path):
    """gdb, attached, with the guest's symbols (in the 64-bit form that goes with the register layout)."""
    symbols = tmp_path / "guest.elf"
    command = ["objcopy", "-I", "elf32-i386", "-O", "elf64-x86-64", kernels.build(PROGRAM), os.fspath(symbols)]
    subprocess.run(command, check=True, capture_output=True)
    with Debugger(symbols, patience=30) as debugger:
        assert "_start ()" in debugger(f"target remote 127.0.0.1:{machine.gdb.port}")
        yield debugger


def test_breakpoints_steps_and_registers(gdb):
    gdb("break store")
    assert "Breakpoint 1, 0x" in gdb("continue")
    assert (gdb.number("$eax"), gdb.number("$ebx")) == (2, 0x03020100)
    gdb("continue")
    assert gdb.number("$eax") == 3
    start = gdb.number("$pc")
    gdb("stepi")
    assert gdb.number("$pc") == start + 2
    assert gdb.number("*(int *)&value") == 3
    gdb("stepi")
    assert "more ()" in gdb("stepi")
    gdb("set $eax = 998")
    gdb("continue")
    assert gdb.number("$eax") == 999
    gdb("delete")
    gdb("hbreak for_ever")
    assert "for_ever ()" in gdb("continue")
    assert gdb.number("$eax") & 0xFF == 0, "the string has ended"


def test_a_temporary_breakpoint_and_finish(gdb):
    gdb("tbreak store")
    gdb("continue")
    gdb("tbreak *(*(int *)$esp)")
    assert "more ()" in gdb("continue")
    assert "No breakpoints" in gdb("info breakpoints")


def test_a_watchpoint_tells_the_old_and_the_new_value(gdb, machine):
    if machine.backend == "kvm" and "software" in machine.backend_reason:
        pytest.skip("this host's software KVM does not watch data")
    gdb("watch *(int *)&value")
    assert "New value = 2" in gdb("continue")
    answer = gdb("continue")
    assert "Old value = 2" in answer
    assert "New value = 3" in answer
    gdb("delete")
    gdb("rwatch *(int *)&value")
    assert "store ()" in gdb("continue")


def test_memory_is_written_and_code_patched(gdb):
    gdb("break store")
    gdb("continue")
    gdb("set var *(int *)&value = 0x12345678")
    assert gdb.number("*(int *)&value") == 0x12345678
    gdb("set var *(short *)store = 0x9090")  # no store any more, just two NOPs
    gdb("delete")
    gdb("break for_ever")
    gdb("continue")
    assert gdb.number("*(int *)&value") == 0x12345678
    assert "Cannot access memory" in gdb("x/x 0xd0000000")


def test_ctrl_c_detach_and_again(gdb, machine):
    gdb.send("continue")
    gdb.expect("Continuing")
    gdb.interrupt()
    assert "SIGINT" in gdb.wait()
    first = gdb.number("$pc")
    assert first
    assert "detached" in gdb("detach")
    assert "0x" in gdb(f"target remote 127.0.0.1:{machine.gdb.port}")
    gdb("break for_ever")
    gdb("continue")
    before = gdb.number("$ecx")
    gdb("continue")
    assert gdb.number("$ecx") == before + 1, "it went on, and once around"


def test_vector_registers(gdb):
    gdb("set $xmm3.v2_int64[0] = 0x1122334455667788")
    gdb("set $mxcsr = 0x1fa0")
    gdb("set $st0 = 1.5")
    gdb("stepi")
    assert "{0x1122334455667788, 0x0}" in gdb("output/x $xmm3.v2_int64")
    assert gdb.number("$mxcsr") == 0x1FA0
    assert "1.5" in gdb("output $st0")


def test_registers_of_avx(gdb, machine):
    if 2 not in xsave_components(machine.cpuid):
        pytest.skip(f"no AVX for guests on the {machine.backend} backend here")
    gdb("set $xmm3.v2_int64[0] = 0x1122334455667788")
    gdb("set $ymm3.v4_int64[3] = 0x0123456789abcdef")
    gdb("stepi")
    assert "{0x1122334455667788, 0x0, 0x0, 0x123456789abcdef}" in gdb("output/x $ymm3.v4_int64")


def test_registers_of_avx_512(gdb, machine):
    if 7 not in xsave_components(machine.cpuid):
        pytest.skip(f"no AVX-512 for guests on the {machine.backend} backend here")
    gdb("set $zmm3.v8_int64[7] = 0x1122334455667788")
    gdb("set $xmm3.v2_int64[0] = 5")
    gdb("set $zmm31.v8_int64[4] = 0x99aabbccddeeff00")
    gdb("set $ymm17.v4_int64[2] = 7")
    gdb("set $xmm16.v2_int64[1] = 8")
    gdb("set $k1 = 0x8000000000000001")
    gdb("stepi")
    assert "{0x5, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x1122334455667788}" in gdb("output/x $zmm3.v8_int64")
    assert "{0x0, 0x0, 0x0, 0x0, 0x99aabbccddeeff00, 0x0, 0x0, 0x0}" in gdb("output/x $zmm31.v8_int64")
    assert "{0x0, 0x0, 0x7, 0x0}" in gdb("output/x $ymm17.v4_int64")
    assert "{0x0, 0x8}" in gdb("output/x $xmm16.v2_int64")
    assert "0x8000000000000001" in gdb("output/x $k1")
    listing = gdb("info registers vector")
    assert {"zmm0", "zmm31", "mxcsr"} <= {line.split()[0] for line in listing.splitlines()}


def test_control_registers_are_listed(gdb):
    listing = gdb("info registers")
    assert re.search(r"^cr0 +0x11 ", listing, re.MULTILINE)
    assert {"fs_base", "k_gs_base", "cr3", "cr8", "efer"} <= {line.split()[0] for line in listing.splitlines()}


def test_monitor_commands_of_a_whole_machine(gdb, machine):
    help_text = gdb("monitor help")
    assert "walk ADDRESS" in help_text
    for name in machine.parts:
        assert "version" in gdb(f"monitor device {name}")
    assert "no paging" in gdb("monitor walk 0x100000")
    assert "local APIC" in gdb("monitor interrupts")
    assert "gdtr" in gdb("monitor registers")


def test_kill_ends_the_machine(gdb, machine):
    gdb("kill")
    machine._ended.wait(20)
    assert machine.status == 1
