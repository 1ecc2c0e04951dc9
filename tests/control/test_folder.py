"""The folder of a named machine: where it is, who holds it, what lies in it."""

import json
import os
import stat
import subprocess
import sys

import pytest

from pyhyve.control import folder as module
from pyhyve.control.folder import Busy, Folder, NoSuchVm, VmError, machines_directory, names
from pyhyve.control.state import StateError, checked, from_entry, merged, reset_state, to_entry
from pyhyve.loader.entry import protected_mode
from pyhyve.memory import GuestMemory
from pyhyve.vmm.registers import Reg


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/", "a\nb", "a\0b", "\udcff"])
def test_an_impossible_name_is_refused_in_one_line(name):
    with pytest.raises(VmError, match="name") as caught:
        Folder(name)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_socket_could_have_is_refused(runtime):
    room = module.SOCKET_PATH_MAX - len(str(runtime / "pyhyve" / "control")) - 1
    Folder("n" * room)
    with pytest.raises(VmError, match="too long by 1 bytes"):
        Folder("n" * (room + 1))


def test_folders_are_this_users_alone(runtime):
    os.umask(os.umask(0))  # whatever the mask is
    with Folder("vm0").claim(create=True) as folder:
        assert mode(runtime / "pyhyve") == mode(folder.path) == 0o700
        os.close(folder.make_memory(4096))
        assert mode(folder.path / "memory") == 0o600


def test_a_runtime_directory_that_others_may_enter_is_refused(runtime):
    (runtime / "pyhyve").mkdir()
    (runtime / "pyhyve").chmod(0o755)
    with pytest.raises(VmError, match="mode 0700"):
        machines_directory()


def test_a_runtime_directory_that_is_a_link_is_refused(runtime, tmp_path_factory):
    (runtime / "pyhyve").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(VmError, match="mode 0700"):
        machines_directory()


def test_a_runtime_directory_that_cannot_be_made_is_one_line(monkeypatch):
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", "/nowhere/at/all")
    with pytest.raises(VmError, match="cannot make the runtime directory /nowhere/at/all/pyhyve"):
        machines_directory()


def test_another_users_runtime_directory_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.delenv("PYHYVE_RUNTIME_DIR")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert tmp_path not in machines_directory().parents
    tmp_path.chmod(0o700)
    assert machines_directory() == tmp_path / "pyhyve"


def test_only_one_holds_a_machine():
    with Folder("vm0").claim(create=True) as first:
        with pytest.raises(Busy, match="'vm0' is in use by another process"):
            Folder("vm0").claim()
        first.set(pid=4711)
        with pytest.raises(Busy, match="in use by process 4711"):
            Folder("vm0").claim(create=True)
    Folder("vm0").claim().release()


def test_a_machine_that_is_not_there_cannot_be_held():
    with pytest.raises(NoSuchVm):
        Folder("vm0").claim()


def test_making_a_machine_twice_fails():
    Folder("vm0").claim(create=True, exclusive=True).release()
    with pytest.raises(VmError, match="exists already"):
        Folder("vm0").claim(create=True, exclusive=True)


def test_the_lock_goes_with_its_holder():
    code = "import os, signal; from pyhyve.control.folder import Folder; f = Folder('vm0').claim(create=True);"
    done = subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGKILL)"], check=False)
    assert done.returncode == -9
    Folder("vm0").claim().release()


