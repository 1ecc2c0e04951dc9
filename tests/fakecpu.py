"""A vCPU that plays a script of exits, for tests of what lies above the backends."""

import threading

from pyhyve.vmm.api import VirtualCpu
from pyhyve.vmm.exits import Bogus
from pyhyve.vmm.registers import Table


class ScriptedCpu(VirtualCpu):
    """``run`` gives the exits of ``script`` one after the other, then sleeps until it is kicked."""

    def __init__(self, index=0, script=()):
        self.index = index
        self.script = list(script)
        self.answers = []
        self.exceptions = []
        self.registers = {}
        self.segments = {}
        self.tables = {}
        self.capabilities = {}
        self.apic_mode = None
        self.asleep = threading.Event()
        self._kicked = threading.Event()

    def run(self):
        if self._kicked.is_set():
            self._kicked.clear()
            return Bogus()
        if self.script:
            return self.script.pop(0)
        self.asleep.set()
        assert self._kicked.wait(30), "nobody kicked the vCPU"
        self._kicked.clear()
        return Bogus()

    def answer(self, value):
        self.answers.append(value)

    def kick(self):
        self._kicked.set()

    def set_capability(self, cap, on):
        self.capabilities[cap] = on

    def set_apic_mode(self, mode):
        self.apic_mode = mode

    def get_registers(self, names):
        return {name: self.registers.get(name, 0) for name in names}

    def set_registers(self, values):
        self.registers.update(values)

    def get_segment(self, name):
        return self.segments[name]

    def set_segment(self, name, value):
        self.segments[name] = value

    def get_table(self, name):
        return self.tables.get(name, Table())

    def set_table(self, name, value):
        self.tables[name] = value

    def get_msr(self, index):
        raise KeyError(index)

    def set_msr(self, index, value):
        raise KeyError(index)

    def get_xsave(self):
        return bytes(576)

    def set_xsave(self, data):
        pass

    def get_lapic(self):
        return bytes(1024)

    def set_lapic(self, data):
        pass

    def translate(self, gva):
        return gva

    def inject_exception(self, vector, error_code=None):
        self.exceptions.append((vector, error_code))

    def inject_nmi(self):
        pass
