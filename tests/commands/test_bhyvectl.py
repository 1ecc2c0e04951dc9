"""bhyvectl: what it prints, what it changes, on machines that run and on loaded ones."""

import contextlib
import re
import resource
import subprocess
import time

import pytest

from pyhyve.commands.bhyvectl import cpus_line, number, parse, usage
from pyhyve.control.client import Connection
from pyhyve.control.folder import Folder
from pyhyve.errors import UsageError
from tests import kernels
from tests.commands.named import boot, call, command, load, machines, run, running


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def ctl(*words, vm="vm0"):
    return call("bhyvectl", f"--vm={vm}", *words)


def good(*words):
    done = ctl(*words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# -- the command line --


def test_usage_lists_every_option():
    for done in (call("bhyvectl"), call("bhyvectl", "--get-rip"), call("bhyvectl", "--vm=a", "--nonsense")):
        assert done.returncode == 1
        assert done.stderr.endswith(usage())
    for option in ("--vm=<vmname>", "--get-desc-ldtr", "--set-rip=<value>", "--inject-nmi", "--get-r15"):
        assert option in usage()


def test_values_may_follow_and_names_may_be_short():
    assert parse(["--vm", "a", "--get-all"]) == {"vm": "a", "get-all": ""}
    assert parse(["--vm=a", "--force-p"]) == {"vm": "a", "force-poweroff": ""}


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10), ("0x10", 16), ("010", 8), ("0", 0), ("0xffffffffffffffff", (1 << 64) - 1)]
)
def test_numbers_are_those_of_strtoul(text, value):
    assert number("set-rip", text) == value


@pytest.mark.parametrize("text", ["x", "", "-1", "0x10000000000000000", "1.5"])
def test_what_is_no_number_is_one_line(text):
    with pytest.raises(UsageError, match="--set-rip: "):
        number("set-rip", text)


def test_saving_a_snapshot_is_refused():
    done = ctl("--suspend=file")
    assert done.returncode == 1
    assert done.stderr.startswith("bhyvectl: --suspend=FILE would save a snapshot")


def test_sets_of_cpus():
    assert cpus_line("active cpus", [0, 2]) == "active cpus:\t 0, 2"
    assert cpus_line("suspended cpus", []) == "suspended cpus:\t (none)"


# -- machines that do not run --


def test_create_and_destroy():
    good("--create")
    assert machines() == ["vm0"]
    again = ctl("--create")
    assert (again.returncode, again.stderr) == (1, "bhyvectl: the virtual machine 'vm0' exists already\n")
    good("--destroy")
    assert machines() == []


@pytest.mark.parametrize("option", ["--destroy", "--get-all", "--get-stats", "--force-reset", "--set-rip=1"])
def test_a_machine_that_is_not_there(option):
    done = ctl(option)
    assert (done.returncode, done.stderr) == (1, "VM:vm0 is not created.\n")


@pytest.mark.parametrize("option", ["--get-stats", "--inject-nmi", "--force-reset", "--suspend", "--get-active-cpus"])
def test_what_only_a_running_machine_has(option):
    load(kernels.SPIN)
    done = ctl(option)
    assert (done.returncode, done.stderr) == (1, "bhyvectl: the virtual machine 'vm0' is not running\n")


def test_a_created_machine_has_no_registers():
    good("--create")
    done = ctl("--get-rip")
    assert (done.returncode, done.stderr) == (1, "bhyvectl: the virtual machine 'vm0' has no guest loaded\n")


def test_registers_of_a_loaded_guest_can_be_read_and_set():
    load(kernels.SPIN)
    entry = good("--get-rip")
    assert re.fullmatch(r"rip\[0\]\t\t0x00000000001000[0-9a-f]{2}\n", entry)
    good("--set-rip=0x123456")
    assert good("--get-rip") == "rip[0]\t\t0x0000000000123456\n"
    assert good("--get-rflags") == "rflags[0]\t0x0000000000000002\n"
    assert good("--get-cs") == "cs[0]\t\t0x0010\n"
    assert good("--get-desc-cs") == "cs desc[0]\t0x0000000000000000/0xffffffff/0x0000c09b\n"
    assert good("--get-lowmem", "--get-highmem") == (
        "lowmem\t\t0x0000000000000000/16777216\nhighmem\t\t0x0000000100000000/0\n"
    )
    done = ctl("--cpu=1", "--get-rip")
    assert done.stderr == "bhyvectl: there is no vcpu 1 before bhyve runs the machine\n"


