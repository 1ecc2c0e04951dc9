"""The native side: the program of ``host.S`` in a process of its own."""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
from pathlib import Path

from tests.vmm.soft.native import layout
from tests.vmm.soft.native.process import Runner


def start() -> Runner:
    """Start the program. It takes the image from descriptor 2, which is nobody's standard error there."""
    harness = layout.build("harness.S", layout.HARNESS)
    fd = os.memfd_create("native-cases", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, layout.REGION)
        image = mmap.mmap(fd, layout.REGION)
        image[: len(harness)] = harness
        with tempfile.TemporaryDirectory() as place:
            program = Path(place, "host")
            layout.build("host.S", layout.HOST_PROGRAM, program)
            process = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=fd, env={}, bufsize=0
            )
    finally:
        os.close(fd)
    return Runner("native", process, image)
