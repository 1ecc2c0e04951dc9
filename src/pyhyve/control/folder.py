"""The folder of a virtual machine with a name: ``RUNTIME/pyhyve/NAME``, mode 0700.

| file        | what it is                                                                                   |
| ----------- | -------------------------------------------------------------------------------------------- |
| `config`    | JSON: how much memory, whether the machine outlives its run, the process that runs it          |
| `memory`    | the guest's memory, as ``bhyveload`` left it; ``bhyve`` maps it, so it becomes the guest's      |
| `registers` | JSON: the boot vCPU's registers as ``bhyveload`` left them; taken away when the guest starts    |
| `control`   | the Unix socket of the process that runs the machine                                           |

RUNTIME is ``PYHYVE_RUNTIME_DIR``, or what pam_systemd(8) gives a user (``XDG_RUNTIME_DIR``, ``/run/user/UID``), or a
directory of our own on the host's shared memory. All of these are file systems in memory.

The lock is flock(2) on the folder itself: the kernel drops it with its holder, so a crash leaves nothing behind that
would block the next start. A folder is removed by renaming it away under the lock; who takes the lock later sees that
the name is another folder now, or none. Files are written beside their place and renamed into it, so a reader never
meets half of one.

Blocks of ``memory`` are reserved when it is made: a file system that fills up later cannot fail a guest's access. The
directory that pam_systemd gives is small, a tenth of the host's memory: a guest that does not fit lies in a file on the
host's shared memory, and ``memory`` is a link to it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pyhyve.errors import PyhyveError

if TYPE_CHECKING:
    from pyhyve.control.state import Plain

ENVIRONMENT = "PYHYVE_RUNTIME_DIR"
SOCKET_PATH_MAX = 107
"""Bytes of a Unix socket's path, less the zero behind it (unix(7))."""

_SHARED = Path("/dev/shm")
_SOCKET = "control"
_MEMORY = "memory"
_REGISTERS = "registers"
_CONFIG = "config"
_REMOVED = ".removed"
_VERSION = 1


class VmError(PyhyveError):
    """A named machine is missing, busy, damaged or cannot be made."""


class NoSuchVm(VmError):
    """There is no machine of that name."""


class Busy(VmError):
    """Another process holds the machine."""


# -- where --


def machines_directory() -> Path:
    """The directory that holds a folder for each machine of this user; made if it is not there yet.

    Raises ``VmError`` if it cannot be made, or is not this user's alone.
    """
    directory = _runtime_directory() / "pyhyve"
    _make_private(directory)
    return directory


