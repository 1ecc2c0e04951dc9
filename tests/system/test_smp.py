"""Debian's kernel on several vCPUs: it starts them all, works on them at once, takes one away and brings it back."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.console import Guest, command
from tests.system.files import File
from tests.system.log import complaints

pytestmark = pytest.mark.timeout(600)

SOURCE = Path(__file__).with_name("stress.c")


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this host")
    binary = tmp_path_factory.mktemp("stress") / "stress"
    subprocess.run(["gcc", "-std=gnu17", "-O2", "-static", "-pthread", "-o", binary, SOURCE], check=True)
    return binary.read_bytes()


@pytest.fixture(scope="module")
def guest(backend, image, initrd_with, stress):
    with Guest(command(backend, image.kernel, initrd_with({"/stress": File(stress)}), cpus=2)) as booted:
        yield booted


def test_the_guest_runs_on_all_its_processors(guest):
    assert guest.output("nproc") == "2\n"
    assert guest.output("grep -c ^processor /proc/cpuinfo") == "2\n"


def test_threads_signals_and_maps_on_two_processors_stay_right(guest):
    done = guest.run("/stress 8 6")
    assert done.status == 0, done.output
    assert done.output.endswith(": clean\n")


def test_a_processor_is_taken_away_and_brought_back(guest):
    online = "/sys/devices/system/cpu/cpu1/online"
    for _ in range(3):
        assert guest.run(f"echo 0 > {online}").status == 0
        assert guest.output("nproc") == "1\n"
        assert guest.run(f"echo 1 > {online}").status == 0
        assert guest.output("nproc") == "2\n"
    assert guest.run("/stress 1 4").status == 0


def test_the_kernel_has_nothing_to_complain_about(guest):
    assert complaints(guest.output("dmesg -r")) == []


@pytest.mark.parametrize("cpus", [4, 16])
def test_linux_starts_as_many_processors_as_there_are(backend, image, initrd_with, stress, cpus):
    with Guest(command(backend, image.kernel, initrd_with({"/stress": File(stress)}), cpus=cpus)) as many:
        assert many.output("nproc") == f"{cpus}\n"
        assert many.run("/stress 2 8").status == 0
        assert complaints(many.output("dmesg -r")) == []
        many.send("poweroff -f\n")
        assert many.end() == 1