def test_descriptors_and_selectors_are_set_together_or_alone():
    load(kernels.SPIN)
    good("--set-desc-fs", "--desc-base=0x1000", "--desc-limit=0xffff", "--desc-access=0x93", "--set-es=0x18")
    good("--set-desc-gdtr", "--desc-base=0x2000", "--desc-limit=0x17", "--set-fs", "8")
    assert good("--get-desc-fs", "--get-fs", "--get-es", "--get-desc-gdtr").splitlines() == [
        "fs desc[0]\t0x0000000000001000/0x0000ffff/0x00000093",
        "gdtr[0]\t\t0x0000000000002000/0x00000017",
        "es[0]\t\t0x0018",
        "fs[0]\t\t0x0008",
    ]


@pytest.mark.parametrize("option", ["--set-cs=0x10000", "--set-rip=zero"])
def test_a_value_that_does_not_fit_changes_nothing(option):
    load(kernels.SPIN)
    before = Folder("vm0").read_registers()
    done = ctl(option)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert Folder("vm0").read_registers() == before


def test_where_a_loaded_guest_starts_can_be_changed(backend):
    # a second kernel behind the first one's entry
    load("""
    say "first\\n"
    power_off
    .fill 4096
second:
    say "second\\n"
    power_off
""")  # fmt: skip
    start = int(good("--get-rip").split()[1], 16)
    folder = Folder("vm0")
    with open(folder.path / "memory", "rb") as memory:
        memory.seek(start)
        second = start + memory.read(8192).index(b"second\n") - 32
        memory.seek(second)
        code = memory.read(32)
    # `say` begins by loading the address of its text, which is the only MOV to ESI there
    good(f"--set-rip={second + code.index(0xBE)}")
    assert run(backend).stdout == "second\n"


# -- machines that run --


def test_everything_of_a_running_machine(backend):
    with running(backend, "spinning\n", *boot(kernels.SPIN), "-m", "16M"):
        lines = good("--get-all").splitlines()
        names = [line.split("\t")[0] for line in lines]
        assert names[:4] == ["lowmem", "highmem", "efer[0]", "cr0[0]"]
        for name in ("rip[0]", "rflags[0]", "ds desc[0]", "gdtr[0]", "ldtr[0]", "vcpu0", "active cpus:"):
            assert name in names
        rip = int(good("--get-rip").split()[1], 16)
        assert 0x100000 <= rip < 0x101000


def test_counters_of_a_running_machine(backend):
    with running(backend, "spinning\n", *boot(kernels.SPIN), "-m", "16M"):
        lines = good("--get-stats").splitlines()
        assert lines[0] == "vcpu0"
        assert all(re.fullmatch(r".{40}\t\d+", line) for line in lines if line not in ("vcpu0", "vm"))
        exits = dict(line.split("\t") for line in good("--get-exit-stats").splitlines()[1:])
        assert int(exits[f"{'inout':<40}"]) >= len("spinning\n")
        for option in ("--get-exit-stats", "--get-rip", "--inject-nmi"):
            done = ctl("--cpu=1", option)
            assert done.returncode == 1
            assert "there is no vcpu 1" in done.stderr


def test_suspend_and_resume(backend):
    with running(backend, "ready\n", *boot(kernels.ECHO), "-m", "16M") as process:
        good("--suspend")
        assert good("--get-suspended-cpus") == "suspended cpus:\t 0\n"
        first = good("--get-all")
        assert [line for line in good("--get-all").splitlines() if "[0]" in line] == [
            line for line in first.splitlines() if "[0]" in line
        ]
        assert "vm0   suspended" in call("pyhyve", "list").stdout
        good("--resume")
        assert good("--get-suspended-cpus", "--get-active-cpus").splitlines() == [
            "active cpus:\t 0",
            "suspended cpus:\t (none)",
        ]
        assert process.communicate("q", timeout=30)[0] == ".q"


