"""KVM's own statistics of a machine or a vCPU, as names and values.

Source: KVM API documentation §4.131 KVM_GET_STATS_FD. A descriptor gives a header, then one descriptor for each
statistic (kind, size, offset, name), then a block of 64-bit values that is read afresh each time.
"""

from __future__ import annotations

import os
import struct

from pyhyve.vmm.kvm import ioctls

_HEADER = struct.Struct("=6I")  # flags, name size, number, id offset, descriptor offset, data offset
_DESCRIPTOR = struct.Struct("=IhHII")  # flags, exponent, size, offset, bucket size
_TYPE_MASK = 0xF
_SCALARS = (0, 1, 2)  # cumulative, instant, peak; the others are histograms


class Counters:
    """Statistics of the VM or vCPU behind ``owner``; empty where this KVM has none."""

    def __init__(self, owner: int) -> None:
        self._names: dict[str, int] = {}
        self._data = 0
        self._length = 0
        try:
            self._fd = ioctls.call(owner, ioctls.GET_STATS_FD)
        except OSError:
            self._fd = -1
            return
        self._read_layout()

    def _read_layout(self) -> None:
        header = os.pread(self._fd, _HEADER.size, 0)
        _, name_size, count, _, descriptors, self._data = _HEADER.unpack(header)
        stride = _DESCRIPTOR.size + name_size
        table = os.pread(self._fd, stride * count, descriptors)
        for at in range(0, len(table), stride):
            flags, _, size, offset, _ = _DESCRIPTOR.unpack_from(table, at)
            name = table[at + _DESCRIPTOR.size : at + stride].split(b"\0", 1)[0].decode("ascii", "replace")
            self._length = max(self._length, offset + 8 * size)
            if flags & _TYPE_MASK in _SCALARS and size == 1:
                self._names[name] = offset

    def read(self) -> dict[str, float]:
        """The present values."""
        if self._fd < 0:
            return {}
        data = os.pread(self._fd, self._length, self._data)
        return {name: int.from_bytes(data[at : at + 8], "little") for name, at in self._names.items()}

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
