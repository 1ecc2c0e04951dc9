"""Random configuration cycles, register accesses and interrupts on a passed-through device: ``python -m`` it for more.

The model behind it refuses what vfio-pci would not take, and counts it; DMA of the device goes where its registers
happen to point. Nothing may raise, touch what is not the guest's, or leave anything open.
"""

from __future__ import annotations

import argparse
import random
import time

from tests.hw.pci.test_passthru import RAM, Rig

_SIZES = (1, 1, 2, 2, 4, 4, 4, 8)
_VALUES = (0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x8000, 0xC000, 0xC0000000, 0xFEE00000, RAM - 8, RAM)


def _value(pick: random.Random, size: int) -> int:
    value = pick.choice(_VALUES) if pick.random() < 0.5 else pick.getrandbits(64)
    return value & (1 << 8 * size) - 1


def run(count: int, seed: int) -> None:
    """``count`` accesses. Raises ``AssertionError`` if the device was asked what no device may be asked."""
    pick = random.Random(seed)
    rig = Rig()
    rig.direct.can_bind = seed % 2 == 0
    try:
        for number in range(count):
            _step(rig, pick)
            if number % 64 == 0:
                rig.serve()
                rig.ioapic.eoi(pick.randrange(256))
                rig.hardware.accesses.clear()
        assert rig.hardware.violations == []
        rig.bus.reset()
        assert rig.get(0, 4) == 0x11E8_1234
    finally:
        rig.close()
    assert rig.kernel.fds == rig.direct.there == rig.direct.bound == {}


def _step(rig: Rig, pick: random.Random) -> None:
    where, size = pick.random(), pick.choice(_SIZES)
    value, write = _value(pick, size), pick.random() < 0.6
    if where < 0.4:
        offset = pick.choice((pick.randrange(256), pick.randrange(0x40), pick.randrange(4096)))
        number = rig.function.address.device << 3
        if write:
            rig.bus.write_config(number, offset, size, value)
        else:
            assert 0 <= rig.bus.read_config(number, offset, size) < 1 << 8 * size
        return
    if where < 0.42:  # as a driver would set it up, or most of the rest has nobody to go to
        rig.put(0x04, 2, pick.choice((0x0007, 0x0407, 0x0003)))
        return
    bars = [bar for bar in rig.function.bars if bar.mapped is not None]
    if not bars:
        return
    bar = pick.choice(bars)
    offset = (
        pick.choice((pick.randrange(bar.size), pick.randrange(0x28), 0x1000 + pick.randrange(0x60), 0x18)) % bar.size
    )
    space = rig.pio if bar.size == 32 else rig.mmio
    size = min(size, 4) if bar.size == 32 else size
    address = bar.mapped + offset
    if write:
        space.write(address, size, value & (1 << 8 * size) - 1)
    else:
        got = space.read(address, size)
        assert got is None or 0 <= got < 1 << 8 * size


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    run(arguments.count, arguments.seed)
    print(f"{arguments.count} accesses in {time.monotonic() - started:.0f} s")
