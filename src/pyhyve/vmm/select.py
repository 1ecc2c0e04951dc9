"""Choosing the backend that runs a machine's vCPUs, and saying why (``vmm.backend=auto|kvm|soft``).

``auto`` takes KVM only where the CPU itself runs guests (vmx or svm). Some hosts have a ``/dev/kvm`` that emulates the
guest's kernel code an instruction at a time: there the engine is faster.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from pyhyve.errors import BackendError, ConfigError
from pyhyve.vmm.api import Hypervisor
from pyhyve.vmm.kvm import KvmHypervisor

BACKENDS = ("auto", "kvm", "soft")
_ENGINE = "pyhyve.vmm.soft.engine"


def engine() -> Hypervisor:
    """The CPU engine. Raises ``BackendError`` where its compiled part is missing or cannot run on this host."""
    try:
        module = importlib.import_module(_ENGINE)
    except ImportError as error:
        raise BackendError(f"the CPU engine is not built ({error}): run `make build`") from None
    soft = cast(Callable[[], Hypervisor], module.SoftHypervisor)()
    found = soft.probe()
    if not found.usable:
        raise BackendError(f"the CPU engine cannot run here: {found.reason}")
    return soft


def choose(backend: str = "auto", kvm: Hypervisor | None = None) -> tuple[Hypervisor, str]:
    """The backend to use and one sentence that says which and why.

    ``kvm`` replaces the KVM backend that is asked. Raises ``ConfigError`` for an unknown name and ``BackendError``
    where the backend cannot run.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"vmm.backend is one of {', '.join(BACKENDS)}, not '{backend}'")
    if backend == "soft":
        return engine(), "the CPU engine, because vmm.backend=soft asks for it"
    kvm = kvm or KvmHypervisor()
    found = kvm.probe()
    if backend == "kvm":
        if not found.usable:
            raise BackendError(f"vmm.backend=kvm cannot run: {found.reason}")
        note = "" if found.accelerated else f" (slowly: {found.reason})"
        return kvm, f"KVM, because vmm.backend=kvm asks for it{note}"
    if found.usable and found.accelerated:
        return kvm, f"KVM: {found.reason}"
    try:
        return engine(), f"the CPU engine: {found.reason}"
    except BackendError as error:
        hint = "; vmm.backend=kvm would work, slowly" if found.usable else ""
        raise BackendError(f"no backend can run the guest: {found.reason}; {error}{hint}") from None
