"""A machine of simple CPUs around the real server, the real event loop and the real vCPU threads.

Each instruction is one byte and does nothing but move RIP. A CPU goes round in [``START``, ``END``); the instruction at
``STORE`` writes the word ``WATCHED``. One at ``PORT`` leaves for a port first.
"""

import threading

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.msr import MsrBus
from pyhyve.bus.pio import PioBus
from pyhyve.debug.gdb.server import GdbServer
from pyhyve.errors import BackendError
from pyhyve.loop import EventLoop
from pyhyve.memory import GuestMemory
from pyhyve.vcpu import STATUS_OF, VERDICT_OF, Platform, Vcpu
from pyhyve.vcpu_set import VcpuSet
from pyhyve.vmm.api import Capability, CpuidEntry, PointKind
from pyhyve.vmm.exits import Bogus, Debug, InOut, Mtrap
from pyhyve.vmm.registers import Access, Reg, Segment
from tests.fakecpu import ScriptedCpu

START, END = 0x1000, 0x1040
STORE, PORT, WATCHED = 0x1010, 0x1020, 0x2000
UNMAPPED = 0x100_0000
MOST_POINTS = 6


class SimpleCpu(ScriptedCpu):
    def __init__(self, index):
        super().__init__(index)
        self.registers = {Reg.RIP: START, Reg.RFLAGS: 2, Reg.CR0: 0x80000011}
        self.segment = Segment(0x08, 0, 0xFFFFFFFF, int(Access.PRESENT | Access.S | Access.LONG) | 0xB)
        self.area = bytearray(832)
        self.points = frozenset()
        self.point_calls = 0
        self.inside = False
        self.entered = threading.Event()
        self._over = True
        self._left = False

    def run(self):
        self.inside = True
        try:
            self.entered.set()
            return self._run()
        finally:
            self.inside = False

    def _run(self):
        while True:
            if self._kicked.wait(0 if self.capabilities.get(Capability.MTRAP_EXIT) else 0.0002):
                self._kicked.clear()
                return Bogus()
            rip = self.registers[Reg.RIP]
            if not self._over and any(p.kind is PointKind.EXECUTE and p.gva == rip for p in self.points):
                self._over = True
                return Debug(rip)
            if rip == PORT and not self._left:
                self._left = True
                return InOut(0x80, 1, False, 0)
            self._left = self._over = False
            self.registers[Reg.RIP] = rip + 1 if rip + 1 < END else START
            for point in self.points:
                if rip == STORE and point.kind is not PointKind.EXECUTE and point.gva == WATCHED:
                    self._over = True
                    return Debug(rip + 1, WATCHED)
            if self.capabilities.get(Capability.MTRAP_EXIT):
                self._over = True
                return Mtrap()

    def _outside(self):
        assert not self.inside, "a vCPU was touched while it ran"

    def set_capability(self, cap, on):
        self._outside()
        super().set_capability(cap, on)

    def set_points(self, points):
        self._outside()
        self.point_calls += 1
        if len(points) > MOST_POINTS:
            raise BackendError("too many points")
        self.points = frozenset(points)

    def set_registers(self, values):
        self._outside()
        super().set_registers(values)
        self._over = self._over or Reg.RIP in values

    def get_segment(self, name):
        return self.segment

    def set_segment(self, name, value):
        self._outside()
        self.segment = value

    def get_xsave(self):
        return bytes(self.area)

    def set_xsave(self, data):
        self._outside()
        self.area = bytearray(data)

    def translate(self, gva):
        return gva if gva < UNMAPPED else None


class SimplePart:
    def reset(self):
        pass

    def save(self):
        nested = {"name": "x", "raw": bytes(100)}
        return {"version": 1, "_level": 3, "table": [1, 2], "nested": nested, "rows": [{"a": 1}]}

    def restore(self, state):
        pass


class SimpleMachine:
    """``cpus`` CPUs that run from ``start`` on, and a server on a port of its own."""

    def __init__(self, cpus=1, *, wait=False):
        self.memory = GuestMemory(1 << 20)
        self.memory.write(START, bytes(range(END - START)))
        self.loop = EventLoop()
        self.parts = {"simple": SimplePart()}
        self.cpuid = [CpuidEntry(0xD, 0, 7, 832, 832, 0), CpuidEntry(0xD, 2, 256, 576, 0, 0)]
        self.vcpus = VcpuSet(self.loop.stop)
        platform = Platform(PioBus(), MmioBus(), MsrBus())
        self.cpus = [SimpleCpu(index) for index in range(cpus)]
        self.vcpus.vcpus = [Vcpu(cpu, self.vcpus, platform) for cpu in self.cpus]
        self.gdb = GdbServer(self, "127.0.0.1", 0, wait=wait)
        self._thread = threading.Thread(target=self.loop.run)

    @property
    def status(self):
        return self.vcpus.outcome

    def stats(self):
        return {"vcpu0.inout": 3.0, "vcpu0.hlt": 0.0}

    def power(self, reason):
        self.vcpus.end(STATUS_OF[VERDICT_OF[reason]])

    def start(self):
        for index in range(len(self.cpus)):
            self.vcpus.add(index)
        self._thread.start()

    def ended(self):
        """Wait for the end; the status."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.vcpus.join()
        return self.status

    def close(self):
        self.vcpus.end(4)
        self.ended()
        self.gdb.close()
        self.loop.close()
        self.memory.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self.close()
