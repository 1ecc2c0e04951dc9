"""What the person who runs a machine is told, a line at a time."""

from __future__ import annotations

import os
import sys
import traceback


def complain(text: str) -> None:
    """One line for the person who runs the machine. The terminal may be raw, hence the carriage return."""
    end = "\r\n" if sys.stderr.isatty() else "\n"
    sys.stderr.write(text.replace("\n", end) + end)
    sys.stderr.flush()


def describe(error: BaseException, where: str) -> str:
    """An unexpected error in one line, with the place in our code where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    text = str(error).splitlines()[0] if str(error) else "no text"
    return f"{where}: a device failed{place}: {type(error).__name__}: {text}"
