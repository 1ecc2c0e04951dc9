"""Whole machines, from a configuration tree to a status, driven as a program would."""

import os
import threading

import pytest

from pyhyve import Config, Machine, Status
from pyhyve.errors import BackendError, ConfigError, DeviceError, LoaderError, UsageError
from pyhyve.loop import EventLoop
from tests import kernels
from tests.conftest import find_backend


@pytest.fixture
def console(tmp_path):
    """A pseudo-terminal for com1: the descriptor of our end, and the path of the machine's."""
    ours, theirs = os.openpty()
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def config_for(kernel, backend, **more):
    return Config.of(
        {
            "name": "test",
            "memory.size": "16M",
            "vmm.backend": backend,
            "pci.0.0.0.device": "hostbridge",
            "pci.0.31.0.device": "lpc",
            "acpi_tables": True,
            "boot.kernel": kernels.build(kernel) if "\n" in kernel else kernel,
            **more,
        }
    )


def run(kernel, backend, **more):
    with Machine(config_for(kernel, backend, **more)) as machine:
        machine.start()
        return machine.wait()


@pytest.mark.parametrize(
    ("kernel", "status"),
    [
        (kernels.POWER_OFF, Status.POWER_OFF),
        (kernels.RESET, Status.RESET),
        (kernels.RESET_BY_KEYBOARD, Status.RESET),
        (kernels.TRIPLE_FAULT, Status.TRIPLE_FAULT),
    ],
    ids=["power-off", "reset", "keyboard-reset", "triple-fault"],
)
def test_the_guests_end_is_the_status(kernel, status, backend):
    assert run(kernel, backend) == status


def test_a_port_without_a_device_floats(backend):
    assert run(kernels.READ_NOBODYS_PORT, backend) == Status.POWER_OFF


def test_strict_io_stops_at_it(backend, capfd):
    assert run(kernels.READ_NOBODYS_PORT, backend, **{"x86.strictio": True}) == Status.ERROR
    assert "Unhandled inw 0x1234" in capfd.readouterr().err


def test_the_pci_hole_floats(backend):
    assert run(kernels.READ_PCI_HOLE, backend) == Status.POWER_OFF


def test_memory_that_is_nobodys_stops_the_machine(backend, capfd):
    assert run(kernels.READ_NOBODYS_MEMORY, backend) == Status.ERROR
    assert "Unhandled memory access to 0x90000000" in capfd.readouterr().err


def test_an_unknown_msr_faults_in_the_guest(backend, capfd):
    assert run(kernels.READ_UNKNOWN_MSR, backend) == Status.TRIPLE_FAULT


def test_without_strict_msr_it_reads_zero(backend, capfd):
    assert run(kernels.READ_UNKNOWN_MSR, backend, **{"x86.strictmsr": False}) == Status.POWER_OFF


def test_the_console_carries_bytes_both_ways(backend, console):
    ours, path = console
    with Machine(config_for(kernels.ECHO, backend, **{"lpc.com1.path": path})) as machine:
        machine.start()
        os.write(ours, b"abq")
        assert machine.wait() == Status.POWER_OFF
        seen = b""
        while not seen.endswith(b".q"):
            seen += os.read(ours, 100)
    assert seen.replace(b"\r", b"") == b"ready\n.a.b.q"


def test_exits_are_counted(backend):
    with Machine(config_for(kernels.READ_NOBODYS_PORT, backend)) as machine:
        machine.start()
        machine.wait()
        stats = machine.stats()
    assert stats["vcpu0.inout"] >= 2
    assert {"vcpu0.hlt", "vcpu0.bogus", "vcpu0.cpu-switch-rotate"} <= set(stats)


def test_a_spinning_guest_can_be_ended_from_another_thread(backend):
    with Machine(config_for(kernels.SPIN, backend)) as machine:
        machine.start()
        threading.Timer(0.05, machine.power_off).start()
        assert machine.wait() == Status.POWER_OFF


def test_a_sleeping_guest_can_be_ended_from_another_thread(backend):
    with Machine(config_for(kernels.SLEEP, backend)) as machine:
        machine.start()
        threading.Timer(0.05, machine.power_off).start()
        assert machine.wait() == Status.POWER_OFF


def test_a_spinning_guest_can_be_paused_and_resumed(backend):
    with Machine(config_for(kernels.SPIN, backend)) as machine:
        machine.start()
        machine.pause()
        machine.resume()
        machine.pause()
        machine.power_off()
        assert machine.wait() == Status.POWER_OFF


def test_other_vcpus_wait_for_their_start_and_end_with_the_machine(backend):
    if find_backend(backend).probe().max_cpus < 2:
        pytest.skip(f"backend {backend}: one vCPU only so far")
    assert run(kernels.POWER_OFF, backend, cpus="2") == Status.POWER_OFF
    with Machine(config_for(kernels.SPIN, backend, cpus="2", cores="2")) as machine:
        machine.start()
        machine.pause()
        machine.resume()
        machine.power_off()
        assert machine.wait() == Status.POWER_OFF


def test_closing_a_running_machine_ends_its_threads(backend):
    before = threading.active_count()
    machine = Machine(config_for(kernels.SPIN, backend))
    machine.start()
    machine.close()
    machine.close()
    assert threading.active_count() == before


def test_machines_leave_no_descriptor_behind(backend):
    run(kernels.POWER_OFF, backend)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run(kernels.POWER_OFF, backend)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_machine_may_use_a_loop_that_runs_elsewhere(backend):
    loop = EventLoop()
    thread = threading.Thread(target=loop.run)
    with Machine(config_for(kernels.POWER_OFF, backend), loop=loop) as machine:
        thread.start()
        machine.start()
        assert machine.wait() == Status.POWER_OFF
    loop.stop()
    thread.join()
    loop.close()


