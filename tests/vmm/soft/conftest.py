"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guests import Guest


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    """For the guests that a test boots: they are closed behind it."""
    made: list[Guest] = []
    yield made
    for guest in made:
        guest.close()
