"""Long runs: ``python -m tests.vmm.soft.native --cases 10000000 --seed 7``."""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter

from tests.vmm.soft.native.compare import Comparison, memory_for, pack
from tests.vmm.soft.native.forms import all_forms
from tests.vmm.soft.native.generate import Generator
from tests.vmm.soft.native.report import show
from tests.vmm.soft.native.shrink import shrink

ALL_TRIED = 50_000
"""From so many cases on, forms that chance has left out are tried behind them."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vmm.soft.native", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", default="", help="forms whose label contains this word")
    parser.add_argument("--failures", type=int, default=10, help="give up after so many")
    parser.add_argument("--coverage", action="store_true", help="print how often every form was tried")
    args = parser.parse_args()
    forms = [form for form in all_forms() if args.only in form.label] if args.only else None
    print(f"seed {args.seed}")
    started, failures, batch = time.monotonic(), 0, 0
    with Comparison() as comparison:
        while failures < args.failures:
            chosen = forms
            if comparison.cases >= args.cases:
                chosen = [] if args.only or args.cases < ALL_TRIED else [form for form in all_forms() if not form.count]
                if not chosen:
                    break
            seed = args.seed + batch
            batch += 1
            generator = Generator(seed, comparison.encodings)
            blobs = pack([generator.blob(chosen) for _ in range(64)], generator.rng)
            memory = memory_for(generator.rng)
            seen = set()
            for difference in comparison.run_survive(blobs, memory):
                small, others = shrink(comparison, difference, memory, blobs)
                what = tuple(item.form.label if item.form else item.data.hex() for item in small.blob.items)
                if what in seen:
                    continue
                seen.add(what)
                print(show(small, str(seed), others), " / ".join(map(str, what)), sep="\n", flush=True)
                failures += 1
                if failures >= args.failures:
                    break
        seconds = time.monotonic() - started
        print(f"{comparison.cases} cases in {seconds:.1f} s, {comparison.cases / seconds:.0f} a second; "
              f"{comparison.dropped} blobs dropped; faults by vector: {dict(sorted(comparison.faults.items()))}")  # fmt: skip
    tried = [form for form in all_forms() if form.count]
    print(f"{len(tried)} of {len(all_forms())} forms tried; not: {[f.label for f in all_forms() if not f.count][:20]}")
    opcodes = Counter()  # register and memory forms together
    for form in all_forms():
        opcodes[re.sub(r"\.[rm]$", "", form.label.split()[0])] += form.count
    untried = [name for name, count in opcodes.items() if not count]
    print(f"{len(opcodes) - len(untried)} of {len(opcodes)} opcodes tried; not: {' '.join(untried[:40]) or 'none'}")
    if args.coverage:
        print("cases of each opcode:")
        for name, count in sorted(opcodes.items(), key=lambda item: item[1]):
            print(f"{count:8} {name}")
        print("cases of each form:")
        for form in sorted(all_forms(), key=lambda form: form.count):
            print(f"{form.count:8} {form}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
