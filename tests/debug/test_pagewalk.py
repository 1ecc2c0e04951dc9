"""Page walks through tables that are laid out by hand, in each way of paging (SDM Vol. 3A §4)."""

import pytest

from pyhyve.debug.pagewalk import walk

PG, PE = 1 << 31, 1
PSE, PAE, LA57 = 1 << 4, 1 << 5, 1 << 12
LMA = 1 << 10


def reader(table):
    return lambda gpa, size: table.get(gpa, 0) & ((1 << 8 * size) - 1) if gpa < 0x100000 else None


def test_without_paging_an_address_is_physical():
    found = walk(reader({}), PE, 0, 0, 0, 0x1234)
    assert (found.gpa, found.entries) == (0x1234, ())


def test_four_levels_down_to_a_4_kib_page():
    gva = 0xFFFF_8880_0040_3123
    table = {
        0x1000 + 8 * (gva >> 39 & 511): 0x2003,
        0x2000 + 8 * (gva >> 30 & 511): 0x3003,
        0x3000 + 8 * (gva >> 21 & 511): 0x4067,
        0x4000 + 8 * (gva >> 12 & 511): 0x8000_0000_0007_7163,
    }
    found = walk(reader(table), PG | PE, 0x1018, PAE, LMA, gva)
    assert found.paging == "4-level paging"
    assert [e.name for e in found.entries] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert (found.gpa, found.size) == (0x77123, 4096)
    assert [e.gpa for e in found.entries] == sorted(table)
    assert found.entries[2].flags == "P W U A D"
    assert found.entries[3].flags == "P W A D G NX"


@pytest.mark.parametrize(("level", "size"), [("PDE", 2 << 20), ("PDPTE", 1 << 30)])
def test_large_pages_end_the_walk(level, size):
    gva = 0x40_2345
    table = {0x1000: 0x2003, 0x2000: 0x3003, 0x3010: 0xA0_1083}  # bit 12 is PAT in a large page
    if level == "PDPTE":
        table[0x2000] = 0x4000_0083
    found = walk(reader(table), PG | PE, 0x1000, PAE, LMA, gva)
    assert found.entries[-1].name == level
    assert "PS" in found.entries[-1].flags
    assert (found.gpa, found.size) == ((0xA0_0000 if level == "PDE" else 0x4000_0000) | gva % size, size)


def test_five_levels():
    table = {0x1000 + 8 * 1: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x83}
    found = walk(reader(table), PG | PE, 0x1000, PAE | LA57, LMA, 1 << 48 | 0x777)
    assert [e.name for e in found.entries] == ["PML5E", "PML4E", "PDPTE", "PDE"]
    assert found.gpa == 0x777


def test_pae():
    table = {0x1000 + 8 * 3: 0x2001, 0x2000: 0x3003, 0x3000 + 8 * 2: 0x9003}
    found = walk(reader(table), PG | PE, 0x1000, PAE, 0, 0xC000_2010)
    assert found.paging == "PAE paging"
    assert found.gpa == 0x9010


def test_32_bit():
    table = {0x1000 + 4 * 1: 0x2003, 0x2000 + 4 * 1: 0x8003}
    found = walk(reader(table), PG | PE, 0x1000, 0, 0, 0x40_1FFF)
    assert [e.name for e in found.entries] == ["PDE", "PTE"]
    assert found.gpa == 0x8FFF


def test_a_4_mib_page_has_40_address_bits():
    table = {0x1000 + 4 * 1: 0x0140_2083}
    found = walk(reader(table), PG | PE, 0x1000, PSE, 0, 0x40_1FFF)
    assert (found.gpa, found.size) == (0x1_0140_1FFF, 4 << 20)
    without = walk(reader({**table, 0x0140_2004: 0}), PG | PE, 0x1000, 0, 0, 0x40_1FFF)
    assert without.gpa is None, "without CR4.PSE the bit means nothing"


def test_it_ends_where_an_entry_is_not_present():
    found = walk(reader({0x1000: 0x2003}), PG | PE, 0x1000, PAE, LMA, 0)
    assert found.gpa is None
    assert [(e.name, e.flags) for e in found.entries] == [("PML4E", "P W"), ("PDPTE", "-")]


def test_it_ends_where_a_table_is_not_in_memory():
    found = walk(reader({0x1000: 0x7F0_0003}), PG | PE, 0x1000, PAE, LMA, 0)
    assert found.gpa is None
    assert "no memory for the PDPTE at 0x7f00000" in found.paging


def test_an_address_that_is_not_canonical_is_nowhere():
    assert "not a canonical" in walk(reader({}), PG | PE, 0x1000, PAE, LMA, 1 << 47).paging