def test_a_register_that_is_set_takes_the_guest_elsewhere(backend):
    # the guest spins at one of two jumps to itself; the second is told apart by what follows it
    kernel = """
    say "waiting\\n"
0:  jmp 0b
    say "free\\n"
    power_off
"""
    with running(backend, "waiting\n", *boot(kernel), "-m", "16M") as process:
        rip = int(good("--get-rip").split()[1], 16)
        good(f"--set-rip={rip + 2}")
        assert process.communicate(timeout=30) == ("free\n", "")
        assert process.returncode == 1


@pytest.mark.parametrize(("option", "status"), [("--force-reset", 0), ("--force-poweroff", 1)])
def test_an_end_by_force(option, status, backend):
    with running(backend, "spinning\n", *boot(kernels.SPIN), "-m", "16M") as process:
        good(option)
        assert process.wait(30) == status
        assert machines() == []


@pytest.mark.parametrize("suspended", [False, True])
def test_destroying_a_running_machine_ends_it(backend, suspended):
    load(kernels.SPIN)
    with running(backend, "spinning\n") as process:
        if suspended:
            good("--suspend")
        good("--destroy")
        assert machines() == []
        assert process.wait(30) == 4
        assert process.stderr.read() == "bhyve: the virtual machine was destroyed\n"


def test_an_nmi_reaches_the_guest(backend):
    # an NMI without a handler ends this guest in a triple fault
    kernel = """
    lidt none
    say "waiting\\n"
0:  jmp 0b
none: .word 0, 0, 0
"""
    with running(backend, "waiting\n", *boot(kernel), "-m", "16M") as process:
        good("--inject-nmi")
        assert process.wait(30) == 3


def test_two_unnamed_guests_run_side_by_side(backend):
    spin = ("run", "--kernel", kernels.build(kernels.SPIN), "--memory", "16M", "--backend", backend)
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        for name in ("guest", "guest-2"):
            process = stack.enter_context(
                subprocess.Popen(command("pyhyve", *spin), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            assert process.stdout.readline() == b"spinning\n"
            assert "rip[0]" in ctl("--get-rip", vm=name).stdout


def test_an_answer_comes_quickly():
    # on a host with nothing else to do; elsewhere, what the command itself spends and how long the machine lets it wait
    with running("auto", "spinning\n", *boot(kernels.SPIN), "-m", "16M"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        good("--get-rip")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        waits = []
        with Connection("vm0") as vm:
            for _ in range(20):
                start = time.monotonic()
                vm.call("registers", cpu=0)
                waits.append(time.monotonic() - start)
    assert spent + min(waits) <= 0.2


def test_a_machine_whose_process_was_killed_is_not_running(backend):
    with running(backend, "spinning\n", *boot(kernels.SPIN), "-m", "16M") as process:
        process.kill()
        process.wait(30)
    assert ctl("--get-stats").stderr == "bhyvectl: the virtual machine 'vm0' is not running\n"
    assert "killed" in call("pyhyve", "list").stdout
    good("--destroy")
    assert machines() == []


def test_the_list_says_what_each_machine_does(backend):
    assert call("pyhyve", "list").stdout.split() == ["NAME", "STATE", "BACKEND", "CPUS", "MEMORY", "PID"]
    call("bhyvectl", "--vm=a", "--create")
    load(kernels.POWER_OFF, "b")
    load(kernels.POWER_OFF, "c")
    run(backend, name="c")
    with running(backend, "spinning\n", *boot(kernels.SPIN), "-m", "16M", name="d") as process:
        rows = [line.split() for line in call("pyhyve", "list").stdout.splitlines()[1:]]
    assert rows == [
        ["a", "created", "-", "-", "-", "-"],
        ["b", "loaded", "-", "-", "16M", "-"],
        ["c", "ended", "-", "-", "16M", "-"],
        ["d", "running", backend, "1", "16M", str(process.pid)],
    ]
