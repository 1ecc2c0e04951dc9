"""bhyve as a process: statuses, standard input of every kind, signals, the terminal."""

import os
import signal
import subprocess
import sys
import termios

import pexpect
import pytest

from tests import kernels
from tests.conftest import find_backend

COMMAND = [sys.executable, "-m", "pyhyve.commands.bhyve"]


def arguments(kernel, backend, *more):
    path = kernels.build(kernel) if "\n" in kernel else kernel
    options = "-A -c 1 -m 16M -H -s 0,hostbridge -s 31,lpc -l com1,stdio".split()
    return [*options, "-o", f"boot.kernel={path}", "-o", f"vmm.backend={backend}", *more, "vm0"]


def run(kernel, backend, *more, **kwargs):
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        COMMAND + arguments(kernel, backend, *more), capture_output=True, text=True, timeout=60, check=False, **kwargs
    )


def start(kernel, backend, *more, **kwargs):
    kwargs.setdefault("stdin", subprocess.PIPE)
    return subprocess.Popen(
        COMMAND + arguments(kernel, backend, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def end(process):
    """Output and error output of a process that ends by itself."""
    return process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("kernel", "status"),
    [(kernels.POWER_OFF, 1), (kernels.RESET, 0), (kernels.RESET_BY_KEYBOARD, 0), (kernels.TRIPLE_FAULT, 3)],
    ids=["power-off", "reset", "keyboard-reset", "triple-fault"],
)
def test_the_status_says_how_the_guest_ended(kernel, status, backend):
    assert run(kernel, backend).returncode == status


def test_a_guest_that_halts_with_interrupts_off_is_over(backend):
    if backend == "kvm":
        pytest.skip("KVM does not tell of HLT: its own APIC waits")
    assert run(kernels.HALT, backend).returncode == 2


def test_the_console_goes_to_standard_output_and_nothing_else_does(backend):
    done = run(kernels.POWER_OFF, backend)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_standard_input_may_be_a_pipe(backend):
    done = run(kernels.ECHO, backend, stdin=None, input="abq")
    assert done.stdout == "ready\n.a.b.q"
    assert done.returncode == 1


def test_standard_input_may_be_a_file(backend, tmp_path):
    path = tmp_path / "input"
    path.write_text("xyq")
    with path.open() as file:
        assert run(kernels.ECHO, backend, stdin=file).stdout == "ready\n.x.y.q"


def test_standard_input_may_be_closed(backend):
    done = run(kernels.POWER_OFF, backend, stdin=None, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stdout, done.stderr) == (1, "hello\n", "")


def test_standard_output_and_error_may_be_closed(backend):
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, *arguments(kernels.POWER_OFF, backend)]
    )
    assert process.wait(60) == 1


def test_a_reader_that_goes_away_does_not_end_the_guest(backend):
    process = start(kernels.CHATTER, backend)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()
    process.stdin.close()


def test_sigterm_presses_the_power_button(backend):
    process = start(kernels.POWER_BUTTON, backend)
    assert process.stdout.readline() == "listening\n"
    process.send_signal(signal.SIGTERM)
    out, err = end(process)
    assert out == "pressed\n"
    assert process.returncode == 1
    assert "pressed the power button" in err


def test_a_second_sigterm_ends_a_guest_that_ignores_the_first(backend):
    process = start(kernels.STUBBORN, backend)
    assert process.stdout.readline() == "listening\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "no\n"
    process.send_signal(signal.SIGTERM)
    _, err = end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == "bhyve: ended by SIGTERM"


@pytest.mark.parametrize("kernel", [kernels.SPIN, kernels.SLEEP], ids=["spinning", "sleeping"])
def test_sigterm_ends_a_guest_that_has_no_power_button(kernel, backend):
    process = start(kernel, backend)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "bhyve: ended by SIGTERM\n"


