"""Messages that are none, rings with the wrong buffers, too much of everything; and what goes on at the same time."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import random
import struct
import threading
from pathlib import Path

import pytest

from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from pyhyve.hw.virtio.p9 import fids, files
from tests.hw.virtio.driver import Driver, Rig
from tests.hw.virtio.p9 import client as p9
from tests.hw.virtio.p9.client import ROOT, Client, pack, unpack
from tests.hw.virtio.p9.test_requests import refused

ERROR_EINVAL = (11, p9.LERROR, errno.EINVAL)


def reply(data: bytes) -> tuple[int, int, int]:
    size, kind, _, number = struct.unpack("<IBHI", data[:11])
    return size, kind, number


def test_a_message_is_as_long_as_it_says(client: Client) -> None:
    body = pack("dq", ROOT, 0x7FF)
    for size in (0, 6, 18, 20, 4096, 1 << 20, 0xFFFFFFFF):
        assert reply(client.raw(struct.pack("<IBH", size, p9.GETATTR, 7) + body)) == ERROR_EINVAL
    assert client.raw(b"\x07\0\0") == b""  # not even a tag
    assert client.raw(b"") == b""


@pytest.mark.parametrize("kind", sorted(value for value in vars(p9).values() if isinstance(value, int) and value < 123))
def test_no_request_goes_on_behind_its_end(client: Client, kind: int) -> None:
    for body in (b"", b"\1", b"\1\0\0\0\xff\xff", bytes(300)):
        size, answered, _ = reply(client.raw(client.message(kind, body)) + bytes(11))
        assert answered in (p9.LERROR, kind + 1)
        assert size <= 200
    client.start()
    assert client.read(client.open("hello")) == b"hello, guest\n"


def test_unknown_requests_are_refused(client: Client) -> None:
    for kind in (0, 6, 7, 13, 77, 99, 112, 124, 255):
        refused(errno.EOPNOTSUPP, client.call, kind, b"")


def test_a_string_ends_inside_its_message(client: Client) -> None:
    body = struct.pack("<IIHH", ROOT, 9, 1, 500) + b"hello"
    assert reply(client.raw(client.message(p9.WALK, body))) == ERROR_EINVAL
    body = struct.pack("<IIH", ROOT, 9, 17) + pack("s", "x") * 17
    assert reply(client.raw(client.message(p9.WALK, body))) == ERROR_EINVAL


def test_room_for_the_answer_may_be_short_or_missing(client: Client) -> None:
    fid = client.open("hello")
    message = client.message(p9.GETATTR, pack("dq", ROOT, 0x7FF))
    assert client.raw(message, room=0) == b""
    assert client.raw(message, room=10) == b""
    assert reply(client.raw(message, room=100)) == (11, p9.LERROR, errno.EMSGSIZE)
    assert client.raw(client.message(p9.READ, pack("dqd", fid, 0, 100)), room=14)[11:] == b"hel"
    assert client.raw(client.message(p9.READ, pack("dqd", fid, 0, 100)), room=11)[7:] == bytes(4)


def test_reads_and_writes_stay_in_bounds(client: Client, folder: Path) -> None:
    fid = client.open("hello", flags=os.O_RDWR)
    assert len(client.read(fid, 0, 0xFFFFFFFF)) == 13
    assert client.read(fid, 1 << 40) == b""
    refused(errno.EFBIG, client.read, fid, 1 << 63)
    refused(errno.EFBIG, client.read, fid, 2**64 - 1)
    refused(errno.EFBIG, client.write, fid, b"x", 2**64 - 1)
    refused(errno.EINVAL, client.call, p9.WRITE, pack("dqd", fid, 0, 100) + b"short")
    refused(errno.EINVAL, client.call, p9.WRITE, pack("dqd", fid, 0, 0xFFFFFFFF) + b"short")
    assert client.write(fid, b"") == 0
    refused(errno.EINVAL, client.call, p9.READDIR, pack("dqd", client.open(), 2**64 - 1, 100))
    assert (folder / "hello").read_bytes() == b"hello, guest\n"


def test_a_size_that_left_out_the_data_is_understood(client: Client, folder: Path) -> None:
    fid = client.open("hello", flags=os.O_RDWR)
    body = pack("dqd", fid, 0, 5) + b"HELLO"
    assert client.raw(struct.pack("<IBH", 23, p9.WRITE, 1) + body)[4] == p9.WRITE + 1
    assert (folder / "hello").read_bytes() == b"HELLO, guest\n"


def test_there_is_an_end_to_fids(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fids, "MOST_FIDS", 20)
    for number in range(19):
        client.walk("hello", new=100 + number)
    refused(errno.EMFILE, client.walk, "hello")
    client.clunk(100)
    client.walk("hello")


def test_there_is_an_end_to_descriptors(connect, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_DESCRIPTORS", 10)
    before = len(os.listdir("/proc/self/fd"))
    client = connect()
    opened = [client.open("hello") for _ in range(8)]  # one for the file itself, one for each that is open
    refused(errno.EMFILE, client.open, "hello")
    refused(errno.EMFILE, client.create, "new")
    for fid in opened:
        client.clunk(fid)
    refused(errno.EMFILE, lambda: [client.open("hello") for _ in range(9)])
    client.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_more_files_are_in_use_than_descriptors(connect, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_DESCRIPTORS", 16)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(8):
        (folder / f"d{number}" / "deep").mkdir(parents=True)
        for name in range(20):
            (folder / f"d{number}" / "deep" / f"f{name}").write_bytes(bytes(20 * number + name))
    client = connect()
    fids = {20 * d + f: client.walk(f"d{d}", "deep", f"f{f}") for d in range(8) for f in range(20)}
    assert len(os.listdir("/proc/self/fd")) <= before + 16 + 10  # and what a device has besides
    assert [client.getattr(fid)["size"] for fid in fids.values()] == list(fids)
    # a rename of the guest's is known to those that are parked below it
    client.call(p9.RENAMEAT, pack("dsds", ROOT, "d3", ROOT, "moved"))
    client.call(p9.RENAMEAT, pack("dsds", client.walk("d5", "deep"), "f7", ROOT, "f107"))
    assert [client.getattr(fid)["size"] for fid in fids.values()] == list(fids)
    # what has lost its name is as good as ever, if the guest took it
    client.call(p9.UNLINKAT, pack("dsd", client.walk("d1", "deep"), "f1", 0))
    client.call(p9.RENAMEAT, pack("dsds", ROOT, "f107", client.walk("d1", "deep"), "f2"))
    assert [client.getattr(fid)["size"] for fid in fids.values()] == list(fids)
    # the host's own changes are seen where the file is not open, and do not matter where it is
    opened = client.open("d0", "deep", "f9")
    assert len(client.read(opened)) == 9
    for name in (8, 9):
        (folder / "new").write_bytes(b"another")
        (folder / "new").rename(folder / "d0" / "deep" / f"f{name}")
    for fid in fids.values():
        if fid not in (fids[8], fids[9]):
            client.getattr(fid)
    refused(errno.ESTALE, client.getattr, fids[8])
    assert (len(client.read(opened)), client.getattr(opened)["size"]) == (9, 9)
    assert client.getattr(client.walk("d0", "deep", "f8"))["size"] == 7
    for fid in fids.values():
        client.clunk(fid)
    client.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_there_is_an_end_to_attributes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fids, "MOST_ATTRIBUTE_BYTES", 100)
    first = client.walk("hello")
    client.call(p9.XATTRCREATE, pack("dsqd", first, "user.x", 60, 0))
    second = client.walk("hello")
    refused(errno.EBADF, client.call, p9.XATTRCREATE, pack("dsqd", second, "user.x", 60, 0))
    refused(errno.EINVAL, client.clunk, first)
    client.call(p9.XATTRCREATE, pack("dsqd", second, "user.x", 60, 0))


def test_a_reset_lets_go_of_everything(client: Client) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(5):
        client.open("hello")
        client.open("sub", "file")
    assert held() > before
    client.driver.status(0)
    assert held() == before
    client.rig.memory.write(0x100000, bytes(0x20000))
    client.driver = Driver(client.rig, client.driver.kind, 1)
    client.ring = client.driver.queues[0]
    refused(errno.EPROTO, client.getattr, ROOT)
    client.start()
    assert client.read(client.open("hello"))


class Gate:
    """Holds up whatever reads attributes, in the device's thread."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self.open = threading.Event(), threading.Event()
        original = client.device.server.answer

        def answer(request, data, room):  # type: ignore[no-untyped-def]
            if request.kind == p9.GETATTR:
                self.arrived.set()
                assert self.open.wait(20)
            return original(request, data, room)

        monkeypatch.setattr(client.device.server, "answer", answer)


