"""Programs in the guest give what they give on the host: C programs compiled here, and this very Python.

Each prints what it finds; the same binary runs natively and in the guest, and the two outputs have to be equal.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.console import Guest, command
from tests.system.files import File, pack_python
from tests.system.log import complaints

pytestmark = pytest.mark.timeout(600)

SOURCES = Path(__file__).with_name("programs")
# No contraction to fused multiply-add but where a program asks for it: the results should be the source's.
FLAGS = "-std=gnu17 -O2 -w -static -pthread -ffp-contract=off".split()
MORE_FLAGS = {"vectors": "-msse4.2 -mavx2 -mfma".split(), "masks": "-O3 -march=x86-64-v4".split()}
UNSUPPORTED = 77
NEEDS = {"vectors": {"avx2", "fma", "sse4_2"}, "masks": set("avx512f avx512bw avx512cd avx512dq avx512vl".split())}


def host_features() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """The C programs, by name; none without a compiler."""
    if shutil.which("gcc") is None:
        return {}
    folder = tmp_path_factory.mktemp("programs")
    for source in SOURCES.glob("*.c"):
        flags = [*FLAGS, *MORE_FLAGS.get(source.stem, ())]
        subprocess.run(["gcc", *flags, "-o", folder / source.stem, source, "-lm"], check=True)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def python():
    return pack_python(SOURCES / "everything.py")


@pytest.fixture(scope="module")
def guest(backend, image, initrd_with, binaries, python):
    """A guest with the programs in it."""
    programs = {f"/programs/{name}": File(path.read_bytes()) for name, path in binaries.items()}
    with Guest(command(backend, image.kernel, initrd_with({**python.files, **programs}))) as booted:
        yield booted


@pytest.mark.parametrize("name", sorted(source.stem for source in SOURCES.glob("*.c")))
def test_a_c_program_gives_what_it_gives_on_the_host(guest, binaries, name):
    if not binaries:
        pytest.skip("no gcc on this host")
    missing = NEEDS.get(name, set()) - host_features()
    if missing:
        pytest.skip(f"this host's CPU has no {', '.join(sorted(missing))}")
    native = subprocess.run([binaries[name]], capture_output=True, text=True, check=False)
    if native.returncode == UNSUPPORTED:
        pytest.skip(f"this host has not what the program is about: {native.stdout}")
    native.check_returncode()
    assert guest.output(f"/programs/{name}") == native.stdout


def test_the_guest_is_told_of_avx_512_as_far_as_the_host_has_it(guest):
    told = set(guest.output("grep -m1 ^flags /proc/cpuinfo").split())
    assert {flag for flag in told if flag.startswith("avx512")} == {
        flag for flag in host_features() if flag.startswith("avx512")
    } - {"avx512_vp2intersect", "avx512_fp16", "avx512er", "avx512pf", "avx512_4vnniw", "avx512_4fmaps"}


def test_the_kernel_keeps_the_state_of_programs_by_xsaves(guest):
    if "xsavec" not in host_features():
        pytest.skip("this host's CPU has no XSAVEC, by which the engine does XSAVES")
    assert "xsaves" in guest.output("cat /proc/cpuinfo").split()
    assert "using 'compacted' format" in guest.output("dmesg | grep -i 'x86/fpu: Enabled'")


def test_a_python_program_gives_what_it_gives_on_the_host(guest, python):
    assert guest.output(python.command) == python.expected


def test_the_log_has_no_warning_after_all_of_these(guest):
    assert complaints(guest.output("dmesg -r")) == []
