"""bhyveload and the machine it leaves: loaded, run once, loaded again."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from pyhyve.commands.bhyveload import Usage, command_line, kernel_word, parse
from pyhyve.control.folder import Folder
from pyhyve.errors import UsageError
from pyhyve.memory import GuestMemory
from tests import kernels
from tests.commands.named import boot, call, load, machines, run, running
from tests.loader.disk import images
from tests.loader.images import bzimage

# Waits for a character, then writes to every page from 2 MiB up to 16 MiB.
FILL_MEMORY = """
    say "ready\\n"
0:  mov $0x3fd, %dx
    in %dx, %al
    test $1, %al
    jz 0b
    mov $0x200000, %edi
0:  movl $0x12345678, (%edi)
    add $4096, %edi
    cmp $0x1000000, %edi
    jb 0b
    say "full\\n"
    power_off
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path))
    return tmp_path


# -- the command line --


def test_the_options_are_read():
    options = parse("-S -m 1G -c /dev/null -C quiet -e a=b -e c=d -i initrd vmlinuz vm0".split())
    assert (options.kernel, options.name, options.initrd, options.cmdline) == ("vmlinuz", "vm0", "initrd", "quiet")
    assert (options.memory, options.console, options.environment, options.wired) == (
        "1G",
        "/dev/null",
        ["a=b", "c=d"],
        True,
    )
    assert parse(["-h", "/", "vm0"]).directory == "/"
    assert parse(["-ddisk", "vm0"]).disk == "disk"


