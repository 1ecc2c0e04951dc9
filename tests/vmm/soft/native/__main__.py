"""Long runs: ``python -m tests.vmm.soft.native --cases 10000000 --seed 7``."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests.vmm.soft.native.compare import Comparison, memory_for, pack
from tests.vmm.soft.native.forms import all_forms
from tests.vmm.soft.native.generate import Generator
from tests.vmm.soft.native.report import show
from tests.vmm.soft.native.shrink import shrink


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
        while comparison.cases < args.cases and failures < args.failures:
            seed = args.seed + batch
            batch += 1
            generator = Generator(seed, comparison.encodings)
            blobs = pack([generator.blob(forms) for _ in range(64)], generator.rng)
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
    mnemonics = Counter()
    for form in all_forms():
        mnemonics[form.label.split()[0]] += form.count
    untried = sorted(name for name, count in mnemonics.items() if not count)
    print(f"{len(mnemonics) - len(untried)} of {len(mnemonics)} instructions tried, "
          f"the fewest {min(mnemonics.values(), default=0)} times; not: {' '.join(untried) or 'none'}")  # fmt: skip
    if args.coverage:
        for name, count in sorted(mnemonics.items(), key=lambda item: item[1]):
            print(f"{count:8} {name}")
        for form in sorted(all_forms(), key=lambda form: form.count):
            print(f"{form.count:8} {form}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