def _runtime_directory() -> Path:
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    candidates = [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"]
    for candidate in candidates:
        # after su(1) the environment still names the other user's directory
        if candidate.startswith("/") and _is_private(candidate):
            return Path(candidate)
    return _own_directory(_SHARED if os.access(_SHARED, os.W_OK) else Path("/tmp"))


def _own_directory(place: Path) -> Path:
    """This user's directory where every user may make one."""
    own = place / f"pyhyve-{os.geteuid()}"
    _make_private(own)
    return own


def _shared_memory(size: int) -> Path | None:
    """Where ``size`` bytes fit that the runtime directory has no room for; None if nowhere, or a place was chosen."""
    if os.environ.get(ENVIRONMENT) or not os.access(_SHARED, os.W_OK):
        return None
    return _own_directory(_SHARED) if _room(_SHARED) >= size else None


def _room(path: Path) -> int:
    free = os.statvfs(path)
    return free.f_bavail * free.f_frsize


def _is_private(path: str | Path) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _make_private(path: Path) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not _is_private(path):
            raise VmError(f"{path} must be a directory of yours with mode 0700, and is not: remove it") from None
    except OSError as error:
        raise VmError(f"cannot make the runtime directory {path}: {error.strerror} (see {ENVIRONMENT})") from None


def check_name(name: str) -> str:
    """``name``, if a machine can be called so. Raises ``VmError``."""
    if not name:
        raise VmError("a virtual machine needs a name: it is empty")
    if name.startswith("."):
        raise VmError(f"'{name}' is no name for a virtual machine: it starts with a dot")
    if "/" in name:
        raise VmError(f"'{name}' is no name for a virtual machine: it has a slash in it")
    if not name.isprintable():
        raise VmError(f"{name!r} is no name for a virtual machine: it has characters that cannot be printed")
    return name


def names() -> list[str]:
    """The names of this user's machines, sorted."""
    return sorted(entry.name for entry in os.scandir(machines_directory()) if _is_machine(entry))


def free_name(base: str) -> str:
    """``base``, or ``base-2`` and so on: the first name that no machine has, but for one whose process was killed."""
    for number in count(1):
        name = base if number == 1 else f"{base}-{number}"
        try:
            with Folder(name).claim() as folder:
                if folder.settings().get("transient", True):
                    return name
        except NoSuchVm:
            return name
        except Busy:
            pass
    raise AssertionError  # count has no end


def _is_machine(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)


class Folder:
    """The folder of the machine ``name``, which may exist or not. Raises ``VmError`` for an impossible name."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.path = machines_directory() / name
        self.socket_path = self.path / _SOCKET
        too_long = len(os.fsencode(self.socket_path)) - SOCKET_PATH_MAX
        if too_long > 0:
            raise VmError(f"the name '{name}' is too long by {too_long} bytes: its control socket could not be reached")
        self._lock = -1
        self._settings: dict[str, Any] = {}

    # -- being there, and being held --

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    def claim(self, *, create: bool = False, exclusive: bool = False) -> Self:
        """Hold the machine until ``release``; with ``create`` it is made if it is not there, ``exclusive``: it must be.

        Raises ``NoSuchVm``, ``Busy``, or ``VmError``.
        """
        while self._lock < 0:
            if create:
                self._make(exclusive)
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                if create:
                    continue  # somebody removed it between the two steps
                raise NoSuchVm(f"there is no virtual machine '{self.name}'") from None
            except OSError as error:
                raise VmError(f"cannot open the virtual machine '{self.name}': {error.strerror}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is(descriptor):
                    self._lock = descriptor
            except BlockingIOError:
                raise Busy(self._who_holds_it()) from None
            finally:
                if self._lock < 0:
                    os.close(descriptor)
        self._settings = self._read_settings()
        return self

    def _make(self, exclusive: bool) -> None:
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            if exclusive:
                raise VmError(f"the virtual machine '{self.name}' exists already") from None
        except OSError as error:
            raise VmError(f"cannot create the virtual machine '{self.name}': {error.strerror}") from None

    def _is(self, descriptor: int) -> bool:
        """Whether the name still is the folder behind ``descriptor``."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _who_holds_it(self) -> str:
        try:
            pid = self._read_settings().get("pid")
        except VmError:
            pid = None
        process = f"process {pid}" if isinstance(pid, int) else "another process"
        return f"the virtual machine '{self.name}' is in use by {process}"

    def wait_free(self) -> bool:
        """Wait until nobody holds the machine; whether it is still there."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return self._is(descriptor)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let others hold the machine. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Take the machine away; it must be held, and is released."""
        import shutil  # here, since bhyvectl has to answer quickly

        grave = self.path.with_name(f"{_REMOVED}-{os.getpid()}-{self.name}")
        try:
            self.drop_memory()
            os.rename(self.path, grave)
            # with it, what a process that was killed here left of another
            for dead in self.path.parent.glob(f"{_REMOVED}-*"):
                shutil.rmtree(dead, ignore_errors=dead != grave)
        except OSError as error:
            raise VmError(f"cannot remove the virtual machine '{self.name}': {error.strerror}") from None
        finally:
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # -- settings --

    def settings(self) -> Mapping[str, Any]:
        """What ``config`` says; empty where there is none."""
        return self._settings if self._lock >= 0 else self._read_settings()

    def set(self, **values: Any) -> None:
        """Change settings of a machine that is held; None takes one away."""
        merged = {**self._settings, **values}
        self._settings = {name: value for name, value in merged.items() if value is not None}
        self._write(_CONFIG, {"version": _VERSION, **self._settings})

    def _read_settings(self) -> dict[str, Any]:
        found = self._read(_CONFIG)
        if found is None:
            return {}
        found.pop("version")
        return found

    # -- the guest in it --

    @property
    def loaded(self) -> bool:
        """Whether a guest lies here that has not run yet."""
        return (self.path / _REGISTERS).exists()

    @property
    def memory_size(self) -> int:
        """Bytes of memory; 0 if the machine has none yet."""
        size = self.settings().get("memory_size", 0)
        return size if isinstance(size, int) else 0

    def make_memory(self, size: int) -> int:
        """An open file of ``size`` bytes, all zeros and reserved, for a guest that is to be loaded.

        The guest that was here is gone from now on. Raises ``VmError`` where there is no room for it.
        """
        self.forget_guest()
        self.drop_memory()
        path = self.path / _MEMORY
        try:
            if _room(self.path) < size and (elsewhere := _shared_memory(size)) is not None:
                target = elsewhere / f"memory-{os.urandom(8).hex()}"
                path.symlink_to(target)  # first, so that whoever cleans up finds it
                path = target
            elif _room(self.path) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            self.drop_memory()
            if error.errno != errno.ENOSPC:
                raise VmError(f"cannot make the memory of '{self.name}': {error.strerror}") from None
            raise VmError(
                f"{size >> 20} MB of guest memory do not fit into {self.path.parent}, which has "
                f"{_room(self.path) >> 20} MB free (another place: {ENVIRONMENT})"
            ) from None
        self.set(memory_size=size)
        return descriptor

    def drop_memory(self) -> None:
        """Give the memory back."""
        path = self.path / _MEMORY

        def drop() -> None:
            if path.is_symlink():
                path.readlink().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

        self._do(drop)

    def open_memory(self) -> int:
        """The open memory file of a loaded guest. Raises ``VmError`` if it is not what ``config`` says."""
        try:
            descriptor = os.open(self.path / _MEMORY, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise VmError(f"the memory of '{self.name}' cannot be opened: {error.strerror}") from None
        size = os.fstat(descriptor).st_size
        if size != self.memory_size:
            os.close(descriptor)
            raise VmError(f"the memory of '{self.name}' is damaged: it has {size} bytes, not {self.memory_size}")
        return descriptor

    def write_registers(self, plain: Plain, rsdp_pointer: int | None = None) -> None:
        """Leave the boot vCPU's registers. ``rsdp_pointer`` is ``EntryState``'s; None keeps it."""
        if rsdp_pointer is not None:
            self.set(rsdp_pointer=rsdp_pointer)
        self._write(_REGISTERS, {"version": _VERSION, **plain})

    def read_registers(self) -> Plain | None:
        """The registers of a loaded guest, None if there is no such guest. Raises ``VmError`` for a damaged file."""
        found = self._read(_REGISTERS)
        if found is None:
            return None
        found.pop("version")
        from pyhyve.control.state import StateError, checked

        try:
            return checked(found)
        except StateError as error:
            raise VmError(f"the registers of '{self.name}' are damaged: {error}") from None

    def forget_guest(self) -> None:
        """The guest starts to run, or another one is loaded: it cannot be started from here again."""
        self._do(lambda: (self.path / _REGISTERS).unlink(missing_ok=True))

    # -- files --

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with open(self.path / name, encoding="utf-8") as file:
                found = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise VmError(f"cannot read {self.path / name}: {error.strerror}") from None
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            raise VmError(f"the virtual machine '{self.name}' is damaged ({self.path / name}): destroy it")
        return found

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value)
        beside = self.path / f".{name}.new"

        def write() -> None:
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path / name)

        self._do(write)

    def _do(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise VmError(f"cannot change the virtual machine '{self.name}': {error.strerror}") from None
