from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hw.virtio.p9.client import Client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to share, with a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret")
    share = tmp_path / "share"
    (share / "sub" / "deep").mkdir(parents=True)
    (share / "hello").write_bytes(b"hello, guest\n")
    (share / "sub" / "file").write_bytes(b"in the folder below\n")
    return share


@pytest.fixture
def connect(folder: Path) -> Iterator[Callable[..., Client]]:
    """Makes clients of the folder."""
    clients: list[Client] = []

    def make(*args: object, **options: object) -> Client:
        clients.append(Client(folder, *args, **options))  # type: ignore[arg-type]
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect()