def test_a_flush_is_answered_behind_what_it_flushes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(client, monkeypatch)
    slow, _ = client.submit(struct.pack("<IBH", 19, p9.GETATTR, 500) + pack("dq", ROOT, 0x7FF))
    flush, where = client.submit(struct.pack("<IBHH", 9, p9.FLUSH, 501, 500))
    client.ring.kick()
    client.rig.loop.serve_until(gate.arrived.is_set)
    # others go on meanwhile, and a flush of what nobody does is answered at once
    assert client.read(client.open("hello")) == b"hello, guest\n"
    assert client.raw(struct.pack("<IBHH", 9, p9.FLUSH, 502, 77)) == struct.pack("<IBH", 7, p9.FLUSH + 1, 502)
    gate.open.set()
    order: list[int] = []

    def both() -> bool:
        order.extend(used.ident for used in client.ring.take())
        return len(order) == 2

    client.rig.loop.serve_until(both)
    assert order == [slow, flush]
    assert client.rig.memory.read(where, 7) == struct.pack("<IBH", 7, p9.FLUSH + 1, 501)


def test_a_reset_waits_for_what_reaches_into_memory(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(client, monkeypatch)
    client.submit(client.message(p9.GETATTR, pack("dq", ROOT, 0x7FF)))
    client.submit(struct.pack("<IBHH", 9, p9.FLUSH, 501, client.tag))
    client.ring.kick()
    client.rig.loop.serve_until(gate.arrived.is_set)
    resetting = threading.Thread(target=client.driver.status, args=(0,))
    resetting.start()
    gate.open.set()
    resetting.join(20)
    assert not resetting.is_alive()
    assert client.device._running == {}
    assert client.device.server.session is None


def test_a_fid_may_go_under_a_request_that_uses_it(client: Client) -> None:
    fids = [client.open("hello") for _ in range(10)]
    for fid in fids:
        client.submit(client.message(p9.READ, pack("dqd", fid, 0, 5)))
        client.submit(client.message(p9.CLUNK, pack("d", fid)))
        client.submit(client.message(p9.READ, pack("dqd", fid, 0, 5)))
    client.ring.kick()
    used: list = []
    client.rig.loop.serve_until(lambda: used.extend(client.ring.take()) or len(used) == 30)


def test_random_messages_are_answered(client: Client, folder: Path) -> None:
    pick = random.Random(9)
    kinds = [value for value in vars(p9).values() if isinstance(value, int) and 7 < value < 123]
    for _ in range(1500):
        kind = pick.choice(kinds)
        body = b"".join(
            pick.choice((
                pack("d", pick.choice((0, 1, 2, 3, pick.getrandbits(32)))),
                pack("q", pick.choice((0, 1, pick.getrandbits(64)))),
                pack("s", pick.choice((b"hello", b"sub", b"..", b"new", pick.randbytes(5)))),
                pack("h", pick.choice((0, 1, 2, 0xFFFF))),
            ))
            for _ in range(pick.randrange(8))
        )  # fmt: skip
        answer = client.raw(client.message(kind, body), parts=pick.randrange(1, 4))
        assert struct.unpack_from("<I", answer)[0] == len(answer)
    assert sorted(os.listdir(folder.parent)) == ["secret", "share"]
    client.start()


def moved(first: Client, second: Client, state: dict) -> Client:
    """The guest of the first machine goes on in the second."""
    second.rig.memory.write(0, first.rig.memory.read(0, first.rig.memory.ram_size))
    second.device.restore(state)
    second.driver, second.ring = first.driver, first.ring
    for part in (second.driver, second.ring):
        part.rig = second.rig
    second.rig.put(4, 2, 7)
    return second


def test_its_state_is_saved_and_restored(connect, folder: Path) -> None:
    first = connect()
    opened, listed, named = first.open("sub", "file", flags=os.O_RDWR), first.open("sub"), first.walk("hello")
    gone = first.open("hello")
    first.create("new")
    state = first.device.save()
    (folder / "new").unlink()
    second = moved(first, connect(attach=False), state)
    assert second.read(opened) == b"in the folder below\n"
    assert second.write(opened, b"IN") == 2
    assert b"deep" in second.names(listed)
    assert second.getattr(named)["size"] == 13
    assert second.read(gone) == b"hello, guest\n"


def host_locks(file: io.BufferedRandom) -> bool:
    """Whether a program of the host gets a lock on a whole file; it keeps it."""
    try:
        fcntl.fcntl(file, 37, struct.pack("<hhxxxxqqixxxx", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
    except BlockingIOError:
        return False
    return True


def test_locks_and_attributes_on_their_way_are_saved(connect, folder: Path) -> None:
    first = connect()
    fid, value = first.open("hello", flags=os.O_RDWR), first.walk("sub")
    assert first.call(p9.LOCK, pack("dbdqqds", fid, 1, 0, 10, 10, 1, "guest")) == b"\0"
    first.call(p9.XATTRCREATE, pack("dsqd", value, "user.x", 4, 0))
    first.write(value, b"ab")
    state = first.device.save()
    first.device.server.reset()
    second = moved(first, connect(attach=False), state)
    with (folder / "hello").open("r+b") as host:
        assert not host_locks(host)
        assert second.call(p9.LOCK, pack("dbdqqds", fid, 2, 0, 10, 10, 1, "guest")) == b"\0"
        assert host_locks(host)
    second.write(value, b"cd", 2)
    second.clunk(value)
    assert os.getxattr(folder / "sub", "user.x") == b"abcd"


def test_a_lock_that_somebody_else_has_taken_is_not_restored(connect, folder: Path) -> None:
    first = connect()
    fid = first.open("hello", flags=os.O_RDWR)
    first.call(p9.LOCK, pack("dbdqqds", fid, 1, 0, 0, 0, 1, "guest"))
    state = first.device.save()
    first.device.server.reset()
    with (folder / "hello").open("r+b") as host:
        assert host_locks(host)
        with pytest.raises(DeviceError, match="locked by somebody else"):
            moved(first, connect(attach=False), state)


def test_the_tag_is_in_the_configuration(connect) -> None:
    client = connect(attach=False)
    assert client.driver.config(0, 2) == 5
    assert bytes(client.driver.config(2 + i, 1) for i in range(5)) == b"share"
    assert client.rig.get(2, 2) == 0x1009


@pytest.mark.parametrize(
    ("conf", "options"),
    [
        ("share=/srv", {"sharename": "share", "path": "/srv"}),
        ("share=/srv,ro", {"sharename": "share", "path": "/srv", "ro": "true"}),
        ("share=/srv,ro=false", {"sharename": "share", "path": "/srv", "ro": "false"}),
        ("s=/a=b", {"sharename": "s", "path": "/a=b"}),
    ],
)
def test_the_command_line_names_a_folder(conf: str, options: dict[str, str]) -> None:
    assert registry.find("virtio-9p").parse_options(conf) == options


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "virtio-9p needs a folder"),
        ({"sharename": "share", "path": "/no/such/folder"}, "cannot share /no/such/folder: No such file or directory"),
        ({"sharename": "share", "path": "/etc/passwd"}, "cannot share /etc/passwd: Not a directory"),
        ({"sharename": "share", "path": "a\0b"}, "not a folder's name"),
        ({"sharename": "x" * 256, "path": "/"}, "a name of 256 bytes: it has up to 255"),
        ({"sharename": "share", "path": "/", "rw": "true"}, "virtio-9p: unknown option 'rw'"),
        ({"sharename": "share", "path": "/", "ro": "perhaps"}, "ro=perhaps: it is on or off"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, str], line: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match=line) as caught:
        registry.find("virtio-9p")(Rig("virtio-rnd").environment, options)
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) <= before + 10