@pytest.mark.parametrize("line", ["", "vm0", "a b c", "-h / a b", "-d x", "-z a b", "-m"])
def test_a_wrong_command_line_gives_usage(line):
    with pytest.raises(Usage):
        parse(line.split())
    done = call("bhyveload", *line.split())
    assert done.returncode == 1
    assert "usage: bhyveload" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-m 5x k vm0", "invalid memsize '5x'"),
        ("-m 0 k vm0", "invalid memsize '0'"),
        ("-h / -d x vm0", "contradict each other"),
        ("-e novalue k vm0", "invalid environment 'novalue'"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_64(line, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(line.split())
    assert caught.value.status == 64


def test_the_environment_is_words_of_the_kernels_command_line():
    assert command_line("console=ttyS0", []) == "console=ttyS0"
    assert command_line("", ["a=1"]) == "a=1"
    assert command_line("console=ttyS0 -- single", ["a=1", "b=2"]) == "console=ttyS0 a=1 b=2 -- single"
    assert kernel_word("greeting=hello world") == 'greeting="hello world"'


# -- what it leaves --


def test_it_leaves_memory_and_registers():
    load(kernels.POWER_OFF)
    folder = Folder("vm0")
    registers = folder.read_registers()["registers"]
    memory = GuestMemory(folder.memory_size, fd=folder.open_memory())
    assert folder.memory_size == 16 << 20
    assert memory.read(registers["rip"], 5) == bytes.fromhex("bc00000800")  # mov $0x80000, %esp
    memory.close()
    assert registers["rax"] == 0x2BADB002


def test_the_command_line_reaches_the_kernel(tmp_path):
    (tmp_path / "bzImage").write_bytes(bzimage())
    done = call("bhyveload", "-m", "64M", "-C", "quiet", "-e", "color=blue", tmp_path / "bzImage", "vm0")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Folder("vm0")
    memory = GuestMemory(folder.memory_size, fd=folder.open_memory())
    assert memory.read(0x20000, 17) == b"quiet color=blue\0"
    memory.close()


@pytest.mark.parametrize("name", ["a/b", ".", "..", "", "n" * 300])
def test_an_impossible_name_is_one_line(name):
    for command in (["bhyveload", kernels.build(kernels.SPIN), name], ["bhyvectl", "--vm", name, "--create"]):
        done = call(*command)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "name" in done.stderr


def test_a_kernel_that_cannot_be_loaded_leaves_no_machine(tmp_path):
    (tmp_path / "text").write_text("no kernel at all")
    done = call("bhyveload", tmp_path / "text", "vm0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"bhyveload: kernel {tmp_path / 'text'} is not a kernel")
    assert machines() == []


def test_a_machine_that_was_there_stays_without_a_guest(tmp_path):
    load(kernels.POWER_OFF)
    assert call("bhyveload", tmp_path / "missing", "vm0").returncode == 1
    assert machines() == ["vm0"]
    assert not Folder("vm0").loaded
    assert "memory" not in os.listdir(Folder("vm0").path)


def test_more_memory_than_the_file_system_has_is_one_line():
    done = call("bhyveload", "-m", "100T", kernels.build(kernels.SPIN), "vm0")
    assert done.returncode == 1
    assert "104857600 MB of guest memory do not fit into" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert machines() == []


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A runtime directory that has 24 MB and the means to fill it up."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24M,mode=700", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(place))

    def fill():
        with open(place / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    yield fill
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_runtime_directory_is_one_line(small):
    done = call("bhyveload", "-m", "32M", kernels.build(kernels.SPIN), "vm0")
    assert done.returncode == 1
    assert re.fullmatch(
        r"bhyveload: 32 MB of guest memory do not fit into \S+, which has 2[34] MB free .*\n", done.stderr
    )
    assert machines() == []
    small()
    for done in (
        call("bhyveload", "-m", "16M", kernels.build(kernels.SPIN), "vm0"),
        call("bhyvectl", "--vm=vm0", "--create"),
        run("auto", *boot(kernels.SPIN), "-m", "16M"),
    ):
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "No space left on device" in done.stderr or "do not fit" in done.stderr
    assert machines() == []


def test_a_full_runtime_directory_does_not_hurt_a_guest_that_runs(small, backend):
    load(FILL_MEMORY)
    with running(backend, "ready\n") as process:
        small()
        assert process.communicate("q", timeout=60) == ("full\n", "")
        assert process.returncode == 1


# -- running it --


@pytest.mark.parametrize(("kernel", "status"), [(kernels.POWER_OFF, 1), (kernels.RESET, 0), (kernels.TRIPLE_FAULT, 3)])
def test_a_loaded_guest_runs_to_its_end(kernel, status, backend):
    load(kernel)
    done = run(backend)
    assert (done.returncode, done.stderr) == (status, "")
    assert machines() == ["vm0"]


def test_it_runs_once_and_says_how_to_go_on(backend):
    load(kernels.RESET)
    assert run(backend).returncode == 0
    again = run(backend)
    assert again.returncode == 1
    assert again.stderr == (
        "bhyve: vm_open: 'vm0' has run since it was loaded (the guest reset it): load one with bhyveload KERNEL vm0\n"
    )
    load(kernels.POWER_OFF)
    assert run(backend).stdout == "hello\n"


def test_a_shell_loop_carries_a_guest_through_resets(tmp_path):
    # the kernel is another file after each reset
    script = """
        n=0
        while
            n=$((n + 1))
            kernel=$RESET; test $n -lt 3 || kernel=$POWER_OFF
            $BHYVELOAD -m 16M $kernel vm0 && $BHYVE vm0
        do :; done
        echo $n $?
    """
    python = f"{os.sys.executable} -m pyhyve.commands"
    variables = {
        "BHYVELOAD": f"{python}.bhyveload",
        "BHYVE": f"{python}.bhyve -s 0,hostbridge",
        "RESET": kernels.build(kernels.RESET),
        "POWER_OFF": kernels.build(kernels.POWER_OFF),
    }
    done = subprocess.run(["sh", "-c", script], env={**os.environ, **variables}, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.stdout == "3 0\n", done.stderr


def test_a_name_that_was_not_loaded_says_what_to_do():
    done = run("auto", name="nobody")
    assert done.returncode == 1
    assert done.stderr == (
        "bhyve: vm_open: no virtual machine 'nobody': load a guest first (bhyveload KERNEL nobody), "
        "or name one with -o boot.kernel=FILE\n"
    )
    call("bhyvectl", "--vm=empty", "--create")
    done = run("auto", name="empty")
    assert done.stderr == "bhyve: vm_open: 'empty' has no guest: load one with bhyveload KERNEL empty\n"


def test_another_memory_size_contradicts_the_loaded_one(backend):
    load(kernels.POWER_OFF)
    done = run(backend, "-m", "32M")
    assert done.returncode == 1
    assert done.stderr == "bhyve: -m 32M contradicts 'vm0', which was loaded with 16 MB (bhyveload -m)\n"
    assert run(backend, "-m", "16").returncode == 1  # the guest is still there: power-off


def test_what_cannot_be_built_leaves_the_guest_loaded():
    load(kernels.POWER_OFF)
    assert run("auto", "-s", "4,nonsense").returncode == 1
    assert run("auto", "-o", "cpus=99").returncode == 1
    assert Folder("vm0").loaded
    assert run("auto").stdout == "hello\n"


def test_d_destroys_at_power_off_only(backend):
    load(kernels.RESET)
    assert run(backend, "-D").returncode == 0
    assert machines() == ["vm0"]
    load(kernels.POWER_OFF)
    assert run(backend, "-D").returncode == 1
    assert machines() == []


def test_a_machine_of_its_own_kernel_has_a_name_only_while_it_runs(backend):
    with running(backend, "ready\n", *boot(kernels.ECHO), "-m", "16M") as process:
        assert machines() == ["vm0"]
        assert process.communicate("q", timeout=30)[0] == ".q"
    assert machines() == []


def test_a_kernel_of_its_own_leaves_a_machine_that_was_there(backend):
    load(kernels.RESET)
    assert run(backend, *boot(kernels.POWER_OFF), "-m", "16M").stdout == "hello\n"
    assert Folder("vm0").loaded
    assert run(backend).returncode == 0


def test_two_never_run_one_machine(backend):
    with running(backend, "spinning\n", *boot(kernels.SPIN), "-m", "16M") as process:
        for done in (
            run(backend, *boot(kernels.SPIN)),
            run(backend),
            call("bhyveload", kernels.build(kernels.SPIN), "vm0"),
        ):
            assert done.returncode == 1
            assert done.stderr.endswith(f"the virtual machine 'vm0' is in use by process {process.pid}\n")
        assert process.poll() is None


def test_of_two_that_start_at_once_one_runs():
    load(kernels.ECHO)
    pipe = subprocess.PIPE
    from tests.commands.named import bhyve

    racers = [
        subprocess.Popen(bhyve("auto"), stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]  # fmt: skip
    ends = []
    for racer in racers:
        out, err = racer.communicate("q", timeout=60)
        ends.append((racer.returncode, out, "vm_open" in err or "is in use" in err))
    assert sorted(ends) == [(1, "", True), (1, "ready\n.q", False)]


def test_a_killed_machine_does_not_block_the_next(backend):
    load(kernels.SPIN)
    for start in ((), boot(kernels.SPIN)):
        with running(backend, "spinning\n", *start) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        assert Path(Folder("vm0").path, "control").exists()
        load(kernels.SPIN)
    with running(backend, "spinning\n") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


def test_a_killed_machine_without_a_load_is_loaded_anew(backend):
    load(kernels.SPIN)
    with running(backend, "spinning\n") as process:
        process.kill()
        process.wait(30)
    assert "has run since it was loaded" in run(backend).stderr


def test_wiring_is_remembered():
    load(kernels.POWER_OFF, "vm0", "-S")
    assert " wired" in call("bhyvectl", "--vm=vm0", "--get-lowmem").stdout


# -- from a directory or a disk --


@pytest.fixture
def installed(tmp_path):
    """A guest's files: a kernel that powers off, and the boot configuration that names it."""
    kernel = Path(kernels.build(kernels.POWER_OFF)).read_bytes()
    config = "menuentry 'Tiny' {\n linux /boot/vmlinuz-1 quiet\n}\n"
    return images.write(tmp_path / "root", {"boot/vmlinuz-1": kernel, "boot/grub/grub.cfg": config})


def test_a_directory_names_its_kernel(installed, backend):
    done = call("bhyveload", "-m", "16M", "-h", installed, "vm0")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"loaded Tiny: {installed}:boot/vmlinuz-1\n", "")
    assert run(backend).stdout == "hello\n"


@pytest.mark.parametrize("kind", ["ext4", "fat", "mbr"])
def test_a_disk_names_its_kernel(kind, installed, tmp_path):
    if kind == "fat":
        disk = images.fat(tmp_path / "disk", installed, 16, 16 << 20)
    else:
        disk = images.ext(tmp_path / "disk", installed, "ext4", 8 << 20)
    if kind == "mbr":
        disk = images.disk(tmp_path / "whole", "dos", [(disk, "83")])
    done = call("bhyveload", "-m", "16M", "-d", disk, "vm0")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"loaded Tiny: {disk}:boot/vmlinuz-1\n", "")
    assert run("auto").stdout == "hello\n"


def test_what_the_command_line_says_wins_over_the_configuration(installed, tmp_path):
    (tmp_path / "initrd").write_bytes(b"another disk")
    done = call("bhyveload", "-m16M", "-h", installed, "-C", "debug", "-i", tmp_path / "initrd", "vm0")
    assert done.returncode == 0
    folder = Folder("vm0")
    memory = GuestMemory(folder.memory_size, fd=folder.open_memory())
    data = memory.read(0, memory.size)
    memory.close()
    assert b"debug\0" in data
    assert b"quiet\0" not in data
    assert b"another disk" in data


def test_messages_name_the_guests_own_files(installed):
    (installed / "boot/vmlinuz-1").write_text("no kernel")
    done = call("bhyveload", "-m", "16M", "-h", installed, "vm0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"bhyveload: kernel {installed}:boot/vmlinuz-1 is not a kernel")
    assert machines() == []


def test_the_console_is_told_what_is_loaded(installed):
    ours, theirs = os.openpty()
    try:
        done = call("bhyveload", "-m", "16M", "-c", os.ttyname(theirs), "-h", installed, "vm0")
        assert (done.returncode, done.stdout) == (0, "")
        assert os.read(ours, 1000).startswith(b"loaded Tiny: ")
    finally:
        os.close(ours)
        os.close(theirs)
    done = call("bhyveload", "-m", "16M", "-c", "/nowhere", "-h", installed, "vm1")
    assert done.returncode == 64
    assert done.stderr == "bhyveload: cannot write to console /nowhere: No such file or directory\n"
    assert machines() == ["vm0"]