@pytest.mark.parametrize("kernel", [kernels.SPIN, kernels.SLEEP], ids=["spinning", "sleeping"])
def test_ctrl_c_ends_the_machine(kernel, backend):
    process = start(kernel, backend)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = end(process)
    assert process.returncode == 128 + signal.SIGINT
    assert err == "bhyve: ended by SIGINT\n"


def spawn(kernel, backend, *more):
    child = pexpect.spawn(COMMAND[0], COMMAND[1:] + arguments(kernel, backend, *more), timeout=60, echo=True)
    child.delaybeforesend = None
    return child


def local_modes(child):
    return termios.tcgetattr(child.child_fd)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)


def test_on_a_terminal_every_key_reaches_the_guest_and_the_terminal_comes_back(backend):
    child = spawn(kernels.ECHO, backend)
    before = local_modes(child)
    assert before
    child.expect_exact("ready")
    child.send("\x03")
    child.expect_exact(".\x03")
    assert local_modes(child) == 0
    child.send("q")
    child.expect_exact(".q")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 1
    assert local_modes(child) == before


def test_the_escape_key_leaves_a_terminal(backend):
    child = spawn(kernels.ECHO, backend)
    before = local_modes(child)
    child.expect_exact("ready")
    child.send("\x1dq")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 1
    assert local_modes(child) == before


def test_sigterm_gives_the_terminal_back(backend):
    child = spawn(kernels.SPIN, backend)
    before = local_modes(child)
    child.expect_exact("spinning")
    child.kill(signal.SIGTERM)
    child.expect_exact("ended by SIGTERM")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 128 + signal.SIGTERM
    assert local_modes(child) == before


def test_the_process_carries_the_machines_name(backend):
    process = start(kernels.SPIN, backend)
    process.stdout.readline()
    with open(f"/proc/{process.pid}/comm") as file:
        assert file.read() == "vm0\n"
    names = set()
    for task in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{task}/comm") as file:
            names.add(file.read().strip())
    assert "vcpu 0" in names
    process.send_signal(signal.SIGINT)
    end(process)


@pytest.mark.parametrize(
    ("options", "status", "line"),
    [
        (["-s", "3,teapot"], 1, "unknown device 'teapot'"),
        (["-o", "boot.kernel=/nowhere"], 1, "cannot read kernel /nowhere"),
        (["-o", "boot.initrd=/nowhere"], 1, "cannot read initrd /nowhere"),
        (["-m", "900T"], 1, "guest memory requested, but this host has"),
        (["-c", "17"], 1, "17 vCPUs requested but only 16 available"),
        (["-o", "boot.cmdline=" + "x" * 70000], 1, "command line"),
        (["-G", "192.0.2.1:1234"], 1, "cannot listen for a debugger on 192.0.2.1:1234: Cannot assign"),
        (["-l", "com2,nowhere"], 1, "unknown character backend 'nowhere'"),
        (["-s", "0:1,lpc", "-s", "0:1,lpc"], 1, "already occupied"),
        (["-P"], 1, "VM exit on PAUSE"),
        (["-s", "3,passthru,255/31/7"], 1, "this host has no PCI device 0000:ff:1f.7; lspci -D lists those it has"),
        (["-s", "3,passthru,ppt0"], 1, "'ppt0' is a name of FreeBSD's ppt driver"),
        (["-s", "3,passthru,1/0/0,rom=/nowhere"], 1, "option ROM /nowhere: No such file"),
        (["-o", "nonsense"], 1, "invalid configuration variable 'nonsense'"),
        (["-k", "/nowhere"], 1, "cannot read configuration file /nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(options, status, line):
    done = run(kernels.POWER_OFF, find_backend("kvm").name, *options)
    assert done.returncode == status
    assert line in done.stderr
    assert done.stderr.startswith("bhyve: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_empty_kernel_is_one_line(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    done = run(str(path), find_backend("kvm").name)
    assert (done.returncode, done.stderr) == (1, f"bhyve: kernel {path} is empty\n")
