"""Which backend is chosen, and what is said about it."""

from __future__ import annotations

import pytest

from pyhyve.errors import BackendError, ConfigError
from pyhyve.vmm import select
from pyhyve.vmm.api import Probe
from pyhyve.vmm.kvm import KvmHypervisor


class Kvm(KvmHypervisor):
    """A KVM backend that finds a host as told."""

    def __init__(self, found: Probe) -> None:
        super().__init__()
        self.found = found

    def probe(self) -> Probe:
        return self.found


FAST = Kvm(Probe(True, True, "/dev/kvm opens and the CPU has vmx"))
SLOW = Kvm(Probe(True, False, "/dev/kvm opens, but the CPU shows neither vmx nor svm"))
NONE = Kvm(Probe(False, False, "there is no /dev/kvm"))
ENGINE = Kvm(Probe(True, True, "the engine"))


@pytest.fixture
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "engine", lambda: ENGINE)


@pytest.fixture
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_ENGINE", "pyhyve.vmm.soft.nothing_of_that_name")


@pytest.mark.usefixtures("_engine")
def test_auto_takes_kvm_where_the_cpu_runs_guests() -> None:
    chosen, why = select.choose("auto", FAST)
    assert chosen is FAST
    assert why == "KVM: /dev/kvm opens and the CPU has vmx"


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize("kvm", [SLOW, NONE], ids=["slow", "none"])
def test_auto_takes_the_engine_elsewhere_and_says_why(kvm: Kvm) -> None:
    chosen, why = select.choose("auto", kvm)
    assert chosen is ENGINE
    assert why == f"the CPU engine: {kvm.found.reason}"


@pytest.mark.usefixtures("_no_engine")
def test_without_an_engine_the_message_names_both_ways_out() -> None:
    with pytest.raises(BackendError, match=r"make build.*vmm\.backend=kvm would work, slowly"):
        select.choose("auto", SLOW)
    with pytest.raises(BackendError, match="make build") as caught:
        select.choose("auto", NONE)
    assert "slowly" not in str(caught.value)


def test_kvm_by_name_is_taken_even_where_it_is_slow() -> None:
    chosen, why = select.choose("kvm", SLOW)
    assert chosen is SLOW
    assert "slowly" in why


def test_kvm_by_name_is_refused_where_it_is_not() -> None:
    with pytest.raises(BackendError, match="there is no /dev/kvm"):
        select.choose("kvm", NONE)


@pytest.mark.usefixtures("_engine")
def test_the_engine_by_name() -> None:
    assert select.choose("soft", FAST)[0] is ENGINE


@pytest.mark.usefixtures("_no_engine")
def test_an_engine_that_is_not_built_is_one_clear_line() -> None:
    with pytest.raises(BackendError, match="is not built") as caught:
        select.choose("soft")
    assert "\n" not in str(caught.value)


def test_an_unknown_backend_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="auto, kvm, soft, not 'xen'"):
        select.choose("xen")
