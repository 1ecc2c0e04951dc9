"""bhyve's command line: what each option writes, and how bad ones end."""

import os
import subprocess
import sys
import time

import pytest

from pyhyve.commands.bhyve import Help, Usage, parse
from pyhyve.commands.options import parse_slot
from pyhyve.errors import ConfigError, UsageError


def bhyve(*argv, **kwargs):
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [sys.executable, "-m", "pyhyve.commands.bhyve", *argv], capture_output=True, text=True, timeout=60, **kwargs
    )


def variables(*argv):
    return dict(parse([*argv, "vm0"]))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-A"], {"acpi_tables": "true"}),
        (["-a"], {"x86.x2apic": "false"}),
        (["-x"], {"x86.x2apic": "true"}),
        (["-H"], {"x86.vmexit_on_hlt": "true"}),
        (["-P"], {"x86.vmexit_on_pause": "true"}),
        (["-e"], {"x86.strictio": "true"}),
        (["-w"], {"x86.strictmsr": "false"}),
        (["-W"], {"virtio_msix": "false"}),
        (["-Y"], {"x86.mptable": "false"}),
        (["-u"], {"rtc.use_localtime": "false"}),
        (["-C"], {"memory.guest_in_core": "true"}),
        (["-D"], {"destroy_on_poweroff": "true"}),
        (["-b"], {"bvmcons": "true"}),
        (["-I"], {}),
        (["-S"], {"memory.wired": "true"}),
        (["-SH"], {"memory.wired": "true", "x86.vmexit_on_hlt": "true"}),
        (["-HS", "-A"], {"memory.wired": "true", "x86.vmexit_on_hlt": "true", "acpi_tables": "true"}),
        (["-S", "3,uart"], {"pci.0.3.0.device": "uart", "pci.0.3.0.legacy": "true"}),
        (["-S3:1,uart"], {"pci.0.3.1.device": "uart", "pci.0.3.1.legacy": "true"}),
        (["-m", "512M"], {"memory.size": "512M"}),
        (["-m512M"], {"memory.size": "512M"}),
        (["-Am512M"], {"acpi_tables": "true", "memory.size": "512M"}),
        (["-c", "2"], {"cpus": "2"}),
        (["-c", "cpus=4,sockets=2,cores=2"], {"cpus": "4", "sockets": "2", "cores": "2"}),
        (["-c", "4,sockets=2,cores=1,threads=2"], {"cpus": "4", "sockets": "2", "cores": "1", "threads": "2"}),
        (["-c", "sockets=2,cores=3"], {"cpus": "6", "sockets": "2", "cores": "3"}),
        (["-g", "6466"], {"dbgport": "6466"}),
        (["-G", "1234"], {"gdb.port": "1234"}),
        (["-G", "w127.0.0.1:1234"], {"gdb.port": "1234", "gdb.address": "127.0.0.1", "gdb.wait": "true"}),
        (["-K", "de"], {"keyboard.layout": "de"}),
        (["-l", "com1,stdio"], {"lpc.com1.path": "stdio"}),
        (["-l", "com2,tcp=127.0.0.1:4555"], {"lpc.com2.path": "tcp=127.0.0.1:4555"}),
        (["-l", "bootrom,/fw.fd,/vars.fd"], {"lpc.bootrom": "/fw.fd", "lpc.bootvars": "/vars.fd"}),
        (["-l", "pc-testdev"], {"lpc.pc-testdev": "true"}),
        (["-o", "boot.cmdline=a=b %(name)"], {"boot.cmdline": "a=b %(name)"}),
        (["-p", "2"], {"vcpu.first_cpu": "2"}),
        (["-p", "0:3", "-p", "1:4"], {"vcpu.0.cpuset": "3", "vcpu.1.cpuset": "4"}),
        (["-s", "0,hostbridge", "-s", "31,lpc"], {"pci.0.0.0.device": "hostbridge", "pci.0.31.0.device": "lpc"}),
        (["-s", "1:2:3,virtio-rnd"], {"pci.1.2.3.device": "virtio-rnd"}),
        (
            ["-s", "3,hostbridge,vendor=0x1234,flag"],
            {"pci.0.3.0.device": "hostbridge", "pci.0.3.0.vendor": "0x1234", "pci.0.3.0.flag": "true"},
        ),
        (["-U", "d1b2f2e6-8f0a-4f0e-9a39-0123456789ab"], {"uuid": "d1b2f2e6-8f0a-4f0e-9a39-0123456789ab"}),
        (["--"], {}),
    ],
)
def test_an_option_writes_its_variables(argv, expected):
    assert variables(*argv) == {"name": "vm0", **expected}


