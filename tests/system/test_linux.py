"""Debian's stock kernel on the ``bhyve`` command, booted to its shell and used: answers, clock, log, and its ends."""

import calendar
import hashlib
import re
import signal
import subprocess
import time

import pytest

from tests.system.console import PROMPT, Guest, command
from tests.system.files import File
from tests.system.log import complaints

pytestmark = pytest.mark.timeout(600)


def numbers(last: int) -> bytes:
    """What ``seq 1 LAST`` prints."""
    return "".join(f"{n}\n" for n in range(1, last + 1)).encode()


@pytest.fixture(scope="module")
def guest(backend, image):
    with Guest(command(backend, image.kernel, image.initrd)) as booted:
        yield booted


def test_it_is_the_kernel_that_was_asked_for(guest, image):
    assert guest.output("uname -r") == f"{image.version}\n"


def test_the_guest_sees_its_memory_and_its_devices(guest):
    total = re.search(r"MemTotal: +(\d+) kB", guest.output("cat /proc/meminfo"))
    assert 460 << 10 < int(total[1]) < 512 << 10
    assert guest.output("ls /sys/bus/pci/devices").split() == ["0000:00:00.0", "0000:00:1f.0"]
    assert "ttyS0" in guest.output("cat /proc/interrupts")


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256", "sha512"])
def test_checksums_are_right(guest, name):
    digest = hashlib.new(name, numbers(20_000)).hexdigest()
    assert guest.output(f"seq 1 20000 | {name}sum") == f"{digest}  -\n"


def test_floating_point_is_right(guest):
    harmonic = 0.0
    for n in range(1, 20_001):
        harmonic += 1 / n
    program = 'BEGIN { for (n = 1; n <= 20000; n++) s += 1 / n; printf "%.12f %.3e %d\\n", s, s / 1e9, s * 1000 }'
    assert guest.output(f"awk '{program}'") == f"{harmonic:.12f} {harmonic / 1e9:.3e} {int(harmonic * 1000)}\n"


def test_shell_arithmetic_is_64_bits_wide(guest):
    assert guest.output("echo $((3037000499 * 3037000499)) $((-7 / 2)) $((-7 % 2)) $((1 << 62))").split() == [
        str(3037000499**2),
        "-3",
        "-1",
        str(1 << 62),
    ]


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("KILL", 137), ("SEGV", 139), ("USR1", 138)])
def test_a_signal_ends_a_process(guest, name, status):
    assert guest.run(f"sh -c 'kill -{name} $$'").status == status


def test_a_signal_is_caught(guest):
    assert guest.run("sh -c 'trap \"echo caught; exit 3\" USR1; kill -USR1 $$; echo not'").output == "caught\n"


def test_background_jobs_end_and_are_waited_for(guest):
    script = 'p=; for i in 1 2 3; do (sleep 0.2; exit $i) & p="$p $!"; done; for i in $p; do wait $i; echo $?; done'
    assert guest.output(f"sh -c '{script}'").split() == ["1", "2", "3"]


def test_hundreds_of_processes_come_and_go(guest):
    assert guest.output("for i in $(seq 200); do /bin/echo $i; done | md5sum").split()[0] == (
        hashlib.md5(numbers(200)).hexdigest()
    )


def test_data_survives_pipes_files_and_compression(guest):
    script = "seq 1 100000 >/tmp/a; gzip -c /tmp/a | gunzip -c | tee /tmp/b | sort -rn | head -n 1; cmp /tmp/a /tmp/b"
    assert guest.output(script) == "100000\n"
    assert guest.output("sha256sum /tmp/b").split()[0] == hashlib.sha256(numbers(100_000)).hexdigest()
    script = "mkdir -p /tmp/in /tmp/out; cp /tmp/a /tmp/in/; tar -c -C /tmp in | tar -x -C /tmp/out"
    assert guest.output(f"{script}; cmp /tmp/a /tmp/out/in/a") == ""


def test_every_character_that_is_printed_arrives(guest):
    assert guest.output("seq 1 5000") == numbers(5000).decode()


def test_every_character_that_is_typed_arrives(guest):
    lines = "".join(f"line {n} of what somebody types quickly, or pastes\n" for n in range(100))
    guest.send("cat >/tmp/typed; echo '<'read'>'\n")
    guest.send(lines)
    guest.send("\x04")
    guest.expect("<read>")
    guest.expect(PROMPT)
    assert guest.output("md5sum </tmp/typed").split()[0] == hashlib.md5(lines.encode()).hexdigest()


@pytest.mark.parametrize("load", ["sleep 4", "timeout 4 sh -c 'while :; do :; done' || true"], ids=["idle", "busy"])
def test_the_clock_keeps_time_within_one_percent(guest, load):
    start, before = time.monotonic(), guest.clock_offset()
    guest.output(load)
    elapsed, after = time.monotonic() - start, guest.clock_offset()
    assert elapsed > 3.5
    assert abs(after - before) < 0.01 * elapsed


def test_the_date_is_that_of_the_host(guest):
    # the real-time clock keeps the host's local time, which Linux takes for UTC
    assert abs(int(guest.output("date +%s")) - calendar.timegm(time.localtime())) <= 2


def test_ctrl_c_at_the_terminal_interrupts_what_runs(guest):
    # what runs says so itself: only then it is the one in the terminal's foreground
    guest.send('sh -c \'echo "<"running">"; exec sleep 1000\'\n')
    guest.expect("<running>")
    guest.send("\x03")
    guest.expect(PROMPT)
    assert guest.run("true").status == 0


def test_the_log_has_no_warning(guest):
    assert complaints(guest.output("dmesg -r")) == []


def test_without_input_the_guest_runs_and_power_off_is_status_1(backend, image, initrd_with):
    script = b"#!/bin/sh\necho rc.local was here\npoweroff -f\n"
    initrd = initrd_with({"/etc/rc.local": File(script)})
    done = subprocess.run(
        command(backend, image.kernel, initrd), stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    )
    assert b"rc.local was here" in done.stdout
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_script_can_be_piped_in_and_reboot_is_status_0(backend, image):
    # the kernel empties the UART when it finds it: the first characters, typed before that, are lost, as on hardware
    typed = b"\n" * 40 + b"echo $((6 * 7)) is the answer\nreboot -f\n"
    argv = command(backend, image.kernel, image.initrd)
    done = subprocess.run(argv, input=typed, capture_output=True, timeout=120, check=False)
    assert b"42 is the answer" in done.stdout
    assert (done.returncode, done.stderr) == (0, b"")


def test_sigterm_presses_the_power_button_and_the_guest_powers_off(backend, image):
    with Guest(command(backend, image.kernel, image.initrd)) as guest:
        guest.kill(signal.SIGTERM)
        guest.expect("pressed the power button")
        assert guest.end() == 1
