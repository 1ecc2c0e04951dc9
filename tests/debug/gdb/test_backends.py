"""The gdb server on real vCPUs of each backend, by raw packets: exact steps, wild values, and the ``bhyve`` command."""

import random
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from pyhyve import Config, Machine
from tests import kernels
from tests.debug.gdb.client import Client

# Instructions that leave for a port, a device, MSR or CPUID emulation; each begins with a label of its own.
EXITS = """
    in $0x80, %al
    out %al, $0x80
    mov $0x3fd, %dx
    in %dx, %al
    mov 0xfee00030, %eax
    mov 0xfec00000, %eax
    mov %eax, 0xfec00000
    cpuid
    mov $0x10, %ecx
    rdmsr
    mov $3, %ecx
    mov $0x80, %dx
    nop
0:  jmp 0b
"""
LENGTHS = [2, 2, 4, 1, 5, 5, 5, 2, 5, 2, 5, 4, 1, 0, 0]
RIP = 16


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Running:
    """A machine that is held before its first instruction, served in a thread and closed when it ends."""

    def __init__(self, kernel, backend):
        config = {
            "name": "test", "memory.size": "16M", "vmm.backend": backend, "pci.0.0.0.device": "hostbridge",
            "pci.0.31.0.device": "lpc", "boot.kernel": kernels.build(kernel), "gdb.port": "0", "gdb.wait": "true",
        }  # fmt: skip
        self.machine = Machine(Config.of(config))
        self.machine.start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        self.machine.wait()
        self.machine.close()

    def __enter__(self):
        return self.machine

    def __exit__(self, *_error):
        self.machine.power_off()
        self._thread.join(20)
        assert not self._thread.is_alive()


def rip_of(reply):
    return int.from_bytes(bytes.fromhex(re.search(r";10:([0-9a-f]{16});", reply)[1]), "little")


def test_a_step_is_one_instruction_whatever_the_instruction_does(backend):
    with Running(EXITS, backend) as machine, Client(machine.gdb.port) as gdb:
        gdb("s")  # the stack pointer
        place, found = gdb.register(RIP), []
        for _ in LENGTHS:
            after = rip_of(gdb("vCont;s:1;c"))
            found.append(after - place)
            place = after
        assert found == LENGTHS


def test_a_machine_that_waits_for_its_debugger_can_be_ended(backend):
    with Running(kernels.SPIN, backend) as machine:
        machine.power_off()
    assert machine.status == 1


@pytest.mark.parametrize("seed", range(4))
def test_wild_values_in_registers_end_the_guest_at_most(backend, seed, capfd):
    dice = random.Random(seed)
    values = [0, 1, 0x80000011, 0x20, 0x620, 0xD00, (1 << 64) - 1, 1 << 63, 0xFFFF800000000000, 0x1000, 0x100000]
    with Running(kernels.SPIN, backend) as machine, Client(machine.gdb.port) as gdb:
        registers = machine.gdb.registers.registers
        try:
            for _ in range(150):
                number = dice.randrange(len(registers))
                size = registers[number].bits // 8
                value = dice.choice([*values, dice.getrandbits(64)]) & (1 << 8 * size) - 1
                assert gdb(f"P{number:x}={value.to_bytes(size, 'little').hex()}") in ("OK", "E16")
                if dice.random() < 0.3:
                    assert len(gdb("g")) > 1000
                    gdb.monitor("walk 0x100000")
                if dice.random() < 0.5:
                    assert gdb("s")[0] in "TW"
        except (EOFError, OSError):
            assert machine.status in (3, 4), "a triple fault, or an address where nothing is"
    assert "a device failed" not in machine.message


def connect(port, process):
    """A client, as soon as the process listens."""
    while process.poll() is None:
        try:
            return Client(port)
        except ConnectionRefusedError:
            continue
    pytest.fail(process.communicate()[1])


def test_the_command_waits_and_can_be_interrupted(backend):
    port = free_port()
    options = f"-A -m 16M -H -s 0,hostbridge -s 31,lpc -l com1,stdio -G w{port} -o vmm.backend={backend}".split()
    argv = [sys.executable, "-m", "pyhyve.commands.bhyve", *options, "-o", f"boot.kernel={kernels.build(kernels.SPIN)}"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*argv, "vm0"], text=True, **pipes) as process:
        with connect(port, process) as gdb:
            assert gdb("?")[:3] == "T05"
            second = subprocess.run([*argv, "vm1"], capture_output=True, text=True, timeout=60, check=False)
            process.send_signal(signal.SIGINT)
            assert gdb.hung_up()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "bhyve: ended by SIGINT\n")
    line = f"bhyve: cannot listen for a debugger on 127.0.0.1:{port}: Address already in use\n"
    assert (second.returncode, second.stdout, second.stderr) == (1, "", line)
