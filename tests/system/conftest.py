"""The Debian guest, for tests that boot it: on the engine, and on KVM where the CPU itself runs guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhyve.images import GuestImage, ImageError, build_debian
from pyhyve.vmm.kvm import KvmHypervisor
from tests.conftest import find_backend
from tests.system.files import File, add_files


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """Kernel and initial RAM disk, from the cache or built."""
    try:
        return build_debian()
    except ImageError as error:
        pytest.skip(f"no Debian guest: {error}")


@pytest.fixture(scope="module", params=["soft", "kvm"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that boots Linux in seconds."""
    name: str = request.param
    if name == "kvm" and not KvmHypervisor().probe().accelerated:
        pytest.skip("backend kvm: no hardware virtualization, Linux would take minutes")
    find_backend(name)
    return name


@pytest.fixture(scope="module")
def initrd_with(image: GuestImage, tmp_path_factory: pytest.TempPathFactory):
    """A function: the image's initial RAM disk with more files in it."""

    def build(files: dict[str, File]) -> Path:
        path = tmp_path_factory.mktemp("initrd") / "initrd"
        add_files(image.initrd, path, files)
        return path

    return build
