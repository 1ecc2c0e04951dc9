"""The bvm console (``-b``): a console at I/O port 0x220, for guests too young to have a UART driver.

No document but bhyve's ``consport.c``. FreeBSD's ``bvmconsole`` driver looks for the signature and then polls.
``charport`` says how bytes pass through.
"""

from __future__ import annotations

from pyhyve.hw.chipset.charport import CharPort


class BvmConsole(CharPort):
    """The console, on standard input and output."""

    NAME = "bvmcons"
    PORT = 0x220
    SIGNATURE = ord("b") << 8 | ord("v")
