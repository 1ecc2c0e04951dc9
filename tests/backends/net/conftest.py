from __future__ import annotations

import pytest

from tests.backends.net.ether import LoopThread


@pytest.fixture
def thread():
    running = LoopThread()
    yield running
    running.close()


@pytest.fixture
def loop(thread):
    return thread.loop
