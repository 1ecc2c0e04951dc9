"""The engine against the host's CPU: random instructions give the same results to the bit. See ``native``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from tests.guests import find_backend
from tests.vmm.soft.native.campaign import Campaign
from tests.vmm.soft.native.compare import Comparison
from tests.vmm.soft.native.forms import all_forms

SEED = 20_000
"""The same cases in every run of the suite; ``python -m tests.vmm.soft.native`` goes on from anywhere."""


@pytest.fixture(scope="module")
def comparison() -> Iterator[Comparison]:
    find_backend("soft")
    with Comparison() as both:
        yield both


def test_random_instructions_do_what_the_processor_does(comparison: Comparison) -> None:
    campaign = Campaign(comparison, SEED, cases=100_000, seconds=10)
    reports = list(islice(campaign.differences(), 3))
    assert not reports, "\n".join(reports)
    assert comparison.cases > 5_000
    assert not comparison.dropped


def test_every_form_of_the_opcode_table_that_can_be_compared_is_tried(comparison: Comparison) -> None:
    missing = [form for form in all_forms() if not form.count and (not form.vex or form in comparison.encodings)]
    campaign = Campaign(comparison, SEED - 100, cases=5_000, seconds=5, forms=missing)
    reports = list(islice(campaign.differences(), 3)) if missing else []
    assert not reports, "\n".join(reports)
    assert all(form.count for form in missing)
