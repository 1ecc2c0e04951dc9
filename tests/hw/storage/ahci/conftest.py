"""A disk and a CD drive, each on a started port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hw.storage.ahci.driver import Driver, cd, disk

SECTORS = 2048


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


@pytest.fixture
def hd(image: Path) -> Iterator[Driver]:
    driver = Driver(disk(image), None)
    driver.start()
    yield driver
    driver.close()


@pytest.fixture
def dvd(image: Path) -> Iterator[Driver]:
    driver = Driver(cd(image))
    driver.start()
    yield driver
    driver.close()
