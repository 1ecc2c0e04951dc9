"""bhyve's command line: what each option writes, and how bad ones end."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.commands.bhyve import parse
from pyhyve.commands.options import OPTIONS, Usage, parse_slot, usage
from pyhyve.config import DEFAULTS
from pyhyve.errors import ConfigError, UsageError


def bhyve(*argv, **kwargs):
    if "input" not in kwargs:
        kwargs["stdin"] = subprocess.DEVNULL
    kwargs.setdefault("text", True)
    return subprocess.run(
        [sys.executable, "-m", "pyhyve.commands.bhyve", *argv], capture_output=True, timeout=60, **kwargs
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
        (["-l", "bootrom,/fw.fd,/vars.fd,fwcfg=qemu"],
         {"lpc.bootrom": "/fw.fd", "lpc.bootvars": "/vars.fd", "lpc.fwcfg": "qemu"}),
        (["-l", "bootrom,/fw.fd,fwcfg=bhyve"], {"lpc.bootrom": "/fw.fd", "lpc.fwcfg": "bhyve"}),
        (["-l", "COM3,/dev/tty9"], {"lpc.com3.path": "/dev/tty9"}),
        (["-l", "fwcfg,qemu"], {"lpc.fwcfg": "qemu"}),
        (["-l", "pc-testdev"], {"lpc.pc-testdev": "true"}),
        (["-l", "debug-exit"], {"lpc.debug-exit.port": "0xf4"}),
        (["-l", "debug-exit,size=1,port=0x501"], {"lpc.debug-exit.port": "0x501", "lpc.debug-exit.size": "1"}),
        (["-l", "tpm,swtpm,/run/tpm"], {"tpm.type": "swtpm", "tpm.path": "/run/tpm"}),
        (["-l", "tpm,passthru,/dev/tpm0,version=2.0"],
         {"tpm.type": "passthru", "tpm.path": "/dev/tpm0", "tpm.version": "2.0"}),
        (["-f", "opt/a.b,string=x=y,z"], {"fwcfg.0.name": "opt/a.b", "fwcfg.0.string": "x=y,z"}),
        (["-f", "name=a,file=/f", "-f", "b,string="],
         {"fwcfg.0.name": "a", "fwcfg.0.file": "/f", "fwcfg.1.name": "b", "fwcfg.1.string": ""}),
        (["-g", "0.0.0.0:6466"], {"dbgport": "0.0.0.0:6466"}),
        (["-G", "[::1]:1234"], {"gdb.port": "1234", "gdb.address": "[::1]"}),
        (["-n", "0,1G,0"], {"domains.0.size": "1G", "domains.0.cpus": "0"}),
        (["-n", "7,,0-1,3,interleave:0-2,5"],
         {"domains.7.cpus": "0-1,3", "domains.7.domain_policy": "interleave:0-2,5"}),
        (["-r", "file"], {"restore": "file"}),
        (["-c", ""], {"cpus": "1", "sockets": "1", "cores": "1", "threads": "1"}),
        (["-c", "sockets=2", "-c", "cores=2"], {"cpus": "4", "sockets": "2", "cores": "2"}),
        (["-c", "8", "-c", "2"], {"cpus": "2"}),
        (["-p", "1:2", "-p", "1:4", "-p", "0:1"], {"vcpu.1.cpuset": "2,4", "vcpu.0.cpuset": "1"}),
        (["-a", "-x"], {"x86.x2apic": "true"}),
        (["-xa"], {"x86.x2apic": "false"}),
        (["-o", "x=1", "-o", "x=2"], {"x": "2"}),
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
        (["-g", "0"], "invalid debug port '0'"),
        (["-G", "65536"], "invalid gdb server '65536'"),
        (["-c", "2,dies=2"], "invalid cpu topology '2,dies=2'"),
        (["-c", "3,cores=2"], "sockets * cores * threads is 2, not 3"),
        (["-f", "name"], "invalid firmware configuration item 'name'"),
        (["-f", "a,text=b"], "it must be NAME,string=TEXT or NAME,file=PATH"),
        (["-K", "../../etc/passwd"], "invalid keyboard layout '../../etc/passwd'"),
        (["-l", "pc-testdev,x"], "invalid lpc device configuration 'pc-testdev,x'"),
        (["-l", "fwcfg,seabios"], "invalid lpc device configuration 'fwcfg,seabios'"),
        (["-l", "debug-exit,color=red"], "invalid lpc device configuration 'debug-exit,color=red'"),
        (["-l", "tpm,swtpm"], "invalid lpc device configuration 'tpm,swtpm'"),
        (["-l", "helper"], "invalid lpc device configuration 'helper'"),
        (["-n", "8,1G,0"], "invalid memory domain '8,1G,0'"),
        (["-n", "0,1X,0"], "invalid memory domain '0,1X,0'"),
        (["-n", "0,1G"], "invalid memory domain '0,1G'"),
        (["-p", "1:8192"], "invalid pinning '1:8192'"),
        (["-p", "-1"], "invalid pinning '-1'"),
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


def test_a_domain_is_given_once():
    with pytest.raises(ConfigError, match="memory domain 0 is given twice"):
        variables("-n", "0,1G,0", "-n", "0,1G,1")


@pytest.mark.parametrize("name", ["a/b", "..", "/etc", "x" * 200])
def test_a_name_that_cannot_be_a_folders_is_refused(name):
    with pytest.raises(ConfigError, match="invalid machine name") as caught:
        parse([name])
    assert caught.value.status == 1


def test_later_files_and_options_win(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("name=a\ncpus=2\nx=1\n")
    two.write_text("cpus=4\ny=2\n")
    config = parse(["-k", str(one), "-k", str(two), "-o", "x=3", "b"])
    assert dict(config) == {"name": "b", "cpus": "4", "x": "3", "y": "2"}


def test_a_broken_line_of_a_file_is_named():
    done = bhyve("-k", "/dev/stdin", input="name=vm0\n# fine\ncpus 2\n")
    assert done.returncode == 1
    assert done.stderr == "bhyve: /dev/stdin:3: invalid configuration variable 'cpus 2': it must be NAME=VALUE\n"


def test_values_refer_to_each_other_wherever_they_come_from(tmp_path):
    path = tmp_path / "vm.conf"
    path.write_text("disk=%(dir)/%(name).img\n")
    assert parse(["-k", str(path), "-o", "dir=/d", "vm3"]).get("disk") == "/d/vm3.img"


def test_unknown_variables_are_kept_and_do_no_harm():
    assert variables("-o", "my.own=1", "-o", "lpc.colour=red")["my.own"] == "1"


def test_a_slot_holds_one_device():
    with pytest.raises(ConfigError, match="0:3:0 is already occupied by uart"):
        variables("-s", "3,uart", "-s", "3:0,lpc")


def test_slots_have_three_forms():
    assert [parse_slot(t) for t in ("5", "5:6", "7:5:6")] == [(0, 5, 0), (0, 5, 6), (7, 5, 6)]


def test_lpc_help_lists_the_devices():
    done = bhyve("-l", "help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        "bootrom", "com1", "com2", "com3", "com4", "debug-exit", "fwcfg", "pc-testdev", "tpm"
    ]  # fmt: skip


def test_pci_help_lists_the_devices():
    done = bhyve("-s", "help")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"amd_hostbridge", "hostbridge", "lpc"} <= set(done.stdout.split())


def test_usage_shows_every_option():
    text = usage()
    assert all(f"\n  -{letter}" in text for letter in OPTIONS)
    assert all(len(line) <= 80 for line in text.splitlines())


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


@pytest.mark.parametrize(
    ("argv", "status"), [(["-h", "-Q"], 0), (["-l", "help", "-Q"], 0), (["-m", "lots", "-Q"], 64), (["-Qh"], 1)]
)
def test_options_are_acted_on_in_order(argv, status):
    assert bhyve(*argv).returncode == status


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


FLAGS = st.sampled_from([["-" + letter] for letter in "AabCDeHIPSuwWxY"])
VALUES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r\0%"), max_size=12)
NAMES = st.sampled_from(["boot.cmdline", "my.own", "my.other", "bios.vendor", "keyboard.layout", "x", "\u00e9.x"])
OTHERS = st.one_of(
    st.integers(1, 1 << 20).map(lambda n: ["-m", str(n)]),
    st.sampled_from([["-c", "2"], ["-c", "cores=2"], ["-c", "cpus=4,sockets=2"], ["-ccpus=1"]]),
    st.tuples(st.integers(0, 15), st.integers(0, 99)).map(lambda p: [f"-p{p[0]}:{p[1]}"]),
    st.integers(0, 99).map(lambda n: ["-p", str(n)]),
    st.tuples(NAMES, VALUES).map(lambda p: ["-o", f"{p[0]}={p[1]}"]),
    st.sampled_from(["%(name)", "100%%", r"\%(name)", "%(memory.size)"]).map(lambda v: ["-o", f"y={v}"]),
    st.sampled_from(["com1,stdio", "com2,tcp=:1", "bootrom,/x", "pc-testdev", "fwcfg,qemu", "debug-exit"]).map(
        lambda d: ["-l", d]
    ),
    VALUES.map(lambda v: ["-f", f"opt/x,string={v}"]),
    st.sampled_from([["-G", "w:1"], ["-g", "2"], ["-K", "de"], ["-U", "d1b2f2e6-8f0a-4f0e-9a39-0123456789ab"]]),
)
SLOTS = st.lists(
    st.tuples(st.sampled_from("sS"), st.integers(0, 31), st.sampled_from(["hostbridge", "lpc", "x-y", "lpc,a=b,c"])),
    unique_by=lambda slot: slot[1],
    max_size=4,
).map(lambda slots: [[f"-{letter}", f"{slot},{driver}"] for letter, slot, driver in slots])


def settled(argv):
    """Every variable of a command line as the machine reads it, or the error that there is."""
    try:
        config = parse(argv)
        return config, {name: config.get(name) for name in {*DEFAULTS, *dict(config)}}
    except UsageError as error:
        return None, str(error)


@given(st.lists(st.one_of(FLAGS, OTHERS), max_size=10), SLOTS)
def test_a_dump_is_the_same_machine(tmp_path_factory, options, slots):
    config, tree = settled([*(word for option in [*options, *slots] for word in option), "vm0"])
    if config is None:
        assert "invalid cpu topology" in tree
        return
    path = tmp_path_factory.mktemp("dump") / "vm.conf"
    path.write_text(config.dump(), encoding="utf-8")
    again, read = settled(["-k", str(path)])
    assert read == tree
    assert again.dump() == config.dump()


def test_a_dump_needs_no_editing(tmp_path):
    path = tmp_path / "vm.conf"
    argv = ["-c", "cores=2", "-o", b"x=\xff \xc3\xa9".decode("utf-8", "surrogateescape"), "-o", "config.dump=1"]
    dump = subprocess.run(
        [sys.executable, "-m", "pyhyve.commands.bhyve", *argv, "vm0"], capture_output=True, timeout=60, check=False
    ).stdout
    assert b"\nx=\xff \xc3\xa9\n" in dump
    path.write_bytes(dump)
    assert "config.dump" not in dict(parse(["-k", str(path)]))
    again = bhyve("-k", str(path), "-o", "config.dump=1", text=False)
    assert again.stdout == dump


def test_a_dump_that_nobody_reads_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyhyve.commands.bhyve", "-o", "config.dump=1", "vm0"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "bhyve: cannot print the configuration: No space left on device\n")


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
