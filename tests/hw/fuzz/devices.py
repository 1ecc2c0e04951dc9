"""Every device that has a fuzzer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.hw.fuzz.chips import AhciFuzzer, PciFuzzer, UartFuzzer
from tests.hw.fuzz.requests import MAKERS
from tests.hw.fuzz.virtio import VirtioFuzzer


class Fuzzer(Protocol):
    def run(self, accesses: int) -> float: ...


FUZZERS: dict[str, Callable[[str, Path, int], Fuzzer]] = {
    **dict.fromkeys(MAKERS, VirtioFuzzer),
    "ahci": AhciFuzzer,
    "uart": UartFuzzer,
    "pci": PciFuzzer,
}
