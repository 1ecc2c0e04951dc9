"""Fixtures that every room's tests may use: the backends that this host can run."""

from __future__ import annotations

import pytest

from pyhyve.vmm.api import Hypervisor
from tests.guests import find_backend


@pytest.fixture(params=["kvm", "soft"])
def hypervisor(request: pytest.FixtureRequest) -> Hypervisor:
    """Each backend in turn."""
    return find_backend(request.param)
