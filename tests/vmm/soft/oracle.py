"""Running an oracle's command inside the suite, and the processes that oracles start.

In the suite the seed is fixed, so that a red run is the change's doing; ``PYHYVE_SEED`` chooses another.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_PR_SET_PDEATHSIG = 1


def same_modules() -> dict[str, str]:
    """An environment in which a new interpreter finds the modules that this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, whatever this one is doing then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def check(module: str, *arguments: str, limit: float) -> str:
    """Run ``python -m module --seed S arguments``; its output. Fails the test if it ends with anything but 0."""
    seed = os.environ.get("PYHYVE_SEED", "1")
    command = [sys.executable, "-m", module, "--seed", seed, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    assert run.returncode == 0, f"seed {seed}\n{run.stdout}\n{run.stderr}"
    return run.stdout
