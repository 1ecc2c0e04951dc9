"""docs/compatibility.md against the code: the tests it names exist, and it leaves nothing out."""

import re
from functools import cache
from pathlib import Path

import pytest

from pyhyve.commands.options import LPC_DEVICES, OPTIONS
from pyhyve.config import DEFAULTS
from pyhyve.machine import NOT_YET

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "pyhyve"
PAGE = TESTS.parent / "docs" / "compatibility.md"
STATES = {"works", "differs", "ignored", "refused", "not yet", "not on Linux"}
TEST_NAME = re.compile(r"`([\w/]+\.py)::(\w+)`")
VARIABLE = re.compile(r"""\bconfig\.(?:get|get_bool|get_int|get_size|require|set)\(\s*["']([\w.-]+)["']""")


@cache
def page():
    return PAGE.read_text()


def rows():
    """Every row of every table with four columns."""
    for line in page().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[1] not in ("here", "---"):
            yield cells


def missing(names):
    return sorted(name for name in set(names) if f"`{name}" not in page())


def test_every_row_says_how_it_stands():
    found = list(rows())
    assert len(found) > 100
    assert [row for row in found if row[1] not in STATES] == []


def test_every_row_that_works_names_a_test():
    assert [row[0] for row in rows() if row[1] in ("works", "differs") and not TEST_NAME.search(row[3])] == []


@pytest.mark.parametrize("file", sorted({file for file, _ in TEST_NAME.findall(PAGE.read_text())}))
def test_the_tests_that_are_named_exist(file):
    path = TESTS / file
    defined = set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)) if path.exists() else set()
    named = {name for found, name in TEST_NAME.findall(page()) if found == file}
    assert named - defined == set()


def test_every_option_has_a_row():
    first = " ".join(row[0] for row in rows())
    assert [letter for letter in OPTIONS if not re.search(rf"`-{letter}[ `]", first)] == []
    assert [name for name in LPC_DEVICES if f"`-l {name}" not in first and f"`lpc.{name}.path`" not in first] == []


def test_every_variable_with_a_default_or_a_refusal_has_a_row():
    assert missing([*DEFAULTS, *NOT_YET]) == []


def test_every_variable_that_the_machine_reads_has_a_row():
    read = {
        name
        for file in SOURCE.rglob("*.py")
        if file.name != "pyhyve.py"  # has its own kind of configuration
        for name in VARIABLE.findall(file.read_text())
    }
    assert {"boot.kernel", "x86.strictio", "memory.wired"} <= read
    assert missing(read) == []
