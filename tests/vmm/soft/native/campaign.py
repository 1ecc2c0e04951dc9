"""Many batches, one seed each; what differs is made smaller and told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.vmm.soft.native.compare import Comparison, memory_for, pack
from tests.vmm.soft.native.engine import Way
from tests.vmm.soft.native.forms import Form
from tests.vmm.soft.native.generate import Generator
from tests.vmm.soft.native.report import show
from tests.vmm.soft.native.shrink import shrink


@dataclass(slots=True)
class Campaign:
    """Runs batches ``seed``, ``seed + 1`` and so on, until there have been ``cases`` cases or ``seconds`` are over."""

    comparison: Comparison
    seed: int
    cases: int
    seconds: float = float("inf")
    forms: list[Form] | None = None
    at: int = field(init=False)
    """The seed of the batch that runs."""

    def differences(self) -> Iterator[str]:
        """A report for every difference; of one batch only those that come down to different instructions."""
        comparison, end = self.comparison, time.monotonic() + self.seconds
        last = comparison.cases + self.cases
        self.at = self.seed
        while comparison.cases < last and time.monotonic() < end:
            generator = Generator(self.at, comparison.encodings)
            blobs = pack([generator.blob(self.forms) for _ in range(64)], generator.rng)
            memory = memory_for(generator.rng)
            seen = set()
            for difference in comparison.run_survive(blobs, memory):
                small, others = difference, []
                if comparison.way is not Way.DISTURBED:  # that is never the same twice
                    small, others = shrink(comparison, difference, memory, blobs)
                what = " / ".join(item.form.label if item.form else item.data.hex() for item in small.blob.items)
                if what not in seen:
                    seen.add(what)
                    yield f"{show(small, str(self.at), others)}\n{what}"
            self.at += 1
