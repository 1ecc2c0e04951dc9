"""What is said about hosts without KVM, with a forbidden or busy one, or with one that is not enough."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyhyve.errors import BackendError
from pyhyve.memory import GuestMemory
from pyhyve.vmm.kvm import KvmHypervisor, hypervisor, ioctls, probe
from pyhyve.vmm.kvm.ioctls import Cap


def cpuinfo(place: Path, flags: str) -> str:
    path = place / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    return str(path)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """A KVM device with every extension, under the name of /dev/null; the answers to its ioctls can be changed."""
    answers: dict[int, int] = dict.fromkeys((int(cap) for cap in Cap), 1)
    answers[-1] = ioctls.API_VERSION

    def call(fd: int, request: int, argument: object = 0, *, doing: str = "") -> int:
        if request == ioctls.GET_API_VERSION:
            return answers[-1]
        raise OSError(answers.get(-2, errno.EINVAL), "refused")

    monkeypatch.setattr(ioctls, "call", call)
    monkeypatch.setattr(ioctls, "extension", lambda fd, cap: answers[int(cap)])
    return answers


def test_vmx_and_svm_count_as_acceleration(device: dict[int, int], tmp_path: Path) -> None:
    for flag in ("vmx", "svm"):
        found = probe.probe("/dev/null", cpuinfo(tmp_path, f"fpu {flag} sse"))
        assert (found.usable, found.accelerated) == (True, True)
        assert flag in found.reason


def test_a_kvm_without_either_is_usable_but_slow(device: dict[int, int], tmp_path: Path) -> None:
    found = probe.probe("/dev/null", cpuinfo(tmp_path, "fpu sse hypervisor svm_lock"))
    assert (found.usable, found.accelerated) == (True, False)
    assert "neither vmx nor svm" in found.reason


def test_a_host_without_cpuinfo_is_not_accelerated(device: dict[int, int], tmp_path: Path) -> None:
    assert not probe.probe("/dev/null", str(tmp_path / "nothing")).accelerated


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    found = probe.probe(str(tmp_path / "kvm"))
    assert not found.usable
    assert found.reason.startswith(f"there is no {tmp_path}/kvm")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "join the group"),
        (errno.EPERM, "join the group"),
        (errno.EBUSY, "is busy"),
        (errno.ENODEV, "no driver"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_a_device_that_does_not_open_says_why(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(BackendError, match=words) as caught:
            probe.open_device()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_kvm_is_told() -> None:
    assert probe.probe("/dev/null").reason == "/dev/null is not a KVM device"


def test_another_api_version_is_refused(device: dict[int, int]) -> None:
    device[-1] = 11
    assert "API version 11, not 12" in probe.probe("/dev/null").reason


def test_missing_extensions_are_named(device: dict[int, int]) -> None:
    device[Cap.IRQCHIP] = device[Cap.SIGNAL_MSI] = 0
    found = probe.probe("/dev/null")
    assert not found.usable
    assert "IRQCHIP, SIGNAL_MSI" in found.reason


def test_the_number_of_cpus_is_the_smaller_of_kvms_and_ours(device: dict[int, int]) -> None:
    device[Cap.MAX_VCPUS] = 4
    assert probe.probe("/dev/null").max_cpus == 4
    device[Cap.MAX_VCPUS] = 1024
    assert probe.probe("/dev/null").max_cpus == 16


@pytest.mark.parametrize(("number", "words"), [(errno.EBUSY, "busy"), (errno.ENOMEM, "Cannot allocate memory")])
def test_a_machine_that_is_refused_is_one_line_and_leaves_nothing_open(
    device: dict[int, int], number: int, words: str
) -> None:
    device[-2] = number
    memory = GuestMemory(1 << 20)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError, match=words):
        KvmHypervisor("/dev/null").create("vm", memory, 1)
    assert len(os.listdir("/proc/self/fd")) == before
    memory.close()


def test_more_cpus_than_there_are_is_refused(device: dict[int, int]) -> None:
    device[Cap.MAX_VCPUS] = 2
    memory = GuestMemory(1 << 20)
    with pytest.raises(BackendError, match="3 vCPUs requested but only 2 available"):
        hypervisor.KvmHypervisor("/dev/null").create("vm", memory, 3)
    memory.close()
