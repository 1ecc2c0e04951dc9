"""Fixtures that every room's tests may use: the backends that this host can run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from pyhyve.vmm.api import Hypervisor
from tests.guests import find_backend


@pytest.fixture(params=["kvm", "soft"])
def hypervisor(request: pytest.FixtureRequest) -> Hypervisor:
    """Each backend in turn."""
    return find_backend(request.param)


@pytest.fixture(params=["kvm", "soft"])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn."""
    return find_backend(request.param).name


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[str]:
    """A place of its own for named machines, for this process and its children. Short: a socket's path is limited."""
    with tempfile.TemporaryDirectory(prefix="pyhyve-") as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYHYVE_RUNTIME_DIR", place)
        yield place
