"""``python -m tests.vmm.soft.fuzz --seconds N --seed S``: hunt, and print what is found. Exit status 1 if anything is.

``--crowd`` hunts with several vCPUs.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.vmm.soft.fuzz.hunt import CROWD, WORKER, hunt


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.vmm.soft.fuzz", description="fuzz the CPU engine")
    parser.add_argument("--seconds", type=float, default=60, help="how long to run")
    parser.add_argument("--seed", type=int, default=None, help="the first case (default: the time)")
    parser.add_argument("--most", type=int, default=5, help="stop after so many findings")
    parser.add_argument("--crowd", action="store_true", help="several vCPUs in one machine")
    arguments = parser.parse_args()
    seed = int(time.time()) << 20 if arguments.seed is None else arguments.seed
    print(f"from seed {seed}", flush=True)
    module = CROWD if arguments.crowd else WORKER
    tally = hunt(seed, arguments.seconds, most=arguments.most, module=module, say=lambda text: print(text, flush=True))
    print(f"{tally.cases} cases, {len(tally.findings)} findings")
    print(f"modes: {dict(tally.modes)}")
    print(f"exits: {dict(tally.ends)}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
