"""The pyhyve command: what ``run`` means, what it says, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

import pyhyve
from pyhyve.commands.pyhyve import build_parser, run_config
from pyhyve.errors import ConfigError, UsageError
from tests import kernels
from tests.conftest import find_backend

COMMAND = [sys.executable, "-m", "pyhyve.commands.pyhyve"]


def pyhyve_command(*argv, **kwargs):
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(COMMAND + list(argv), capture_output=True, text=True, timeout=60, check=False, **kwargs)


def config_of(*argv):
    return run_config(build_parser().parse_args(["run", *argv]))


def test_run_means_debian_unless_told_otherwise():
    config = config_of()
    assert config.get("image") == "debian"
    assert config.get("name") == "debian"
    assert config.get("boot.kernel") is None


def test_the_second_word_is_the_machines_name():
    assert config_of("debian", "vm7").get("name") == "vm7"


def test_with_a_kernel_the_word_is_the_name():
    config = config_of("--kernel", "/k", "--initrd", "/i", "--append", "a=%(b) \\c", "vm7")
    assert config.get("image") is None
    assert config.get("name") == "vm7"
    assert config.get("boot.kernel") == "/k"
    assert config.get("boot.initrd") == "/i"
    assert config.get("boot.cmdline") == "a=%(b) \\c"


def test_disks_and_networks_are_devices_in_slots():
    config = config_of("--disk", "a.img", "--disk", "b.iso,ahci-cd", "--disk", "c.img,ro,ser=X", "--net", "user", "vm7")
    assert config.get("name") == "vm7"
    assert [config.get(f"pci.0.{slot}.0.device") for slot in range(2, 7)] == [
        "virtio-blk",
        "ahci-cd",
        "virtio-blk",
        "virtio-net",
        None,
    ]
    assert config.get("pci.0.2.0.path") == "a.img"
    assert config.get("pci.0.3.0.port.0.path") == "b.iso"
    assert config.get("pci.0.4.0.ser") == "X"
    assert config.get("pci.0.5.0.backend") == "user"


def test_a_guest_boots_from_its_disk_unless_told_otherwise():
    assert config_of("--disk", "a.img").get("image") is None
    assert config_of("--disk", "a.img").get("name") == "guest"
    assert config_of("debian", "--disk", "a.img").get("image") == "debian"
    assert config_of("--disk", "a.img", "--kernel", "/k").get("boot.kernel") == "/k"


def test_the_machine_is_a_whole_one():
    config = config_of("--memory", "1G", "--cpus", "2", "--backend", "soft", "-o", "x86.strictio=true")
    assert config.get("memory.size") == "1G"
    assert config.get_int("cpus") == 2
    assert config.get("vmm.backend") == "soft"
    assert config.get_bool("acpi_tables")
    assert config.get_bool("x86.strictio")
    assert config.get("lpc.com1.path") == "stdio"
    assert config.get("pci.0.31.0.device") == "lpc"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan9"], "unknown image 'plan9': there is debian"),
        (["debian", "a", "b"], "'b' is too much"),
        (["--kernel", "/k", "a", "b"], "'b' is too much"),
        (["--initrd", "/i"], "--initrd needs --kernel"),
        (["--disk", "a", "--initrd", "/i"], "--initrd needs --kernel"),
        (["--disk", ",ro"], "invalid disk ',ro': it must be FILE"),
        (["--disk", "a"] * 30, "30 disks and networks are more than there are slots"),
        (["--memory", "lots"], "invalid memsize 'lots'"),
        (["--cpus", "0"], "invalid number of CPUs '0'"),
    ],
)
def test_a_wrong_run_is_refused(argv, message):
    with pytest.raises(UsageError, match=message):
        config_of(*argv)


def test_a_variable_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        config_of("-o", "nonsense")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["run", "--wings"],
        ["run", "--backend", "xen"],
        ["image"],
        ["image", "plan9"],
        ["image", "debian-disk"],
    ],
)
def test_a_wrong_command_line_is_status_64(argv):
    done = pyhyve_command(*argv)
    assert done.returncode == 64
    assert "usage: pyhyve" in done.stderr
    assert "Traceback" not in done.stderr


def test_version():
    assert pyhyve_command("--version").stdout == f"pyhyve {pyhyve.__version__}\n"


def test_help_is_there_at_once():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert pyhyve_command("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= 0.25


def test_run_says_which_backend_it_chose_and_how_the_guest_ended(backend):
    done = pyhyve_command("run", "--kernel", kernels.build(kernels.POWER_OFF), "--backend", backend, "vm0")
    assert done.returncode == 1
    assert done.stdout == "hello\n"
    first, last = done.stderr.splitlines()
    assert first.startswith("pyhyve: running on ")
    assert f"vmm.backend={backend}" in first
    assert last == "pyhyve: the machine is powered off"


def test_on_a_terminal_run_says_how_to_leave(backend):
    argv = [*COMMAND[1:], "run", "--kernel", kernels.build(kernels.ECHO), "--backend", backend]
    child = pexpect.spawn(COMMAND[0], argv, timeout=60)
    child.expect_exact("leave with Ctrl-] q")
    child.expect_exact("ready")
    child.send("\x1dq")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--kernel", "/nowhere"], "pyhyve: cannot read kernel /nowhere"),
        (["--disk", "/nowhere"], "pyhyve: cannot open disk /nowhere: No such file"),
        (["--disk", "/dev/null"], "pyhyve: disk /dev/null is neither a file nor a block device"),
        (["--disk", sys.executable], "has nothing to boot"),
        (["--kernel", "/nowhere", "--disk", "/nowhere,spinning=1"], "virtio-blk"),
        (["--kernel", "/nowhere", "--cpus", "99"], "99 vCPUs requested but only"),
    ],
)
def test_a_machine_that_cannot_be_built_is_one_line_and_status_4(argv, line):
    find_backend("kvm")
    done = pyhyve_command("run", "--backend", "kvm", *argv)
    assert done.returncode == 4
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def apt_that_hangs(place):
    """A folder for PATH whose apt waits for ever, and tells when it has begun."""
    for tool in ("apt-get", "apt-cache", "apt-config", "dpkg-deb"):
        script = place / tool
        script.write_text(f"#!/bin/sh\n[ $(basename $0) = apt-get ] || exit 0\necho > {place}/begun\nexec sleep 100\n")
        script.chmod(0o755)
    os.mkfifo(place / "begun")
    return {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(place / "cache")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_an_image_is_fetched_ends_at_once(number, tmp_path):
    environment = apt_that_hangs(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "image", "debian"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    (tmp_path / "begun").read_text()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert out == ""


def test_an_image_without_apt_says_what_to_pass_instead(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = pyhyve_command("image", "debian", env=environment)
    assert done.returncode == 4
    assert "--kernel" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_package_gives_the_same_machine_to_a_script():
    code = "from pyhyve import Config, Machine, Status; print(Machine.__name__, Config.of({'a': 1}).get('a'))"
    environment = {**os.environ, "PYTHONPATH": str(Path(pyhyve.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "Machine 1\n"