def test_of_many_that_race_one_holds_the_machine():
    code = """
import sys
from pyhyve.control.folder import Busy, Folder
sys.stdin.readline()
try:
    folder = Folder("vm0").claim(create=True)
except Busy:
    print("busy", flush=True)
else:
    print("held", flush=True)
sys.stdin.readline()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate("\n", timeout=20)
    assert sorted(said) == ["busy", "busy", "busy", "held"]


def test_a_lock_taken_before_a_removal_is_on_the_new_folder():
    # between opening the folder and locking it, another process removes the machine and makes it again
    Folder("vm0").claim(create=True).release()
    late = Folder("vm0")
    real = late._is
    calls = []

    def removed_meanwhile(descriptor):
        if not calls:
            calls.append(descriptor)
            os.rename(late.path, late.path.with_name(".gone"))
            late.path.mkdir(0o700)
        return real(descriptor)

    late._is = removed_meanwhile
    with late.claim(), pytest.raises(Busy):
        Folder("vm0").claim()


def test_removing_leaves_nothing(runtime):
    folder = Folder("vm0").claim(create=True)
    os.close(folder.make_memory(4096))
    (runtime / "pyhyve" / ".removed-1-vm9").mkdir()  # somebody was killed while removing
    folder.remove()
    assert os.listdir(runtime / "pyhyve") == []


def test_names_are_the_folders():
    for name in ("b", "a"):
        Folder(name).claim(create=True).release()
    (machines_directory() / "file").write_text("")
    assert names() == ["a", "b"]


def test_a_free_name_is_nobodys():
    assert module.free_name("guest") == "guest"
    with Folder("guest").claim(create=True) as first:
        first.set(transient=True)
        assert module.free_name("guest") == "guest-2"
        with Folder("guest-2").claim(create=True) as second:
            second.set(transient=False)  # bhyveload's
            assert module.free_name("guest") == "guest-3"
        assert module.free_name("guest") == "guest-3"
    assert module.free_name("guest") == "guest"  # of a process that was killed


def test_memory_is_reserved_and_zero():
    with Folder("vm0").claim(create=True) as folder:
        fd = folder.make_memory(1 << 20)
        assert os.fstat(fd).st_blocks * 512 >= 1 << 20
        os.pwrite(fd, b"old", 0)
        os.close(fd)
        fd = folder.make_memory(1 << 20)
        assert os.pread(fd, 3, 0) == bytes(3)
        os.close(fd)


def test_a_guest_survives_in_the_memory_file():
    with Folder("vm0").claim(create=True) as folder:
        memory = GuestMemory(1 << 20, fd=folder.make_memory(1 << 20))
        memory.write(0x1234, b"hello")
        memory.close()
        again = GuestMemory(folder.memory_size, fd=folder.open_memory())
        assert again.read(0x1234, 5) == b"hello"
        again.close()


def test_memory_of_the_wrong_size_is_damaged():
    with Folder("vm0").claim(create=True) as folder:
        os.close(folder.make_memory(1 << 20))
        os.truncate(folder.path / "memory", 4096)
        with pytest.raises(VmError, match="damaged: it has 4096 bytes, not 1048576"):
            folder.open_memory()


class Small:
    f_bavail, f_frsize = 512, 4096


def test_memory_that_does_not_fit_is_refused_with_the_room_there_is(monkeypatch):
    with Folder("vm0").claim(create=True) as folder:
        monkeypatch.setattr(module.os, "statvfs", lambda _: Small)
        with pytest.raises(VmError, match=r"64 MB of guest memory do not fit .* which has 2 MB free"):
            folder.make_memory(64 << 20)
        assert not (folder.path / "memory").exists()


@pytest.fixture
def shared(runtime, monkeypatch):
    """A small runtime directory of the user's, not chosen, and a larger place that all users share."""
    place = runtime / "shared"
    place.mkdir()
    runtime.chmod(0o700)
    monkeypatch.delenv("PYHYVE_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(module, "_SHARED", place)
    real = os.statvfs
    monkeypatch.setattr(module.os, "statvfs", lambda path: real(path) if path == place else Small)
    return place


def test_memory_that_does_not_fit_lies_on_the_hosts_shared_memory(shared):
    with Folder("vm0").claim(create=True) as folder:
        memory = GuestMemory(4 << 20, fd=folder.make_memory(4 << 20))
        memory.write(0, b"hello")
        memory.close()
        (own,) = shared.iterdir()
        assert mode(own) == 0o700
        assert len(list(own.iterdir())) == 1
        memory = GuestMemory(4 << 20, fd=folder.open_memory())
        assert memory.read(0, 5) == b"hello"
        memory.close()
        os.close(folder.make_memory(8 << 20))
        (one,) = own.iterdir()
        assert one.stat().st_size == 8 << 20
        folder.remove()
        assert list(own.iterdir()) == []


def test_a_shared_place_of_somebody_else_is_refused(shared):
    (shared / f"pyhyve-{os.geteuid()}").mkdir(mode=0o755)
    with Folder("vm0").claim(create=True) as folder, pytest.raises(VmError, match="mode 0700"):
        folder.make_memory(4 << 20)


def test_memory_that_fits_nowhere_is_refused(shared):
    with Folder("vm0").claim(create=True) as folder:
        with pytest.raises(VmError, match="do not fit"):
            folder.make_memory(1 << 60)
        assert not (folder.path / "memory").is_symlink()


def test_a_full_file_system_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Folder("vm0").claim(create=True) as folder:
        monkeypatch.setattr(module.os, "posix_fallocate", full)
        with pytest.raises(VmError, match="do not fit"):
            folder.make_memory(4096)
        assert not (folder.path / "memory").exists()
        monkeypatch.setattr(module.json, "dumps", full)
        with pytest.raises(OSError):
            folder.set(a=1)


def test_registers_come_back_as_they_were_left():
    memory = GuestMemory(1 << 20)
    entry = protected_mode(memory, 0x100000, {Reg.RBX: 5})
    memory.close()
    with Folder("vm0").claim(create=True) as folder:
        assert not folder.loaded
        folder.write_registers(from_entry(entry), 0x7070)
        assert folder.loaded
        found = folder.read_registers()
        assert to_entry(found, folder.settings()["rsdp_pointer"]).registers == entry.registers
        assert to_entry(found).segments == entry.segments
        assert to_entry(found).tables == entry.tables
        folder.forget_guest()
        assert folder.read_registers() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "registers": {"rip": -1}}', '{"version": 1, "x": {}}']
)
def test_a_damaged_file_is_one_line(text):
    with Folder("vm0").claim(create=True) as folder:
        (folder.path / "registers").write_text(text)
        with pytest.raises(VmError, match="damaged"):
            folder.read_registers()


def test_settings_stay_and_none_takes_one_away():
    with Folder("vm0").claim(create=True) as folder:
        folder.set(transient=False, pid=1)
        folder.set(pid=None)
    assert Folder("vm0").settings() == {"transient": False}
    assert json.loads((folder.path / "config").read_text())["version"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "not a set"),
        ({"fpu": {}}, "no group 'fpu'"),
        ({"registers": {"eax": 1}}, "no register 'eax'"),
        ({"registers": {"rax": "1"}}, "rax: not a number of 64 bits"),
        ({"registers": {"rax": True}}, "rax: not a number"),
        ({"registers": {"rax": 1 << 64}}, "rax: not a number"),
        ({"segments": {"cs": {"base": 0}}}, "cs: it needs selector, base, limit, access"),
        ({"segments": {"cs": {"selector": 1 << 16, "base": 0, "limit": 0, "access": 0}}}, "cs selector"),
        ({"tables": {"ldtr": {"base": 0, "limit": 0}}}, "no register 'ldtr'"),
        ({"tables": {"gdtr": 7}}, "gdtr: not a set"),
    ],
)
def test_registers_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(StateError, match=message):
        checked(wrong)


def test_what_a_loader_does_not_name_has_its_reset_value():
    found = merged(reset_state(), checked({"registers": {"rip": 7}}))
    assert (found["registers"]["rip"], found["registers"]["dr7"]) == (7, 0x400)
    assert checked(found) == found
