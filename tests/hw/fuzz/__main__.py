"""``python -m tests.hw.fuzz DEVICE|all ACCESSES [SEED]``: attack devices for longer than the suite does."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.hw.fuzz.devices import FUZZERS


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in (*FUZZERS, "all"):
        sys.exit(f"usage: python -m tests.hw.fuzz {'|'.join(FUZZERS)}|all ACCESSES [SEED]")
    name, accesses = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else int(time.time())
    for each in FUZZERS if name == "all" else [name]:
        print(f"{each}: {accesses} accesses, seed {seed}", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            longest = FUZZERS[each](each, Path(folder), seed).run(accesses)
        took = time.monotonic() - start
        print(f"{each}: survived, {took:.0f} s; the longest access took {1000 * longest:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
