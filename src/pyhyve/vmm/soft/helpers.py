"""Helpers by number: what emitted code cannot do itself, one C function an instruction.

Opcode-table rows name their helper (``@iret``); the number is the name's place in ``opcodes.HELPERS``. A module that
implements helpers registers them when it is imported.
"""

from pyhyve.vmm.soft import opcodes


def register(name, helper):
    """Let ``helper`` execute the instructions whose table rows say ``@name``."""
    table[opcodes.HELPER_NUMBER[name]] = helper
