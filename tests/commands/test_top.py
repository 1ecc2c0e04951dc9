"""``pyhyve top`` and ``pyhyve trace``: their tables, and the view of a machine that really runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pyhyve.commands import pyhyve as command
from pyhyve.commands import top
from pyhyve.commands.top import Picture, Watch, heading, sheets, short
from pyhyve.debug.stats import rates
from tests import kernels
from tests.conftest import find_backend

# Says that it is there, then writes to the POST port for ever.
BUSY = """
    say "up\\n"
    mov $0x80, %dx
1:  out %al, %dx
    jmp 1b
"""
INFO = {"name": "vm0", "backend": "soft", "cpus": 2, "memory": 512 << 20, "suspended": False}
BEFORE = {
    "vm.uptime-ns": 3_600_000_000_000,
    "vcpu0.inout": 0, "vcpu0.hlt": 10, "vcpu0.guest-ns": 0, "vcpu0.halted-ns": 0, "vcpu0.interrupts": 0,
    "vcpu1.inout": 0, "vcpu1.hlt": 0, "vcpu1.guest-ns": 0, "vcpu1.halted-ns": 0, "vcpu1.interrupts": 0,
    "device.com1.reads": 0, "device.com1.writes": 0, "device.com1.bytes-read": 0, "device.com1.bytes-written": 0,
    "device.disk.reads": 0, "device.disk.writes": 5, "device.disk.bytes-read": 0, "device.disk.bytes-written": 20,
    "device.rtc.reads": 0, "device.rtc.writes": 0, "device.rtc.bytes-read": 0, "device.rtc.bytes-written": 0,
    "char.com1.bytes-in": 0, "char.com1.bytes-out": 7, "irq.4.raised": 1, "irq.5.raised": 0, "msi.sent": 0,
}  # fmt: skip
AFTER = {
    **BEFORE, "vm.uptime-ns": 3_602_000_000_000, "vcpu0.inout": 200, "vcpu0.guest-ns": 1e9, "vcpu0.halted-ns": 1e9,
    "vcpu1.inout": 24_000, "vcpu1.interrupts": 6, "device.com1.writes": 40, "device.com1.bytes-written": 40,
    "device.disk.reads": 10, "device.disk.bytes-read": 80_000, "char.com1.bytes-out": 47, "irq.4.raised": 5,
}  # fmt: skip


@pytest.fixture
def picture() -> Picture:
    return Picture(INFO, AFTER, rates(BEFORE, AFTER))


def rows(picture: Picture, name: str, sort: str = "accesses") -> dict[str, tuple[str, ...]]:
    (found,) = (sheet for sheet in sheets(picture, sort) if sheet.head[0] == name)
    return {row[0]: row[1:] for row in found.rows}


def test_the_heading_says_which_machine_this_is(picture: Picture) -> None:
    assert heading(picture) == "vm0 on soft, 2 vCPUs, 512 MB, up 1:00:02"
    assert heading(Picture({**INFO, "cpus": 1, "suspended": True}, AFTER, {})).endswith("1:00:02, suspended")


def test_a_vcpu_has_its_shares_of_time_and_its_rates(picture: Picture) -> None:
    assert rows(picture, "vCPU")["0"] == ("50.0", "0.0", "0.0", "50.0", "100", "0")
    assert rows(picture, "vCPU")["1"][-2:] == ("12.0k", "3")


def test_exits_are_shown_by_kind_and_vcpu_where_there_were_any(picture: Picture) -> None:
    assert rows(picture, "exit") == {"inout": ("100", "12.0k", "12.1k", "24.2k"), "hlt": ("0", "0", "0", "10")}


def test_devices_are_sorted_by_what_is_asked(picture: Picture) -> None:
    assert rows(picture, "device")["com1"] == ("0", "20", "0", "20", "40")
    assert list(rows(picture, "device", "accesses")) == ["com1", "disk"]
    assert list(rows(picture, "device", "bytes")) == ["disk", "com1"]
    assert list(rows(picture, "device", "name")) == ["com1", "disk"]


def test_serial_ports_and_interrupts_are_shown(picture: Picture) -> None:
    assert rows(picture, "serial") == {"com1": ("0", "20", "0", "47")}
    assert rows(picture, "interrupt") == {"line 4": ("2", "5")}


def test_the_first_picture_has_averages_since_the_start() -> None:
    class Source:
        def call(self, do: str, /) -> dict[str, object]:
            return dict(INFO) if do == "info" else {"vm.uptime-ns": 2e9, "vcpu0.inout": 50}

    assert Watch(Source()).look().rates == {"vcpu0.inout": 25}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.25, "0.25"), (3.0, "3"), (9_999, "9999"), (9_999.7, "10.0k"), (43_210, "43.2k"), (999_600, "1.00M"),
     (1_200_000, "1.20M"), (5e9, "5.00G"), (1e15, "1.00P")],
)  # fmt: skip
def test_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text


def test_a_view_fits_into_a_low_terminal(picture: Picture) -> None:
    from rich.console import Console

    for height in (6, 12, 40):
        console = Console(width=100, height=height, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(top.rich_view(picture, "bytes", True, height))
        text = console.export_text()
        console.file.close()
        assert text.startswith("vm0 on soft")
        assert "sort (bytes)" in text
        assert len(text.splitlines()) <= height


def start(kernel: str, name: str, *more: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pyhyve.commands.bhyve", "-m", "16M", "-s", "0,hostbridge", "-s", "31,lpc"]
    argv += ["-l", "com1,stdio", "-o", f"vmm.backend={find_backend('soft').name}", "-o", f"boot.kernel={kernel}"]
    machine = subprocess.Popen([*argv, *more, name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert machine.stdout is not None
    assert machine.stdout.readline().strip() == b"up"
    return machine


@pytest.fixture
def machine(runtime_directory: str) -> Iterator[subprocess.Popen[bytes]]:
    """A machine named vm0 that is up."""
    started = start(kernels.build(BUSY), "vm0")
    yield started
    started.kill()
    started.communicate()
    for left in Path(runtime_directory).iterdir():
        subprocess.run(["rm", "-r", left], check=True)


def run_top(*argv: str) -> subprocess.CompletedProcess[str]:
    argv = (sys.executable, "-m", "pyhyve.commands.pyhyve", "top", *argv)
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def spawn_top(*argv: str) -> pexpect.spawn:
    argv = ("-m", "pyhyve.commands.pyhyve", "top", *argv)
    return pexpect.spawn(sys.executable, list(argv), dimensions=(40, 120), encoding="utf-8", timeout=30)


def test_once_prints_one_table(machine: subprocess.Popen[bytes]) -> None:
    done = run_top("--once", "-i", "0.2", "vm0")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("vm0 on soft, 1 vCPU, 16 MB, up 0:00:0")
    assert sum(line.startswith("vCPU ") for line in lines) == 1
    (post,) = (line.split() for line in lines if line.startswith("post "))
    assert post[2] != "0"
    assert "\x1b" not in done.stdout


def test_json_is_for_programs(machine: subprocess.Popen[bytes]) -> None:
    done = run_top("--once", "--json", "-i", "0")
    found = json.loads(done.stdout)
    assert found["info"]["name"] == "vm0"
    assert found["stats"]["device.post.writes"] > 0
    assert found["rates"]["vcpu0.inout"] > 0
    assert 0 < found["rates"]["vcpu0.vmm-ns"] <= 1.01


def test_a_reader_that_has_enough_ends_it(machine: subprocess.Popen[bytes]) -> None:
    line = f"{sys.executable} -m pyhyve.commands.pyhyve top -i 0.1 | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("vm0 on soft")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_live_view_answers_keys_and_puts_the_terminal_back(machine: subprocess.Popen[bytes]) -> None:
    child = spawn_top("-i", "0.2")
    before = termios.tcgetattr(child.child_fd)
    child.expect_exact("\x1b[?1049h")
    child.expect_exact("vm0 on soft")
    child.expect_exact("sort (accesses)")
    child.send("s")
    child.expect_exact("sort (bytes)")
    child.send("p")
    child.expect_exact(", held")
    child.send(" ")
    child.expect_exact("p hold")
    child.send("q")
    child.expect_exact("\x1b[?1049l")
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd)[3] == before[3]
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize(("how", "status"), [("\x03", 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_view_puts_the_terminal_back(machine: subprocess.Popen[bytes], how: object, status: int) -> None:
    child = spawn_top("vm0")
    before = termios.tcgetattr(child.child_fd)
    child.expect_exact("sort (accesses)")
    if isinstance(how, str):
        child.send(how)
    else:
        child.kill(how)
    child.expect_exact("\x1b[?1049l")
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd)[3] == before[3]
    child.close()
    assert child.exitstatus == status
    assert "Traceback" not in str(child.before)


def test_a_machine_that_goes_ends_the_view_with_one_line(machine: subprocess.Popen[bytes]) -> None:
    child = spawn_top("-i", "0.1", "vm0")
    child.expect_exact("sort (accesses)")
    machine.kill()
    child.expect_exact("\x1b[?1049l")
    child.expect(pexpect.EOF)
    assert len(str(child.before).strip().splitlines()) == 1
    assert "the virtual machine 'vm0'" in str(child.before)
    child.close()
    assert child.exitstatus == 0


def test_without_a_name_it_takes_the_one_that_runs(machine: subprocess.Popen[bytes]) -> None:
    other = start(kernels.build(BUSY), "vm1")
    try:
        done = run_top("--once", "-i", "0")
    finally:
        other.kill()
        other.communicate()
    assert done.stderr == "pyhyve: several virtual machines are running: vm0, vm1; name one\n"
    assert done.returncode == 64
    # vm1 was killed: its folder is still there, but it does not run
    assert run_top("--once", "-i", "0").stdout.startswith("vm0 on soft")


@pytest.mark.parametrize(
    ("argv", "message", "status"),
    [
        (["--once"], "no virtual machine is running", 64),
        (["--once", "nobody"], "there is no virtual machine 'nobody'", 4),
        (["--once", "a/b"], "it has a slash in it", 4),
        (["-i", "0", "nobody"], "an interval of 0 s makes no sense", 64),
        (["-i", "nan", "nobody"], "an interval of nan s makes no sense", 64),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    argv: list[str], message: str, status: int, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path))
    assert command.run(["top", *argv]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_trace_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace"
    head = {"t": 0, "trace": 1, "name": "vm0", "backend": "soft", "vcpus": 1, "filter": ["hlt"], "started": "now"}
    trace.write_text(json.dumps(head) + '\n{"t": 1000, "vcpu": 0, "exit": "hlt", "ns": 2000}\n')
    assert command.run(["trace", str(trace)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("vm0: 1 vCPUs on soft, from now\n2 records in 0.000 s, 1 exits")
    assert "2.0" in out


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), ("hello\n", "is not a trace")])
def test_a_file_that_is_no_trace_is_refused(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    if content is not None:
        trace.write_text(content)
    assert command.run(["trace", str(trace)]) == 64
    assert message in capsys.readouterr().err
