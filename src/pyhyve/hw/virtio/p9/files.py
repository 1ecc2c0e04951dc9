"""The shared folder, and why nothing in it leads out of it.

The guest never says a path, only one name at a time below something that it already has. Each thing it has is a
``Node``: a descriptor opened with O_PATH and O_NOFOLLOW below the descriptor of its folder. A name with a slash or a
zero, or ``.``, is refused; ``..`` is answered from the tree of nodes here, not by the host; a symbolic link is itself
and is not followed. So there is no path to be swapped between a check and its use: what was walked to is held, and
what is done is done to that descriptor, or to one name in the folder of one.

Only regular files and directories are ever opened for their content, after the descriptor has told what it is: a FIFO
or a device would block this program or do something on the host. The guest makes its own of them by what it sees.

A node that is reached by several walks is one node, so that a rename is seen by all of them.

Linux keeps a fid for every file in its cache, which may be more than this process can have open. A node that nobody
works with is then closed ("parked"), the one least lately used first, and opened again by its name in its folder when
it is needed, if that is the same file still. ``pin`` makes a node one that is open and stays so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator

from pyhyve.errors import DeviceError
from pyhyve.hw.virtio.p9.calls import place
from pyhyve.hw.virtio.p9.wire import QID, QidType

LONGEST_NAME = 255
LONGEST_TARGET = 4095
MOST_DESCRIPTORS = 1 << 14
"""Of the host's, for one share."""

_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPENABLE = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_SYNC | os.O_DIRECTORY
"""Of what a guest may ask of open(2); the numbers of 9P2000.L are x86 Linux's."""
_ALWAYS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def check_name(name: bytes) -> bytes:
    """A name of one thing in a folder. Raises ``OSError`` for what is none."""
    if len(name) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, "a name too long")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name")
    return name


