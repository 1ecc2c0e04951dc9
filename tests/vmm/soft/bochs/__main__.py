"""``python -m tests.vmm.soft.bochs --cases N --seed S [--family F]``: compare, and print what differs."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.vmm.soft.bochs.compare import run
from tests.vmm.soft.bochs.coverage import missing, table
from tests.vmm.soft.bochs.families import FAMILIES


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.vmm.soft.bochs", description="compare the engine with Bochs")
    parser.add_argument("--cases", type=int, default=10000, help="how many scenarios")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--family", default="", choices=["", *FAMILIES], help="only this family")
    parser.add_argument("--most", type=int, default=10, help="stop after so many differences")
    parser.add_argument("--brief", action="store_true", help="print no whole states")
    arguments = parser.parse_args()
    tally = run(range(arguments.seed, arguments.seed + arguments.cases), only=arguments.family, most=arguments.most)
    for found in tally.differences:
        s = found.scenario
        brief = f"seed {s.seed}: {s.family} in {s.mode}, code {s.code.hex(' ')}; Bochs saw {found.theirs.events}"
        print("\n      ".join([brief, *found.lines[:6]]) if arguments.brief else found.report())
    print(f"{tally.cases} scenarios, {tally.compared} compared, {len(tally.differences)} differ")
    print(f"families: {dict(tally.families)}; differ: {dict(Counter(x.scenario.family for x in tally.differences))}")
    print(f"ends: {dict(tally.ends)}")
    print(f"exceptions, by mode:\n{table(tally.exceptions)}")
    print(f"descriptors, by type:\n{table(tally.descriptors)}")
    print(f"not met: {missing(tally.exceptions, tally.descriptors) or 'nothing'}")
    if tally.words:
        print(f"Bochs said: ...{tally.words[-500:]}")
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