def test_the_whole_line_of_the_manual():
    line = "-A -c 1 -m 512M -H -s 0,hostbridge -s 31,lpc -l com1,stdio -o boot.kernel=K -o boot.initrd=I"
    config = parse([*line.split(), "-o", "boot.cmdline=console=ttyS0", "vm0"])
    assert config.get("boot.cmdline") == "console=ttyS0"
    assert config.get("name") == "vm0"


def test_a_configuration_file_gives_the_name(tmp_path):
    path = tmp_path / "vm.conf"
    path.write_text("name=vm9\ncpus=2\n")
    config = parse(["-k", str(path)])
    assert (config.get("name"), config.get("cpus")) == ("vm9", "2")


@pytest.mark.parametrize(
    "argv", [[], ["vm0", "vm1"], ["-Q", "vm0"], ["-m"], ["-A"], ["--help", "vm0"], ["-:", "vm0"], ["vm0", "-A"]]
)
def test_a_wrong_command_line_gives_usage_and_status_1(argv, capsys):
    with pytest.raises(Usage) as caught:
        parse(argv)
    assert caught.value.status == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m", "lots"], "invalid memsize 'lots'"),
        (["-l", "com5,stdio"], "invalid lpc device configuration 'com5,stdio'"),
        (["-l", "com1"], "invalid lpc device configuration 'com1'"),
        (["-c", "0"], "invalid cpu topology '0'"),
        (["-c", "many"], "invalid cpu topology 'many'"),
        (["-c", "4,sockets=3"], "sockets * cores * threads is 3, not 4"),
        (["-U", "nonsense"], "invalid UUID 'nonsense'"),
        (["-G", "w"], "invalid gdb server 'w'"),
        (["-g", "x"], "invalid debug port 'x'"),
        (["-p", "a:b"], "invalid pinning 'a:b'"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_64(argv, message):
    with pytest.raises(UsageError) as caught:
        variables(*argv)
    assert message in str(caught.value)
    assert caught.value.status == 64


@pytest.mark.parametrize("slot", ["32,lpc", "0:8,lpc", "256:0:0,lpc", "x,lpc", "1:2:3:4,lpc", "3", "3,", ",lpc"])
def test_a_bad_slot_is_refused(slot):
    with pytest.raises(ConfigError, match="invalid PCI slot info"):
        variables("-s", slot)


def test_a_slot_holds_one_device():
    with pytest.raises(ConfigError, match="0:3:0 is already occupied by uart"):
        variables("-s", "3,uart", "-s", "3:0,lpc")


def test_slots_have_three_forms():
    assert [parse_slot(t) for t in ("5", "5:6", "7:5:6")] == [(0, 5, 0), (0, 5, 6), (7, 5, 6)]


def test_lpc_help_lists_the_devices():
    with pytest.raises(Help, match="com1"):
        variables("-l", "help")


def test_help_goes_to_stderr_with_status_0():
    done = bhyve("-h")
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.startswith("usage: bhyve")


def test_help_is_there_at_once():
    best = min(_seconds("-h") for _ in range(5))
    assert best <= 0.15


def _seconds(*argv):
    start = time.perf_counter()
    bhyve(*argv)
    return time.perf_counter() - start


def test_usage_of_the_process_is_status_1():
    done = bhyve("-Q")
    assert done.returncode == 1
    assert "unknown option -- Q" in done.stderr
    assert "usage: bhyve" in done.stderr


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["-m", "lots", "vm0"], "invalid memsize 'lots'"),
        (["-l", "com9,x", "vm0"], "invalid lpc device configuration 'com9,x'"),
    ],
)
def test_a_bad_argument_ends_the_process_with_64(argv, line):
    done = bhyve(*argv)
    assert done.returncode == 64
    assert done.stderr == f"bhyve: {line}\n"


def test_config_dump_prints_the_tree_and_ends():
    done = bhyve("-A", "-m", "1G", "-o", "config.dump=1", "-s", "0,hostbridge", "vm0")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines == sorted(lines)
    assert {"acpi_tables=true", "memory.size=1G", "name=vm0", "pci.0.0.0.device=hostbridge"} <= set(lines)


def test_importing_the_command_loads_nothing_heavy():
    code = (
        "import sys, pyhyve.commands.bhyve as b; b.run(['-h']);"
        "print([m for m in ('asyncio', 'typing', 'argparse', 'rich', 'ctypes', 'pyhyve.machine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=_source_path())
    assert done.stdout.strip() in ("[]", "['typing']")


def _source_path():
    import pyhyve

    return {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(pyhyve.__file__))}
