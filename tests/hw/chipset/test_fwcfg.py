"""The firmware interfaces: QEMU's fw_cfg and bhyve's fwctl, spoken to as firmware does."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.fwcfg import FwCfg
from pyhyve.hw.chipset.fwctl import FwCtl
from pyhyve.memory import GuestMemory

FILES = {"opt/org.example/b": b"bee\0", "opt/org.example/a": bytes(range(200))}
REQUEST = 0x1000
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16


class Qemu:
    def __init__(self, files=FILES):
        self.memory = GuestMemory(1 << 20)
        self.device = FwCfg(self.memory, 3, files)
        self.pio = PioBus()
        self.device.attach(self.pio)

    def select(self, item):
        self.pio.write(0x510, 2, item)

    def take(self, count):
        return bytes(self.pio.read(0x511, 1) for _ in range(count))

    def item(self, number, count):
        self.select(number)
        return self.take(count)

    def directory(self):
        (count,) = struct.unpack(">I", self.item(0x19, 4))
        entries = [struct.unpack(">IHxx56s", self.take(64)) for _ in range(count)]
        return {name.rstrip(b"\0").decode(): (item, size) for size, item, name in entries}

    def request(self, control, length, address, where=REQUEST):
        if self.memory.contains(where, 16):
            self.memory.write(where, struct.pack(">IIQ", control, length, address))
        self.pio.write(0x514, 4, int.from_bytes((where >> 32).to_bytes(4, "big"), "little"))
        self.pio.write(0x518, 4, int.from_bytes((where & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(REQUEST, 4), "big")


@pytest.fixture
def qemu():
    machine = Qemu()
    yield machine
    machine.memory.close()


def test_fw_cfg_says_who_it_is(qemu):
    assert qemu.item(0, 4) == b"QEMU"
    assert qemu.item(1, 4) == bytes((3, 0, 0, 0))
    assert qemu.pio.read(0x510, 2) == 1
    high, low = (qemu.pio.read(port, 4).to_bytes(4, "little") for port in (0x514, 0x518))
    assert high + low == b"QEMU CFG"


def test_it_tells_the_number_of_cpus(qemu):
    assert qemu.item(5, 2) == qemu.item(15, 2) == b"\x03\0"


def test_files_are_listed_by_name_and_read_by_item(qemu):
    files = qemu.directory()
    assert list(files) == sorted(FILES)
    assert {name: qemu.item(item, size) for name, (item, size) in files.items()} == FILES
    assert min(item for item, _ in files.values()) == 0x20


def test_behind_an_items_end_and_where_there_is_none_are_zeros(qemu):
    assert qemu.item(0, 8) == b"QEMU" + bytes(4)
    assert qemu.item(0x1234, 4) == qemu.item(0x8000, 4) == bytes(4)


def test_writing_the_data_port_changes_nothing(qemu):
    qemu.select(0x4000)
    qemu.pio.write(0x511, 1, 0)
    assert qemu.item(0, 4) == b"QEMU"


def test_a_dma_request_copies_an_item(qemu):
    item, size = qemu.directory()["opt/org.example/a"]
    assert qemu.request(item << 16 | SELECT | READ, size + 4, 0x2000) == 0
    assert qemu.memory.read(0x2000, size + 4) == FILES["opt/org.example/a"] + bytes(4)


def test_a_dma_request_skips_and_goes_on(qemu):
    item, _ = qemu.directory()["opt/org.example/a"]
    assert qemu.request(item << 16 | SELECT | SKIP, 10, 0) == 0
    assert qemu.request(READ, 3, 0x2000) == 0
    assert qemu.memory.read(0x2000, 4) == bytes((10, 11, 12, 0))


@pytest.mark.parametrize(
    ("control", "length", "address"), [(WRITE, 4, 0x2000), (READ, 16, 0xFFFF8), (READ, 0xFFFFFFFF, 0), (READ, 1, -1)]
)
def test_a_dma_request_that_cannot_be_says_so(qemu, control, length, address):
    assert qemu.request(SELECT | control, length, address & (1 << 64) - 1) == ERROR


@pytest.mark.parametrize("where", [0xFFFF8, 1 << 40, (1 << 64) - 8])
def test_a_request_outside_memory_is_ignored(qemu, where):
    qemu.memory.write(REQUEST, b"\xaa" * 4)
    assert qemu.request(SELECT | READ, 4, 0x2000, where) == 0xAAAAAAAA


@pytest.mark.parametrize("name", ["", "x" * 56])
def test_a_file_name_must_fit(name):
    memory = GuestMemory(1 << 20)
    with pytest.raises(DeviceError, match="no name for firmware configuration"):
        FwCfg(memory, 1, {name: b""})
    memory.close()


def test_fw_cfg_is_saved_and_restored_in_the_middle_of_an_item(qemu):
    qemu.item(0, 2)
    other = Qemu()
    other.device.restore(qemu.device.save())
    assert other.take(2) == b"MU"
    other.device.reset()
    assert other.take(2) == b"QE"
    other.memory.close()


class Bhyve:
    def __init__(self, cpus=5):
        self.device = FwCtl(cpus)
        self.pio = PioBus()
        self.device.attach(self.pio)

    def identify(self):
        self.pio.write(0x510, 2, 0)
        return bytes(self.pio.read(0x511, 1) for _ in range(4))

    def ask(self, operation, name, transaction=77):
        data = name.ljust(-(-len(name) // 4) * 4, b"\0")
        words = struct.unpack(f"<{len(data) // 4}I", data)
        for word in (12 + len(name), operation, transaction, *words):
            self.pio.write(0x510, 4, word)
        length = self.pio.read(0x511, 4)
        kind, number, error = (self.pio.read(0x511, 4) for _ in range(3))
        assert (kind, number) == (operation, transaction)
        body = b"".join(self.pio.read(0x511, 4).to_bytes(4, "little") for _ in range((length - 16) // 4))
        return error, body


@pytest.fixture
def bhyve():
    return Bhyve()


def test_fwctl_says_who_it_is_once(bhyve):
    assert bhyve.identify() == b"BHYV"
    assert bhyve.pio.read(0x511, 1) == 0xFF
    assert bhyve.identify() == b"BHYV"


def test_fwctl_tells_the_number_of_cpus(bhyve):
    bhyve.identify()
    assert bhyve.ask(3, b"hw.ncpu\0") == (0, struct.pack("<QI", 4, 5))
    assert bhyve.ask(4, b"hw.ncpu\0") == (0, struct.pack("<Q", 4))


@pytest.mark.parametrize(
    ("operation", "name", "error"),
    [
        (3, b"hw.memory\0", errno.ENOENT),
        (9, b"hw.ncpu\0", errno.ENOENT),
        (1, b"", errno.ENOENT),
        (3, b"x" * 200, errno.E2BIG),
    ],
)
def test_fwctl_refuses_by_an_error_number(bhyve, operation, name, error):
    bhyve.identify()
    assert bhyve.ask(operation, name) == (error, b"")
    assert bhyve.ask(4, b"hw.ncpu\0")[0] == 0


def test_fwctl_starts_over_in_the_middle_of_a_request(bhyve):
    bhyve.identify()
    bhyve.pio.write(0x510, 4, 100)
    assert bhyve.identify() == b"BHYV"
    assert bhyve.ask(4, b"hw.ncpu\0")[0] == 0


def test_fwctl_is_saved_and_restored_in_the_middle_of_an_answer(bhyve):
    bhyve.identify()
    for word in (12, 9, 1):
        bhyve.pio.write(0x510, 4, word)
    other = Bhyve()
    other.device.restore(bhyve.device.save())
    assert [other.pio.read(0x511, 4) for _ in range(5)] == [16, 9, 1, errno.ENOENT, 0xFFFFFFFF]


ACCESSES = st.lists(
    st.tuples(st.booleans(), st.integers(0x510, 0x51B), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1)),
    max_size=60,
)


@given(ACCESSES)
def test_whatever_a_guest_does_each_answer_fits(accesses):
    for machine in (Qemu(), Bhyve()):
        for is_write, port, size, value in accesses:
            if is_write:
                machine.pio.write(port, size, value & ((1 << 8 * size) - 1))
            else:
                answer = machine.pio.read(port, size)
                assert answer is None or 0 <= answer < 1 << 8 * size
        machine.device.restore(machine.device.save())
        if isinstance(machine, Qemu):
            machine.memory.close()