def identity_of(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from any other: where it is, and its type, as numbers are used again for others."""
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


class Node:
    """One file of the share, held by an O_PATH descriptor while it is pinned, and as long as there is room."""

    __slots__ = ("children", "fd", "identity", "name", "parent", "pins", "type", "users")

    def __init__(self, fd: int, status: os.stat_result, parent: Node | None, name: bytes) -> None:
        self.fd = fd
        self.identity = identity_of(status)
        self.type = stat.S_IFMT(status.st_mode)
        self.parent = parent
        self.name = name
        self.children: dict[bytes, Node] = {}
        self.users = 1
        """Fids and children that it is there for."""
        self.pins = 1
        """Requests that work with it."""

    @property
    def is_attached(self) -> bool:
        """Whether it can be found again by its name."""
        return self.parent is not None and self.parent.children.get(self.name) is self


class OpenFile:
    """A file or folder that is open for its content."""

    __slots__ = ("fd", "flags", "position", "users")

    def __init__(self, fd: int, flags: int) -> None:
        self.fd = fd
        self.flags = flags
        self.users = 1
        self.position = threading.Lock()
        """Held by who reads a directory."""


class Share:
    """The folder at ``path``. Raises ``DeviceError`` if it is none."""

    def __init__(self, path: str, *, read_only: bool) -> None:
        self.read_only = read_only
        self.owns = os.geteuid() == 0
        """Whether what the guest makes is given to the user that made it; else it belongs to who runs this."""
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a folder's name"
            raise DeviceError(f"cannot share {path}: {reason}") from None
        try:
            os.stat(place(fd))
        except OSError:
            os.close(fd)
            raise DeviceError(f"cannot share {path}: /proc is not mounted") from None
        self._lock = threading.Lock()
        self._room = _descriptors() - 1
        self._open: OrderedDict[Node, None] = OrderedDict()
        """Nodes that may be parked, the one least lately used first."""
        self._reviving = threading.Lock()
        self._devices: dict[int, int] = {}
        self.root = Node(fd, os.fstat(fd), None, b"")
        self.qid_path(*self.root.identity[:2])

    def close(self) -> None:
        """Let go of the folder. What is still used keeps its descriptor."""
        self.release(self.root)

    # -- descriptors --

    def open_fd(self, name: bytes | str, flags: int, mode: int = 0o600, folder: int | None = None) -> int:
        """open(2), within the share's number of descriptors."""
        with self._lock:
            parked = -1 if self._room else self._park()
            if self._room:
                self._room -= 1
        if parked >= 0:
            os.close(parked)
        try:
            return os.open(name, flags, mode, dir_fd=folder)
        except BaseException:
            with self._lock:
                self._room += 1
            raise

    def _park(self) -> int:
        """Take the descriptor away from a node that nobody works with. Raises ``OSError`` if there is none."""
        for node in self._open:
            if not node.pins:
                del self._open[node]
                fd, node.fd = node.fd, -1
                return fd
        raise OSError(errno.EMFILE, "too many files in use")

    def close_fd(self, fd: int) -> None:
        """Close what ``open_fd`` opened."""
        os.close(fd)
        with self._lock:
            self._room += 1

    # -- nodes --

    def take(self, node: Node) -> Node:
        """One user more."""
        with self._lock:
            node.users += 1
        return node

    def release(self, node: Node) -> None:
        """One user less; the last one closes the descriptor."""
        unused = []
        with self._lock:
            at: Node | None = node
            while at is not None:
                at.users -= 1
                if at.users:
                    break
                if at.fd >= 0:
                    unused.append(at.fd)
                    at.fd = -1  # the number is somebody else's from now on
                self._open.pop(at, None)
                parent = at.parent
                if parent is not None and parent.children.get(at.name) is at:
                    del parent.children[at.name]
                at = parent
        for fd in unused:
            self.close_fd(fd)

    def walk(self, folder: Node, name: bytes) -> Node:
        """What is called ``name`` in ``folder``, which is pinned: one user more, and pinned. Raises ``OSError``."""
        if name == b"..":
            with self._lock:  # a rename may take the last user but this one away
                above = folder.parent or folder
                above.users += 1
            return self._pin_taken(above)
        fd = self.open_fd(check_name(name), _O_PATH, folder=folder.fd)
        return self.adopt(folder, name, fd)

    def adopt(self, folder: Node, name: bytes, fd: int) -> Node:
        """The node for an O_PATH descriptor that was found under ``name``, with one user more, and pinned."""
        status = os.fstat(fd)
        with self._lock:
            known = folder.children.get(name)
            if known is None or known.identity != identity_of(status):
                if known is not None:
                    self._open.pop(known, None)  # it has no name any more, so it keeps its descriptor
                node = folder.children[name] = Node(fd, status, folder, name)
                self._open[node] = None
                folder.users += 1
                return node
            known.users += 1
            known.pins += 1
            self._open[known] = None
            if known.fd < 0:
                known.fd = fd
                return known
            self._open.move_to_end(known)
        self.close_fd(fd)
        return known

    def pin(self, node: Node, file: OpenFile | None = None) -> Node:
        """Open a node that was parked, and keep it open until ``unpin``. Raises ``OSError`` if it is not there now.

        Where ``file`` is its content, it is found by that, whatever its name is now.
        """
        with self._lock:
            node.pins += 1
            if node.fd >= 0:
                if node in self._open:
                    self._open.move_to_end(node)
                return node
        try:
            with self._reviving:
                self._revive(node, file)
        except BaseException:
            self.unpin(node)
            raise
        return node

    def unpin(self, node: Node) -> None:
        """A request is done with a node."""
        with self._lock:
            node.pins -= 1

    def take_pinned(self, node: Node) -> Node:
        """One user more, and pinned; it has one already. Raises ``OSError``."""
        self.pin(node)
        return self.take(node)

    def _pin_taken(self, node: Node) -> Node:
        """Pin a node that has got its user already, who goes again if it cannot be. Raises ``OSError``."""
        try:
            return self.pin(node)
        except BaseException:
            self.release(node)
            raise

    def drop(self, node: Node) -> None:
        """The opposite of ``take_pinned``."""
        self.unpin(node)
        self.release(node)

    def _revive(self, node: Node, file: OpenFile | None) -> None:
        """Open a node and those folders above it that are parked too, each below the one above it."""
        if file is not None:
            fd = self.open_fd(place(file.fd), os.O_PATH | os.O_CLOEXEC)
            if not self._opened(node, fd):
                self.close_fd(fd)
            return
        chain = []
        with self._lock:
            at: Node | None = node
            while at is not None and at.fd < 0:
                at.pins += 1
                chain.append(at)
                at = at.parent
            assert at is not None  # the root is always open
            at.pins += 1
        folder = at
        try:
            for each in reversed(chain):
                fd = self.open_fd(each.name, _O_PATH, folder=folder.fd)
                status = os.fstat(fd)
                if each.identity != identity_of(status) or not self._opened(each, fd):
                    self.close_fd(fd)
                if each.fd < 0:
                    raise OSError(errno.ESTALE, "something else has the name now")
                folder = each
        finally:
            for each in (at, *chain):
                self.unpin(each)

    def _opened(self, node: Node, fd: int) -> bool:
        """Give a descriptor to a node; False if it has got one meanwhile."""
        with self._lock:
            if node.fd >= 0:
                return False
            node.fd = fd
            if node.is_attached:
                self._open[node] = None
            return True

    @contextlib.contextmanager
    def keeping(self, *places: tuple[Node, bytes]) -> Iterator[None]:
        """Around a change of names: what has them now is open, as it may not be found by them later."""
        kept = []
        for folder, name in places:
            with self._lock:
                node = folder.children.get(name)
                if node is not None:
                    node.users += 1
            if node is None:
                continue
            try:
                self.pin(node)
            except OSError:  # it is gone already
                self.release(node)
            else:
                kept.append(node)
        try:
            yield
        finally:
            for node in kept:
                self.drop(node)

    @contextlib.contextmanager
    def place_of(self, node: Node) -> Iterator[tuple[Node, bytes]]:
        """Folder, which is pinned meanwhile, and name of a node that is still there. Raises ``OSError``."""
        with self._lock:
            folder, name = node.parent, node.name
            if folder is None:
                raise OSError(errno.EBUSY, "the shared folder itself")
            folder.users += 1
        self._pin_taken(folder)
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if identity_of(status) != node.identity:
                raise OSError(errno.ESTALE, "something else has the name now")
            yield folder, name
        finally:
            self.drop(folder)

    def renamed(self, folder: Node, name: bytes, new_folder: Node, new_name: bytes) -> None:
        """The file has been renamed: so is its node, if it has one."""
        with self._lock:
            node = folder.children.pop(name, None)
            if new_folder.children.get(new_name) is not node:
                self._detach(new_folder, new_name)
            if node is None:
                return
            old_parent, node.parent, node.name = node.parent, new_folder, new_name
            new_folder.users += 1
            new_folder.children[new_name] = node
        if old_parent is not None:
            self.release(old_parent)

    def removed(self, folder: Node, name: bytes) -> None:
        """The name is gone."""
        with self._lock:
            self._detach(folder, name)

    def _detach(self, folder: Node, name: bytes) -> None:
        """Who had the name cannot be found by it any more, so it keeps its descriptor."""
        node = folder.children.pop(name, None)
        if node is not None:
            self._open.pop(node, None)

    # -- content --

    def open(self, node: Node, flags: int) -> OpenFile:
        """Open a node's content. Raises ``OSError``, also for what is neither file nor folder."""
        if node.type == stat.S_IFLNK:
            raise OSError(errno.ELOOP, "a symbolic link")
        if node.type not in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError(errno.ENXIO, "neither a file nor a folder")
        flags &= _OPENABLE
        return OpenFile(self._open_content(node, flags), flags)

    def _open_content(self, node: Node, flags: int) -> int:
        """A descriptor of a file or folder. A program that is written to no longer runs as somebody else.

        The kernel sees to that for an ordinary user at the first write, not for root.
        """
        fd = self.open_fd(place(node.fd), flags | _ALWAYS)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            mode = os.fstat(fd).st_mode
            if mode & (stat.S_ISUID | stat.S_ISGID):
                with contextlib.suppress(OSError):
                    os.chmod(place(fd), stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
        return fd

    def create(self, folder: Node, name: bytes, flags: int, mode: int) -> tuple[int, bool]:
        """A descriptor of the regular file ``name``, made if it is not there; whether it was. Raises ``OSError``."""
        check_name(name)
        exclusive = flags & os.O_EXCL
        flags &= _OPENABLE & ~os.O_DIRECTORY
        while True:
            # Never without O_EXCL: what is there may be a FIFO, a device or a link.
            with contextlib.suppress(FileExistsError):
                making = flags | _ALWAYS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                return self.open_fd(name, making, mode, folder.fd), True
            if exclusive:
                raise OSError(errno.EEXIST, "it exists")
            with contextlib.suppress(FileNotFoundError):  # gone again: once more
                node = self.walk(folder, name)
                try:
                    if node.type != stat.S_IFREG:
                        raise OSError(errno.EISDIR if node.type == stat.S_IFDIR else errno.EEXIST, "not a file")
                    return self._open_content(node, flags), False
                finally:
                    self.drop(node)

    def take_file(self, file: OpenFile) -> None:
        """One user of an open file more."""
        with self._lock:
            file.users += 1

    def close_file(self, file: OpenFile) -> None:
        """One user less of an open file."""
        with self._lock:
            file.users -= 1
            last = not file.users
        if last:
            self.close_fd(file.fd)

    def give(self, fd: int, mode: int, uid: int, gid: int) -> None:
        """Give what was just made the mode that was asked for, which the umask may have cut; as root its owner too."""
        if self.owns:
            with contextlib.suppress(OSError):  # an owner that this user namespace does not know
                os.chown(place(fd), _owner(uid), _owner(gid))
        now = os.fstat(fd).st_mode
        if not stat.S_ISDIR(now):  # whatever has the name by now
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if stat.S_IMODE(now) != mode:
            os.chmod(place(fd), mode)

    # -- identities --

    def qid(self, status: os.stat_result) -> bytes:
        """What the guest tells files apart by, and sees a change by."""
        kind = stat.S_IFMT(status.st_mode)
        flags = QidType.DIRECTORY if kind == stat.S_IFDIR else QidType.SYMLINK if kind == stat.S_IFLNK else 0
        version = (status.st_mtime_ns ^ status.st_size << 8) & 0xFFFFFFFF or 1  # Linux takes 0 for "do not cache"
        return QID.pack(flags, version, self.qid_path(status.st_dev, status.st_ino))

    def qid_path(self, device: int, inode: int) -> int:
        """One number for a file on any of the file systems below the folder."""
        with self._lock:
            index = self._devices.setdefault(device, len(self._devices))
        return (inode ^ index << 48) & 0xFFFFFFFFFFFFFFFF


def _owner(number: int) -> int:
    return -1 if number == 0xFFFFFFFF else number


def _descriptors() -> int:
    """How many descriptors a share may have. Raises this process's limit: a guest keeps one for each file it knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 1 << 20:
        hard = 1 << 20
    if soft != resource.RLIM_INFINITY and soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = hard
    return min(MOST_DESCRIPTORS, max(64, (soft if soft != resource.RLIM_INFINITY else hard) // 4))
