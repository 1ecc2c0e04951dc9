"""The sixteen ISA interrupts: which are taken by the board, and which a PCI line may use.

Document: Intel 82371SB (PIIX3) data sheet §2.2.6 for the interrupts that a PIRQ may be routed to. The counting is that
of bhyve: a board device reserves its interrupt or, where it may share, counts as one more user; a PCI line gets the
interrupt with the fewest users, the lowest of several.
"""

from __future__ import annotations

from collections.abc import Iterable

IRQS = 16
ROUTABLE = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})
"""Timer, keyboard, cascade, clock and FPU (0, 1, 2, 8, 13) are wired on the board."""


class LegacyIrqs:
    """How many use each interrupt. ``reserved`` ones belong to one device alone."""

    def __init__(self, reserved: Iterable[int] = (), shared: Iterable[int] = ()) -> None:
        self._users: dict[int, int] = dict.fromkeys(sorted(ROUTABLE), 0)
        for irq in reserved:
            self.reserve(irq)
        for irq in shared:
            self.use(irq)

    @property
    def free(self) -> tuple[int, ...]:
        """The interrupts that PCI lines may use, in ascending order."""
        return tuple(self._users)

    def users(self, irq: int) -> int | None:
        """How many share ``irq``; None for one that PCI lines may not use."""
        return self._users.get(irq)

    def reserve(self, irq: int) -> None:
        """Keep ``irq`` for a device that does not share it. Raises ``ValueError`` if somebody shares it already."""
        if self._users.get(irq, 0):
            raise ValueError(f"interrupt {irq} is in use")
        self._users.pop(irq, None)

    def use(self, irq: int) -> None:
        """Count one more device on ``irq``. Raises ``ValueError`` if it is not to be shared."""
        if irq not in self._users:
            raise ValueError(f"interrupt {irq} is not free")
        self._users[irq] += 1

    def allocate(self) -> int:
        """The interrupt for one more PCI line. Raises ``ValueError`` if the board has taken them all."""
        if not self._users:
            raise ValueError("no interrupt is free for PCI")
        irq = min(self._users, key=lambda number: self._users[number])
        self._users[irq] += 1
        return irq