def test_two_folders_of_one_device_are_refused() -> None:
    with pytest.raises(DeviceError, match="more than one folder"):
        registry.find("virtio-9p").parse_options("a=/x,b=/y")


def test_one_number_stands_for_a_file_on_each_file_system(folder: Path) -> None:
    share = files.Share(str(folder), read_only=False)
    numbers = {share.qid_path(device, 7) for device in range(5)}
    assert len(numbers) == 5
    assert share.qid_path(folder.stat().st_dev, 7) == 7
    share.close()


def test_locks_hold_against_programs_of_the_host(client: Client, folder: Path) -> None:
    fid = client.open("hello", flags=os.O_RDWR)

    def lock(kind: int, start: int = 0, length: int = 0, process: int = 1) -> int:
        return unpack("b", client.call(p9.LOCK, pack("dbdqqds", fid, kind, 0, start, length, process, "guest")))[0]

    def get(kind: int, start: int, length: int, process: int = 2) -> list:
        return unpack("bqqds", client.call(p9.GETLOCK, pack("dbqqds", fid, kind, start, length, process, "guest")))

    with (folder / "hello").open("r+b") as host:
        # not by fcntl.lockf: this process is the machine too, and loses such locks with any descriptor of the file
        def host_lock(kind: int, start: int = 0, length: int = 0) -> None:
            fcntl.fcntl(host, 37, struct.pack("<hhxxxxqqixxxx", kind, 0, start, length, 0))  # F_OFD_SETLK

        def host_gets(kind: int, start: int, length: int) -> bool:
            try:
                host_lock(kind, start, length)
            except BlockingIOError:
                return False
            host_lock(fcntl.F_UNLCK, start, length)
            return True

        assert lock(1, 10, 10) == 0
        assert [host_gets(fcntl.F_WRLCK, start, 1) for start in (9, 10, 19, 20)] == [True, False, False, True]
        assert get(1, 0, 0) == [1, 10, 10, 1, b"guest"]
        assert lock(0, 15, 1, process=2) == 1  # blocked by another of the guest's
        assert lock(2, 12, 2) == 0
        assert [host_gets(fcntl.F_WRLCK, start, 1) for start in (11, 12, 13, 14)] == [False, True, True, False]
        assert lock(2) == 0
        assert host_gets(fcntl.F_WRLCK, 0, 0)
        # two of the guest's share a range: it is free when both have given it back
        assert (lock(0, 0, 8, process=1), lock(0, 4, 8, process=2)) == (0, 0)
        assert lock(2, process=1) == 0
        assert [host_gets(fcntl.F_WRLCK, start, 1) for start in (3, 4, 11, 12)] == [True, False, False, True]
        assert host_gets(fcntl.F_RDLCK, 0, 0)
        assert lock(2, process=2) == 0
        host_lock(fcntl.F_WRLCK, 5, 5)
        assert lock(1) == 1
        assert get(0, 7, 1)[:3] == [1, 5, 5]
        assert lock(1, 0, 5) == 0
        client.driver.status(0)
        host_lock(fcntl.F_WRLCK)  # the guest is gone, so are its locks


def test_locks_that_cannot_be_are_refused(client: Client) -> None:
    fid = client.open("hello", flags=os.O_RDWR)
    for kind, start, length in ((3, 0, 0), (0, 1 << 63, 0), (0, 5, 1 << 63), (1, 2**64 - 1, 2**64 - 1)):
        refused(errno.EINVAL, client.call, p9.LOCK, pack("dbdqqds", fid, kind, 0, start, length, 1, "guest"))
    refused(errno.EBADF, client.call, p9.LOCK, pack("dbdqqds", ROOT, 0, 0, 0, 0, 1, "guest"))
