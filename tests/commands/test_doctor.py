"""The doctor: what it says of hosts that lack something."""

import subprocess
import sys

import pytest

from pyhyve.commands import doctor
from tests.backends.vfio.model import ModelKernel

V3 = "fpu vme avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"


def cpuinfo(flags):
    return f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: none\n"


def findings(flags):
    return {f.name: f for f in doctor.examine_cpu(cpuinfo(flags))}


def test_a_cpu_with_everything_is_good():
    found = findings(f"{V3} vmx")
    assert found["cpu"].good
    assert "Some CPU" in found["cpu"].text
    assert found["virtualization"].good


def test_what_a_cpu_lacks_is_named():
    found = findings(V3.replace("bmi2", "").replace("fma", ""))
    assert found["cpu"].good is False
    assert found["cpu"].text.endswith("lacks bmi2, fma")
    assert found["virtualization"].good is None


def test_kvm_missing_and_forbidden(tmp_path, monkeypatch):
    assert "is missing" in doctor.examine_kvm(str(tmp_path / "kvm")).text

    def refuse(*_args):
        raise PermissionError

    (tmp_path / "kvm").touch()
    monkeypatch.setattr(doctor.os, "open", refuse)
    found = doctor.examine_kvm(str(tmp_path / "kvm"))
    assert found.good is False
    assert "forbidden" in found.text


def test_passthru_says_what_is_missing_and_what_is_ready(monkeypatch):
    kernel = ModelKernel({})
    assert "no IOMMU" in doctor.examine_passthru(kernel).text
    kernel.neighbours["0000:01:00.0"] = ("7", "e1000e")
    assert "has no device" in doctor.examine_passthru(kernel).text
    kernel.neighbours["0000:02:00.0"] = ("8", "vfio-pci")
    found = doctor.examine_passthru(kernel)
    assert found.good
    assert found.text == "VFIO has 0000:02:00.0"
    assert kernel.fds == {}
    kernel.forbidden.add("/dev/vfio/vfio")
    assert "does not open: Permission denied" in doctor.examine_passthru(kernel).text
    kernel.missing.add("/dev/vfio/vfio")
    found = doctor.examine_passthru(kernel)
    assert found.good is None
    assert "modprobe vfio-pci" in found.text


def test_no_compiler_and_no_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "install gcc" in doctor.examine_compiler().text
    assert "--kernel" in doctor.examine_apt().text
    monkeypatch.setattr("pyhyve.images.bootstrap.search_path", lambda: str(tmp_path))
    assert "needs mmdebstrap" in doctor.examine_disk_tools().text


@pytest.mark.parametrize(("available", "good"), [(8 << 20, True), (100 << 10, False)])
def test_memory(available, good):
    assert doctor.examine_memory(f"MemTotal: {16 << 20} kB\nMemAvailable: {available} kB\n").good is good


def test_the_command_reports_every_finding_on_a_line():
    done = subprocess.run(
        [sys.executable, "-m", "pyhyve.commands.pyhyve", "doctor"], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1)
    names = [line.split()[1] for line in done.stdout.splitlines()]
    host = ["python", "cpu", "virtualization", "kvm", "backend", "passthru"]
    assert names == [*host, "compiler", "apt", "debian-disk", "memory", "terminal"]
