"""Debian's gdb on a Linux guest that boots: its symbols, a kernel function on a chosen CPU, steps, reads and writes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyhyve.images import GuestImage
from tests.conftest import find_backend
from tests.system.console import PROMPT, Guest, command
from tests.system.debugger import Debugger

WANTED = ("start_kernel", "__x64_sys_newuname", "init_uts_ns", "jiffies")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb on this host"),
]


def bhyve(backend: str, image: GuestImage, *options: str, cpus: int = 1) -> list[str]:
    words = command(backend, image.kernel, image.initrd)
    words[words.index("-c") + 1] = str(cpus)
    return [*words[:-1], "-o", "boot.cmdline=console=ttyS0 nokaslr", *options, words[-1]]


@pytest.fixture(scope="module")
def cpus(backend: str) -> int:
    return min(2, find_backend(backend).probe().max_cpus)


@pytest.fixture(scope="module")
def symbols(backend: str, image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ELF file with some of the kernel's symbols, as the kernel lists them to root."""
    with Guest(bhyve(backend, image)) as guest:
        listing = guest.output(f"grep -wE '{'|'.join(WANTED)}' /proc/kallsyms")
    folder = tmp_path_factory.mktemp("symbols")
    log, elf = folder / "log", folder / "kernel.elf"
    log.write_text(listing)
    script = [sys.executable, str(ROOT / "examples" / "kernel_symbols.py"), str(log), str(elf)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.stdout == f"{elf}: {len(WANTED)} symbols\n", done.stderr
    return elf


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_gdb_debugs_a_kernel_that_boots(symbols: Path, port: int, backend: str, image: GuestImage, cpus: int) -> None:
    with Debugger(symbols) as gdb:
        gdb.send(f"target remote 127.0.0.1:{port}")  # it tries again until somebody listens
        spawned = Guest(bhyve(backend, image, "-G", f"w127.0.0.1:{port}", cpus=cpus), at_prompt=False)
        with spawned as guest:
            gdb.wait()
            assert gdb("info threads").count('"vcpu') == cpus

            # The boot processor comes to the kernel's first C function.
            gdb("hbreak start_kernel")
            assert "start_kernel ()" in gdb("continue")
            gdb("delete")
            assert gdb.number("$cr0") >> 31 == 1
            walk = gdb(f"monitor walk {gdb.number('$pc'):#x}")
            assert "PML4E at" in walk
            assert "in a page of 2 MiB" in walk

            # A function on a chosen CPU: the last one, though every CPU calls it.
            gdb.send("continue")
            guest.reach_prompt()
            gdb.interrupt()
            gdb.wait()
            gdb(f"break __x64_sys_newuname thread {cpus}")
            gdb.send("continue")
            gdb.expect("Continuing")
            name = f'echo "<$(taskset -c {cpus - 1} uname -s)>"\n'
            guest.send(name)
            assert "__x64_sys_newuname ()" in gdb.wait()
            assert f"* {cpus} " in gdb("info threads")
            before = gdb.number("*(unsigned long *)&jiffies")
            places = {gdb.number("$pc")}
            for _ in range(8):
                gdb("stepi")
                places.add(gdb.number("$pc"))
            assert len(places) == 9
            assert " IF " in gdb("info registers eflags"), "the steps led into an interrupt's handler"

            # What is read is the kernel's, and what is written it goes on with.
            assert "Linux" in gdb("x/s &init_uts_ns")
            gdb("set var *(char *)&init_uts_ns = 'B'")
            gdb.send("continue")
            guest.expect("<Binux>")
            guest.send(name)
            gdb.wait()
            assert gdb.number("*(unsigned long *)&jiffies") > before, "time goes on between two stops"
            gdb("set var *(char *)&init_uts_ns = 'L'")
            gdb("set $rax = -14")  # the function returns -EFAULT at once
            gdb("set $pc = *(long *)$rsp")
            gdb("set $rsp = $rsp + 8")
            gdb.send("continue")
            guest.expect("<>")
            guest.expect(PROMPT)

            # It can be stopped anywhere, and left.
            gdb.interrupt()
            assert "SIGINT" in gdb.wait()
            gdb("detach")
            assert guest.output("true; uname -s") == "Linux\n"
            guest.send("poweroff -f\n")
            assert guest.end() == 1


def test_the_session_of_the_documentation(symbols: Path, port: int, backend: str, image: GuestImage) -> None:
    text = (ROOT / "docs" / "debugging.md").read_text()
    session = text.split("```gdb\n")[1].split("```")[0]
    commands = [line.removeprefix("(gdb) ") for line in session.splitlines() if line.startswith("(gdb) ")]
    assert (commands[0], commands[-1]) == ("target remote :1234", "detach")
    with Debugger(symbols) as gdb:
        gdb.send(f"target remote :{port}")
        with Guest(bhyve(backend, image, "-G", f"w{port}"), at_prompt=False) as guest:
            gdb.wait()
            for command in commands[1:]:
                answer = gdb(command)
                for trouble in ("No symbol", "ndefined", "rror", "not supported", "Cannot", "no command"):
                    assert trouble not in answer, f"{command}: {answer}"
            guest.reach_prompt()
