"""The trace of a machine: what real guests leave in it, where it goes, and how it ends."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pyhyve import Machine, Status
from pyhyve.debug import trace as room
from pyhyve.debug.summary import report, summarize
from pyhyve.debug.trace import FIELDS, FILTERS, NAMES, Trace, Way, kind_of
from pyhyve.errors import ConfigError
from pyhyve.loop import EventLoop
from pyhyve.vcpu import EXIT_CODES
from pyhyve.vmm import exits
from tests import kernels
from tests.conftest import find_backend
from tests.test_machine import config_for

DOCUMENT = Path(__file__).parents[2] / "docs" / "inspection.md"
Record = dict[str, Any]

# Ports of a device and of nobody, memory of a chip, and an edge on the serial port's line.
GUEST = """
    mov $0x510, %dx
    mov $0x1234, %ax
    out %ax, %dx
    in %dx, %al
    mov $0x1234, %dx
    in %dx, %ax
    mov $0xFED00010, %ebx
    mov (%ebx), %eax
    out8 0x3f9, 2
    out8 0x3fc, 8
    power_off
"""


class Register:
    def read(self, offset: int, size: int) -> int:
        return 0x5A

    def write(self, offset: int, size: int, value: int) -> None:
        pass


@pytest.fixture
def loop():
    made = EventLoop()
    yield made
    made.close()


def traced(backend: str, path: object, kernel: str = GUEST, **more: object) -> int:
    variables = {"trace": path, "lpc.com1.path": "tcp=127.0.0.1:0", **more}
    with Machine(config_for(kernel, backend, **variables)) as machine:
        machine.pio.register(0x510, 4, Register(), 'a "quoted" name')
        machine.start()
        return machine.wait()


def records_of(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def documented() -> dict[str, set[str]]:
    """The fields of each kind of record, as the document has them."""
    table = DOCUMENT.read_text().split("<!-- records -->")[1]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    # what stands in parentheses are values
    return {row[0].strip(" `"): set(re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", row[2]))) for row in rows}


def test_the_document_lists_every_record_and_its_fields() -> None:
    assert documented() == {kind: set(names) for kind, names in FIELDS.items()}
    assert set(NAMES) == {kind for group in FILTERS.values() for kind in group}
    assert set(EXIT_CODES) <= set(NAMES)


def test_exits_accesses_and_interrupts_of_a_guest_are_recorded(backend: str, tmp_path: Path) -> None:
    assert traced(backend, tmp_path / "t") == Status.POWER_OFF
    records = records_of(tmp_path / "t")
    assert records[0].items() >= {"trace": 1, "name": "test", "backend": backend, "vcpus": 1, "t": 0}.items()
    for record in records:
        assert set(record) == set(FIELDS[kind_of(record)]), record
        assert record["t"] >= 0
    ports = {(r["port"], r["dir"]): r for r in records if r.get("exit") == "inout"}
    assert ports[0x510, "out"].items() >= {"vcpu": 0, "size": 2, "value": 0x1234, "device": 'a "quoted" name'}.items()
    assert ports[0x510, "in"].items() >= {"size": 1, "value": 0x5A, "device": 'a "quoted" name'}.items()
    assert ports[0x1234, "in"].items() >= {"size": 2, "value": 0xFFFF, "device": None}.items()
    assert ports[0x404, "out"]["device"] == "pm1 control"
    (memory,) = (r for r in records if r.get("exit") == "inst-emul")
    assert memory.items() >= {"gpa": 0xFED00010, "dir": "read", "size": 4, "value": 0, "device": "hpet"}.items()
    assert {"irq": 4, "level": True, "devices": ["com1"]}.items() <= next(r for r in records if "irq" in r).items()


def test_msrs_that_the_machine_answers_are_recorded(backend: str, tmp_path: Path) -> None:
    kernel = "mov $0x12345, %ecx\n rdmsr\n inc %eax\n wrmsr\n power_off\n"
    with Machine(config_for(kernel, backend, trace=tmp_path / "t", trace_filter="msr")) as machine:
        machine.msr.register(0x12345, lambda: (3 << 32) + 4, lambda value: None, "test")
        machine.start()
        machine.wait()
    read, write = records_of(tmp_path / "t")[1:]
    assert read.items() >= {"exit": "rdmsr", "msr": 0x12345, "value": (3 << 32) + 4}.items()
    assert write.items() >= {"exit": "wrmsr", "msr": 0x12345, "value": (3 << 32) + 5}.items()


def test_a_filter_chooses_the_kinds(backend: str, tmp_path: Path) -> None:
    traced(backend, tmp_path / "t", trace_filter="mmio, irq")
    head, *others = records_of(tmp_path / "t")
    assert head["filter"] == ["mmio", "irq"]
    assert {kind_of(r) for r in others} <= {"inst-emul", "irq", "intack", "eoi"}
    assert {"inst-emul", "irq"} <= {kind_of(r) for r in others}


def test_without_a_trace_nothing_is_in_the_way(backend: str) -> None:
    with Machine(config_for(GUEST, backend)) as machine:
        vcpu = machine.vcpus.vcpus[0]
        assert vcpu.handlers[exits.InOut] == vcpu._inout
        assert vcpu._answer == vcpu.cpu.answer


def test_messages_are_recorded(tmp_path: Path) -> None:
    with Machine(config_for(GUEST, find_backend("soft").name, trace=tmp_path / "t")) as machine:
        machine.msi.send(0xFEE00000, 0x41)
    assert records_of(tmp_path / "t")[-1].items() >= {"msi": 0xFEE00000, "data": 0x41}.items()


def test_every_kind_of_exit_gives_its_record(loop: EventLoop, tmp_path: Path) -> None:
    trace = Trace(Way(str(tmp_path / "t")), FILTERS, loop)
    some = [
        exits.InstEmulFailed(0x1000), exits.WrMsr(0x10, 1 << 63), exits.RdMsr(0x10), exits.Hlt(), exits.Pause(),
        exits.Mtrap(), exits.Debug(0x10), exits.Debug(0x10, 0x20), exits.Bogus(), exits.IntAck(), exits.IoapicEoi(0x41),
        exits.SpinupAp(1, 0x99), exits.SpindownCpu(), exits.Suspended(exits.SuspendReason.TRIPLE_FAULT),
        exits.EntryFailed(1, 2, 3, 4, 5, 6, 7, 'a "reason"'), exits.InstEmul(0xFEC00000, 8, True, 5),
        exits.InOut(0x60, 1, True),
    ]  # fmt: skip
    for exit_ in some:
        trace.exit(3, exit_, 0x30 if isinstance(exit_, exits.IntAck) else None, 10**15, 5)
    trace.close()
    records = records_of(tmp_path / "t")
    assert {type(exit_) for exit_ in some} == set(NAMES)
    for exit_, record in zip(some, records, strict=True):
        assert kind_of(record) == NAMES[type(exit_)]
        assert set(record) == set(FIELDS[kind_of(record)])
        assert (record["vcpu"], record["ns"]) == (3, 5)
    assert records[1]["value"] == 1 << 63
    assert records[2]["value"] is None
    assert records[13]["reason"] == "triple fault"


def test_a_fifo_gets_records_while_the_machine_runs(backend: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kernel = "out8 0x80, 7\n1: hlt\n jmp 1b\n"
    with Machine(config_for(kernel, backend, trace=fifo)) as machine, open(fifo, "rb", buffering=0) as reader:

        def read() -> None:
            # the record comes by the loop's timer, not at the end
            if b'"exit": "inout"' in reader.read(1 << 16):
                machine.power_off()

        machine.loop.add_reader(reader.fileno(), read)
        machine.start()
        assert machine.wait() == Status.POWER_OFF
        machine.loop.remove_reader(reader.fileno())


def test_a_reader_that_is_too_slow_holds_nothing_up(
    loop: EventLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BACKLOG", 1 << 18)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    trace = Trace(Way(str(fifo)), FILTERS, loop)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    count = 20_000
    for _ in range(count):
        trace.exit(0, exits.Hlt(), None, 0, 0)

    seen = bytearray()

    def read() -> None:
        seen.extend(os.read(reader, 1 << 20))
        if b'"lost"' in seen:
            loop.stop()

    loop.add_reader(reader, read)
    loop.run()
    loop.remove_reader(reader)
    trace.close()
    while rest := os.read(reader, 1 << 20):
        seen.extend(rest)
    os.close(reader)
    records = [json.loads(line) for line in seen.splitlines()]
    lost = sum(r.get("lost", 0) for r in records)
    assert lost > 0
    assert lost + sum("exit" in r for r in records) == count


def test_a_fifo_that_nobody_reads_does_not_keep_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "END_SECONDS", 0.01)
    os.mkfifo(tmp_path / "fifo")
    kernel = "mov $2000, %ecx\n mov $0x80, %dx\n 1: out %al, %dx\n loop 1b\n power_off\n"
    assert traced(find_backend("soft").name, tmp_path / "fifo", kernel) == Status.POWER_OFF


def test_a_full_disk_ends_the_trace_with_one_line_and_the_machine_lives(
    backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = "mov $3000, %ecx\n mov $0x80, %dx\n 1: out %al, %dx\n loop 1b\n power_off\n"
    assert traced(backend, "/dev/full", kernel) == Status.POWER_OFF
    assert capfd.readouterr().err.splitlines() == [
        "bhyve: the trace ends here: cannot write '/dev/full': No space left on device"
    ]


def test_a_dash_is_standard_error(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    traced(backend, "-", trace_filter="mmio")
    lines = capfd.readouterr().err.splitlines()
    assert [kind_of(json.loads(line)) for line in lines] == ["trace", "inst-emul"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"trace": "/nowhere/t"}, "trace: cannot write '/nowhere/t': No such file or directory"),
        ({"trace": "/"}, "trace: cannot write '/': Is a directory"),
        ({"trace": "/dev/null", "trace_filter": "mmio,teapot"}, "there is no kind 'teapot'; there are inout, mmio"),
        ({"trace_filter": "mmio"}, "nothing says where to"),
    ],
)
def test_a_trace_that_cannot_be_is_one_line(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Machine(config_for(kernels.POWER_OFF, find_backend("soft").name, **variables))
    assert "\n" not in str(caught.value)


def test_the_summary_of_a_trace_says_what_was_in_it(backend: str, tmp_path: Path) -> None:
    traced(backend, tmp_path / "t")
    with open(tmp_path / "t", "a") as file:
        file.write('{"t": 5, "exit": "ino')
    with open(tmp_path / "t") as lines:
        summary = summarize(lines)
    assert summary.broken == 1
    assert summary.kinds["inst-emul"] == 1
    assert summary.devices["hpet"] == 1
    assert summary.places["port", 0x510, "in", 'a "quoted" name'] == 1
    assert summary.lines["irq 4 (com1)"] == 1
    text = "\n".join(report(summary))
    assert f"test: 1 vCPUs on {backend}" in text
    assert "port 0x404" in text
    assert "1 lines are not records" in text


def test_the_summary_of_nothing_is_short() -> None:
    assert list(report(summarize([]))) == ["0 records in 0.000 s, 0 exits, 0 a second"]
    nonsense = summarize(["", "null", "[1]", '{"exit": 4}', '{"t": "x", "exit": "hlt", "ns": 1}', '{"exit": "hlt"}'])
    assert (nonsense.records, nonsense.broken) == (0, 6)
