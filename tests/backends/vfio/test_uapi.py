"""Figures of the kernel's header, and answers and devices that make no sense."""

from __future__ import annotations

import ctypes
import struct

import pytest

from pyhyve.backends.vfio import uapi
from pyhyve.backends.vfio.device import _whole_pages
from pyhyve.hw.pci.passthru_config import find_capabilities, hardware_bytes


def test_requests_and_structures_are_the_kernels() -> None:
    assert uapi.Request.GET_API_VERSION == 0x3B64
    assert uapi.Request.DEVICE_GET_REGION_INFO == 0x3B6C
    assert uapi.Request.IOMMU_MAP_DMA == 0x3B71
    sizes = {
        uapi.GroupStatus: 8,
        uapi.DeviceInfo: 20,
        uapi.RegionInfo: 32,
        uapi.IrqInfo: 16,
        uapi.IrqSet: 20,
        uapi.DmaMap: 32,
        uapi.DmaUnmap: 24,
    }
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes


def test_a_chain_of_capabilities_ends_where_it_turns_back_or_leaves() -> None:
    header = struct.pack("<HHI", 7, 1, 8)
    assert list(uapi.capabilities(bytes(8) + header, 8)) == [(7, 8)]
    assert list(uapi.capabilities(bytes(8) + struct.pack("<HHI", 7, 1, 1000), 8)) == [(7, 8)]
    assert list(uapi.capabilities(bytes(8), 0)) == []
    assert list(uapi.capabilities(bytes(8), 4)) == []


def test_more_areas_than_there_are_bytes_are_cut_off() -> None:
    answer = struct.pack("<HHI", uapi.SPARSE_MMAP, 1, 0) + struct.pack("<II", 1000, 0) + struct.pack("<QQ", 0, 4096)
    assert uapi.sparse_areas(answer, 0) == [(0, 4096)]
    assert uapi.sparse_areas(answer[:10], 0) == []


def test_only_whole_pages_inside_the_region_are_mapped() -> None:
    assert _whole_pages([(0, 100), (0x800, 0x2000), (0x4000, 0x9000)], 0x6000) == [(0x1000, 0x1000), (0x4000, 0x2000)]


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ({0x40: (1, 0x40)}, [1]),
        ({0x40: (1, 0x50), 0x50: (9, 0x40)}, [1, 9]),
        ({0x40: (1, 0x30)}, [1]),
        ({0x40: (1, 0xFC), 0xFC: (5, 0)}, [1, 5]),
    ],
    ids=["itself", "a circle", "the header", "at the end"],
)
def test_a_list_in_configuration_space_that_cannot_be_ends(chain: dict[int, tuple[int, int]], found: list[int]) -> None:
    space = bytearray(256)
    space[6], space[0x34] = 0x10, 0x40
    for offset, (ident, following) in chain.items():
        space[offset : offset + 2] = bytes((ident, following))

    def read(offset: int, size: int) -> int:
        return int.from_bytes(space[offset : offset + size], "little")

    capabilities = find_capabilities(read)
    assert [capability.ident for capability in capabilities] == found
    theirs = hardware_bytes(capabilities)
    assert len(theirs) == 256
    assert not any(theirs[:0x42])
