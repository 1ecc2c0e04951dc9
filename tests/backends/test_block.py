"""Disks on the host: what is written is there, whatever goes wrong is the errno of one request or one line."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhyve.backends import block as module
from pyhyve.backends.block import BlockBackend, open_block, parse_sector_size
from pyhyve.backends.pool import WorkerPool
from pyhyve.errors import DeviceError

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def call(method, *args, **options) -> int:
    """Make a request and wait for its result."""
    ended, results = threading.Event(), []

    def done(error: int) -> None:
        results.append(error)
        ended.set()

    method(*args, done, **options)
    assert ended.wait(20)
    assert len(results) == 1
    return results[0]


def read(disk: BlockBackend, offset: int, *lengths: int) -> bytes:
    buffers = [bytearray(length) for length in lengths]
    assert call(disk.readv, offset, [memoryview(b) for b in buffers]) == 0
    return b"".join(buffers)


def write(disk: BlockBackend, offset: int, *parts: bytes) -> int:
    return call(disk.writev, offset, [memoryview(part) for part in parts])


@pytest.fixture(params=["", "nocache", "direct", "nocache,direct"])
def disk(request: pytest.FixtureRequest, image: Path):
    options = {name: "true" for name in request.param.split(",") if name}
    try:
        backend = open_block(str(image), options)
    except DeviceError as error:
        pytest.skip(f"{request.param}: {error}")
    yield backend
    backend.close()


def test_reads_scatter_into_the_buffers_in_order(disk: BlockBackend, image: Path) -> None:
    data = image.read_bytes()
    assert disk.size == SIZE
    assert read(disk, 512, 512, 4096, 1024) == data[512 : 512 + 5632]
    assert read(disk, SIZE - 512, 512) == data[-512:]


def test_aligned_direct_reads_and_writes_keep_what_they_carry(disk: BlockBackend, image: Path) -> None:
    view = memoryview(mmap.mmap(-1, 16384))
    view[:] = os.urandom(16384)
    assert call(disk.writev, 8192, [view[4096:8192], view[:4096]]) == 0
    expected = bytes(view[4096:8192]) + bytes(view[:4096])
    assert image.read_bytes()[8192:16384] == expected
    assert call(disk.readv, 8192, [view[8192:]]) == 0
    assert bytes(view[8192:]) == expected


def test_more_buffers_than_one_call_takes(disk: BlockBackend, image: Path) -> None:
    count = 2 * module.IOV_MAX + 3
    parts = [os.urandom(8) for _ in range(count)]
    padding = -8 * count % 512
    assert write(disk, 512, *parts, bytes(padding)) == 0
    assert read(disk, 512, *[8] * count, padding) == b"".join(parts) + bytes(padding)
    assert image.read_bytes()[512 : 512 + 8 * count] == b"".join(parts)


def test_requests_outside_the_disk_are_refused(disk: BlockBackend, image: Path) -> None:
    before = image.read_bytes()
    assert call(disk.readv, SIZE - 512, [memoryview(bytearray(1024))]) == errno.EINVAL
    assert write(disk, SIZE - 512, bytes(1024)) == errno.EINVAL
    assert write(disk, -512, bytes(512)) == errno.EINVAL
    assert call(disk.write_zeroes, SIZE, 512) == errno.EINVAL
    assert call(disk.discard, SIZE, 512) == errno.EINVAL
    assert image.read_bytes() == before


def test_a_cached_read_is_the_data_or_nothing(disk: BlockBackend, image: Path) -> None:
    data = image.read_bytes()  # and with that in the cache, where the file system keeps one
    first, second = bytearray(512), bytearray(1024)
    if disk.read_cached(512, [memoryview(first), memoryview(second)]):
        assert first + second == data[512:2048]
    assert not disk.read_cached(SIZE - 512, [memoryview(second)])
    os.truncate(image, 4096)
    assert not disk.read_cached(8192, [memoryview(first)])


@pytest.mark.parametrize("reason", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO])
def test_what_is_not_cached_is_read_the_other_way(image: Path, reason: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def refuse(fd: int, buffers: list, offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(reason, os.strerror(reason))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    disk = open_block(str(image), {})
    assert not disk.read_cached(0, [memoryview(bytearray(512))])
    assert read(disk, 0, 512) == image.read_bytes()[:512]
    disk.close()


def test_flush_is_fdatasync(disk: BlockBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert call(disk.flush) == 0
    assert len(synced) == 1


def test_a_flush_that_fails_is_an_errno(disk: BlockBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "bad")

    monkeypatch.setattr(os, "fdatasync", fail)
    assert call(disk.flush) == errno.EIO


def test_discard_gives_space_back_and_nodelete_keeps_it(image: Path) -> None:
    disk = open_block(str(image), {})
    if not disk.can_discard:
        pytest.skip("the file system of the test directory has no holes")
    before = image.stat().st_blocks
    assert call(disk.discard, 65536, 524288) == 0
    disk.close()
    assert image.stat().st_blocks <= before - 1024
    assert image.stat().st_size == SIZE
    assert image.read_bytes()[65536 : 65536 + 524288] == bytes(524288)
    kept = open_block(str(image), {"nodelete": "true"})
    assert not kept.can_discard
    assert call(kept.discard, 0, 4096) == errno.EOPNOTSUPP
    kept.close()


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("can_fallocate", [True, False])
def test_write_zeroes_makes_zeroes(
    image: Path, unmap: bool, can_fallocate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = open_block(str(image), {})
    if not can_fallocate:
        monkeypatch.setattr(disk, "_fallocate", lambda mode, offset, length: errno.EOPNOTSUPP)
    data = image.read_bytes()
    assert call(disk.write_zeroes, 1024, 700 * 512, unmap=unmap) == 0
    disk.close()
    end = 1024 + 700 * 512
    assert image.read_bytes() == data[:1024] + bytes(end - 1024) + data[end:]


def test_a_read_only_disk_refuses_every_change(image: Path) -> None:
    before = image.read_bytes()
    disk = open_block(str(image), {"ro": "true"})
    assert disk.read_only
    assert read(disk, 0, 512) == before[:512]
    assert write(disk, 0, bytes(512)) == errno.EROFS
    assert call(disk.write_zeroes, 0, 512) == errno.EROFS
    assert call(disk.discard, 0, 512) in (errno.EROFS, errno.EOPNOTSUPP)
    assert call(disk.flush) == 0
    disk.close()
    assert image.read_bytes() == before


def test_an_image_that_cannot_be_written_is_a_read_only_disk(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def forbid(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *rest)

    monkeypatch.setattr(module.os, "open", forbid)
    disk = open_block(str(image), {})
    assert disk.read_only
    disk.close()


def test_an_image_that_was_cut_answers_with_errors_and_stays_cut(disk: BlockBackend, image: Path) -> None:
    os.truncate(image, 4096)
    assert read(disk, 0, 4096) == image.read_bytes()
    assert call(disk.readv, 8192, [memoryview(bytearray(512))]) == errno.EIO
    assert call(disk.readv, 3584, [memoryview(bytearray(1024))]) == errno.EIO
    assert write(disk, 8192, bytes(512)) == errno.EIO
    assert call(disk.write_zeroes, 8192, 512) == errno.EIO
    assert image.stat().st_size == 4096


def test_an_image_that_vanished_works_on(disk: BlockBackend, image: Path) -> None:
    image.unlink()
    assert write(disk, 0, b"a" * 512) == 0
    assert read(disk, 0, 512) == b"a" * 512
    assert call(disk.flush) == 0


def test_a_full_host_disk_is_enospc_and_reading_works_on(disk: BlockBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    assert write(disk, 0, bytes(512)) == errno.ENOSPC
    assert len(read(disk, 0, 512)) == 512


def test_short_transfers_are_continued(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """preadv and pwritev may move less than asked."""
    for name in ("preadv", "pwritev"):
        real = getattr(os, name)

        def short(fd, buffers, offset, real=real):
            return real(fd, [buffers[0][:700]], offset)

        monkeypatch.setattr(os, name, short)
    disk = open_block(str(image), {})
    data = os.urandom(4096)
    assert write(disk, 1024, data[:512], data[512:3584], data[3584:]) == 0
    assert read(disk, 1024, 1536, 2560) == data
    disk.close()


def test_requests_run_side_by_side(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4)
    real = os.preadv

    def meet(*args):
        together.wait(20)
        return real(*args)

    monkeypatch.setattr(os, "preadv", meet)
    disk = open_block(str(image), {})
    results: list[int] = []
    for index in range(4):
        disk.readv(512 * index, [memoryview(bytearray(512))], results.append)
    disk.drain()
    disk.close()
    assert results == [0] * 4


def test_done_is_never_called_in_the_callers_thread(image: Path) -> None:
    disk = open_block(str(image), {})
    threads: list[str] = []
    for method in (disk.readv, disk.writev):
        method(0, [memoryview(bytearray(512))], lambda error: threads.append(threading.current_thread().name))
    disk.close()
    assert threads == ["block"] * 2


def test_close_finishes_what_was_asked_for(image: Path) -> None:
    disk = open_block(str(image), {})
    results: list[int] = []
    for index in range(100):
        disk.writev(512 * index, [memoryview(bytes([index]) * 512)], results.append)
    disk.close()
    disk.close()
    assert results == [0] * 100
    assert image.read_bytes()[: 100 * 512] == b"".join(bytes([index]) * 512 for index in range(100))


# -- opening --


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "No such file"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(bytes(1000)), "no multiple of its 512-byte sectors"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: os.mkfifo(p), "neither an image file nor a block device"),
    ],
)
def test_what_cannot_be_a_disk_is_one_line(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(DeviceError, match=message) as caught:
        open_block(str(path), {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_writers_of_one_image_are_refused_and_readers_share(image: Path) -> None:
    path = str(image)
    first = open_block(path, {})
    for options in ({}, {"ro": "true"}):
        with pytest.raises(DeviceError, match="another machine"):
            open_block(path, options)
    first.close()
    readers = [open_block(path, {"ro": "true"}) for _ in range(2)]
    with pytest.raises(DeviceError, match="another machine"):
        open_block(path, {})
    for reader in readers:
        reader.close()
    open_block(path, {}).close()


@pytest.mark.parametrize(
    ("text", "sizes"), [("512", (512, 512)), ("4096", (4096, 4096)), ("512/4096", (512, 4096)), ("512/512", (512, 512))]
)
def test_sector_sizes(text: str, sizes: tuple[int, int], image: Path) -> None:
    disk = open_block(str(image), {"sectorsize": text})
    assert tuple(disk.sector) == sizes
    disk.close()


@pytest.mark.parametrize("text", ["", "0", "256", "513", "4096/512", "512/", "/512", "a", "512/513", "-512", "1048576"])
def test_wrong_sector_sizes_are_one_line(text: str) -> None:
    with pytest.raises(DeviceError, match="powers of two"):
        parse_sector_size(text)


def test_a_switch_is_on_or_off(image: Path) -> None:
    with pytest.raises(DeviceError, match="ro=maybe"):
        open_block(str(image), {"ro": "maybe"})
    disk = open_block(str(image), {"ro": "off"})
    assert not disk.read_only
    disk.close()


def test_no_descriptor_is_lost_when_opening_fails(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(DeviceError):
            open_block(str(path), {})
    assert len(os.listdir("/proc/self/fd")) == before


# -- the pool --


def test_a_pool_that_is_closed_cancels(image: Path) -> None:
    pool = WorkerPool("test", 2)
    pool.close()
    results: list[int] = []
    pool.submit(lambda: 0, results.append)
    assert results == [errno.ECANCELED]


def test_a_pool_starts_no_more_threads_than_its_size() -> None:
    pool = WorkerPool("sized", 3)
    seen: set[int] = set()
    results: list[int] = []

    def job() -> int:
        seen.add(threading.get_ident())
        return 0

    for _ in range(200):
        pool.submit(job, results.append)
    pool.drain()
    assert len(results) == 200
    assert 1 <= len(seen) <= 3
    pool.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sized"]


# -- against a model --

SECTORS = 64
RANGES = st.tuples(st.integers(0, SECTORS), st.integers(0, 8)).map(lambda r: (r[0], min(r[1], SECTORS - r[0])))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "zero", "unmap", "discard"]), RANGES, st.binary(min_size=1, max_size=9)
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4), nocache=st.booleans())
def test_a_disk_behaves_as_an_array_of_bytes(tmp_path: Path, steps, sizes: list[int], nocache: bool) -> None:
    path = tmp_path / "model.img"
    model = bytearray(os.urandom(SECTORS * 512))
    path.write_bytes(model)
    try:
        disk = open_block(str(path), {"nocache": str(nocache)})
    except DeviceError:
        disk = open_block(str(path), {})

    def split(data: bytearray) -> list[memoryview]:
        view, parts, at, turn = memoryview(data), [], 0, 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            parts.append(view[at : at + size])
            at, turn = at + size, turn + 1
        return parts

    for kind, (first, count), seed in steps:
        start, end = 512 * first, 512 * (first + count)
        if kind == "read":
            buffer = bytearray(end - start)
            assert call(disk.readv, start, split(buffer)) == 0
            assert buffer == model[start:end]
        elif kind == "write":
            data = bytearray((seed * (end - start))[: end - start])
            assert call(disk.writev, start, split(data)) == 0
            model[start:end] = data
        elif kind == "discard":
            if disk.can_discard:
                assert call(disk.discard, start, end - start) == 0
                model[start:end] = bytes(end - start)  # a hole reads as zeroes
        else:
            assert call(disk.write_zeroes, start, end - start, unmap=kind == "unmap") == 0
            model[start:end] = bytes(end - start)
    disk.close()
    assert path.read_bytes() == model