def test_the_power_button_reaches_a_guest_that_listens(backend, console):
    ours, path = console
    with Machine(config_for(kernels.POWER_BUTTON, backend, **{"lpc.com1.path": path})) as machine:
        machine.start()
        seen = b""
        while b"listening" not in seen:
            seen += os.read(ours, 100)
        assert machine.power_button()
        assert machine.wait() == Status.POWER_OFF


def test_a_guest_that_does_not_listen_is_reported(backend):
    with Machine(config_for(kernels.SPIN, backend)) as machine:
        machine.start()
        assert not machine.power_button()


def test_a_guest_notifies_its_host_through_port_488(backend):
    kernel = """
    mov $0x488, %dx
    mov $0x12345678, %eax
    out %eax, %dx
    power_off
    """
    seen = []
    with Machine(config_for(kernel, backend)) as machine:
        machine.notification.on_notify = lambda size, value: seen.append((size, value))
        machine.start()
        machine.wait()
    assert seen == [(4, 0x12345678)]


def test_a_device_that_fails_ends_the_machine_with_one_line(backend):
    class Broken:
        def read(self, offset, size):
            raise ZeroDivisionError("a bug")

        write = read

    with Machine(config_for(kernels.READ_NOBODYS_PORT, backend)) as machine:
        machine.pio.register(0x1234, 2, Broken(), "broken")
        machine.start()
        assert machine.wait() == Status.ERROR
    assert "ZeroDivisionError: a bug" in machine.message


def test_a_timer_that_fails_ends_the_machine_too(backend):
    with Machine(config_for(kernels.SPIN, backend)) as machine:
        machine.loop.timer(lambda: [][0]).arm_in(0)
        machine.start()
        assert machine.wait() == Status.ERROR
    assert machine.message.startswith("event loop: a device failed in test_machine.py")


def test_a_traceback_is_there_for_the_asking(backend, capfd):
    with Machine(config_for(kernels.SPIN, backend, **{"debug.traceback": True})) as machine:
        machine.loop.timer(lambda: [][0]).arm_in(0)
        machine.start()
        machine.wait()
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ({"memory.size": "lots"}, UsageError, "invalid memsize 'lots'"),
        ({"memory.size": "900T"}, ConfigError, "MB of guest memory requested, but this host has"),
        ({"cpus": "17"}, BackendError, "17 vCPUs requested but only"),
        ({"cpus": "many"}, ConfigError, "cpus: 'many' is not a number"),
        ({"cpus": "3", "cores": "2"}, ConfigError, "is not 3"),
        ({"vmm.backend": "xen"}, ConfigError, "xen"),
        ({"pci.0.3.0.device": "teapot"}, DeviceError, "unknown device 'teapot'"),
        ({"pci.0.3.1.device": "hostbridge"}, DeviceError, "no function 0"),
        ({"pci.0.30.0.device": "lpc"}, DeviceError, "only one LPC bridge is allowed"),
        ({"pci.0.31.0.device": "hostbridge", "pci.1.31.0.device": "lpc"}, DeviceError, "bus 0 only"),
        ({"bios.vendor": "caf\u00e9"}, ConfigError, "bios.vendor: 'caf\u00e9' has characters"),
        ({"pci.0.3.0.path": "/x"}, ConfigError, "has no device"),
        ({"pci.0.x.0.device": "lpc"}, ConfigError, "three numbers"),
        ({"pci.0.32.0.device": "lpc"}, DeviceError, "0:32:0"),
        ({"lpc.com1.path": "carrier-pigeon"}, DeviceError, "carrier-pigeon"),
        ({"lpc.com1.path": "/nowhere/tty"}, DeviceError, "cannot open"),
        ({"lpc.com1.path": "/dev/nmdm0A"}, DeviceError, "nmdm"),
        ({"gdb.port": "http"}, ConfigError, "gdb.port: 'http' is not a number"),
        ({"gdb.port": "70000"}, ConfigError, "gdb.port: 70000 is above 65535"),
        ({"gdb.port": "0", "gdb.address": "nowhere.invalid"}, BackendError, "cannot listen for a debugger on nowhere"),
        ({"lpc.bootrom": "/fw"}, ConfigError, "boot ROM"),
        ({"boot.kernel": "/nowhere/vmlinuz"}, LoaderError, "/nowhere/vmlinuz"),
        ({"boot.kernel": ""}, ConfigError, "nothing to boot"),
        ({"boot.cmdline": "x" * 100_000}, LoaderError, "command line"),
        ({"x86.strictio": "perhaps"}, ConfigError, "x86.strictio: 'perhaps' is not a truth value"),
        ({"vcpu.0.cpuset": "-1"}, ConfigError, "not a list of host CPUs"),
        ({"name": "a/b"}, ConfigError, "invalid machine name .a/b."),
    ],
)
def test_a_machine_that_cannot_be_built_is_one_line(variables, error, message):
    config = config_for(kernels.POWER_OFF, find_backend("kvm").name, **variables)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=message) as caught:
        Machine(config)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"MZ" + b"\0" * 600])
def test_a_kernel_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(LoaderError, match=str(path)):
        Machine(config_for(str(path), find_backend("kvm").name))


def test_the_configuration_is_frozen_by_the_machine(backend):
    config = config_for(kernels.POWER_OFF, backend)
    with Machine(config), pytest.raises(ConfigError, match="cannot be changed"):
        config.set("cpus", "2")
