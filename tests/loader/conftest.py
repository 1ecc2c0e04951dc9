"""Fixtures of the loader tests."""

import pytest

from pyhyve.memory import GuestMemory


@pytest.fixture
def memory():
    """64 MiB of guest memory."""
    memory = GuestMemory(64 << 20)
    yield memory
    memory.close()


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write
