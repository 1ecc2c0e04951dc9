"""Helpers by number: what emitted code cannot do itself, one C function an instruction.

Opcode-table rows name their helper (``@iret``); the number is the name's place in ``opcodes.HELPERS``. A module that
implements helpers registers them when it is imported.
"""

import cython
from cython.cimports.pyhyve.vmm.soft.state import ud

from pyhyve.vmm.soft import opcodes


def missing(s, insn):
    return ud(s)


def register(name, helper):
    """Let ``helper`` execute the instructions whose table rows say ``@name``."""
    table[cython.cast(cython.int, opcodes.HELPER_NUMBER[name])] = helper


def unregistered():
    """Names of helpers that no module has registered: they raise #UD."""
    i: cython.int
    names = []
    for i in range(MAX_HELPERS):
        if table[i] == missing and i < cython.cast(cython.int, len(opcodes.HELPERS)):
            names.append(opcodes.HELPERS[i])
    return names


def _clear():
    i: cython.int
    for i in range(MAX_HELPERS):
        table[i] = missing


_clear()
