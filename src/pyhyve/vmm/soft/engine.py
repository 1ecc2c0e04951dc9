"""The engine as the contract of ``vmm.api`` has it: ``SoftHypervisor``, ``SoftMachine``, ``SoftCpu``.

What the C side reports in ``CpuState.exit`` becomes an exit object here; doorbells are rung here. No arithmetic on
Python numbers happens in this room that could need floating point: see ``docs/engine.md`` on compiler flags.
"""

import os
import threading
import time

import cython
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.pyhyve.vmm.soft.blocks import (
    NO_MODE,
    NO_PAGE,
    Block,
    CodeCache,
    code_changed,
    code_create,
    code_destroy,
    code_flush,
    code_grow,
)
from cython.cimports.pyhyve.vmm.soft.cpu import (
    cpu_run,
    fsgsbase_allowed,
    slow_access,
    span_access,
    slow_finish,
    unwatch_region,
    watch_region,
)
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, WATCH_WRITE, debug_update, points_changed
from cython.cimports.pyhyve.vmm.soft.lapic import (
    lapic_create,
    lapic_deliver_msi,
    lapic_destroy,
    lapic_get_page,
    lapic_set_base,
    lapic_set_page,
    lapic_set_tpr,
    lapic_started,
    timer_loop,
    timer_poke,
    wake,
)
from cython.cimports.pyhyve.vmm.soft.physical import ram_host
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush, tlb_init
from cython.cimports.pyhyve.vmm.soft.walks import walk
from cython.cimports.pyhyve.vmm.soft.stack import stack_create, stack_destroy
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    CS,
    DONE,
    EXIT_DEBUG,
    EXIT_EOI,
    EXIT_FAILED,
    EXIT_HALTED,
    EXIT_HLT,
    EXIT_IN,
    EXIT_INTACK,
    EXIT_KICKED,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_NONE,
    EXIT_OUT,
    EXIT_PAUSE,
    EXIT_RDMSR,
    EXIT_SIPI,
    EXIT_SPINDOWN,
    EXIT_STEP,
    EXIT_TRIPLE_FAULT,
    EXIT_WRMSR,
    HIT_DEBUGGER,
    MAX_POINTS,
    MAX_WATCHES,
    MMU_KERNEL,
    PENDING_EXTINT,
    PENDING_INTERRUPT,
    PENDING_KICK,
    PENDING_NMI,
    SS,
    JUMP_SETS,
    JUMP_SHIFT,
    STLB_SIZE,
    TLB_SIZE,
    CpuState,
    Engine,
    Segment,
    get_rflags,
    set_rflags,
)
from cython.cimports.pyhyve.vmm.soft.stubs import emit_stubs
from cython.cimports.pyhyve.vmm.soft.threads import lock_code, unlock_code, world_go, world_stop
from cython.cimports.pyhyve.vmm.soft.modes import reset_cpu, update_mode
from cython.cimports.pyhyve.vmm.soft.msr import msr_read, msr_write, set_efer
from cython.cimports.pyhyve.vmm.soft.xstate import AVX512_STATE, AVX_STATE, carried, xsave_size

import pyhyve.vmm.soft.control
import pyhyve.vmm.soft.events
import pyhyve.vmm.soft.evex
import pyhyve.vmm.soft.flags
import pyhyve.vmm.soft.legacy
import pyhyve.vmm.soft.near
import pyhyve.vmm.soft.portio
import pyhyve.vmm.soft.segments
import pyhyve.vmm.soft.strings  # noqa: F401  each registers its helpers
import pyhyve.vmm.soft.syscalls
import pyhyve.vmm.soft.system
import pyhyve.vmm.soft.tables
import pyhyve.vmm.soft.transfers
import pyhyve.vmm.soft.vector
import pyhyve.vmm.soft.xsave
from pyhyve.errors import BackendError
from pyhyve.vmm.api import (
    MAX_CPUS,
    ApicMode,
    Capability,
    Chip,
    CpuidEntry,
    Hypervisor,
    PointKind,
    Probe,
    VirtualCpu,
    VirtualMachine,
)
from pyhyve.vmm.exits import (
    Bogus,
    Debug,
    EntryFailed,
    Hlt,
    InOut,
    InstEmul,
    IntAck,
    IoapicEoi,
    Mtrap,
    Pause,
    RdMsr,
    SpindownCpu,
    SpinupAp,
    Suspended,
    SuspendReason,
    WrMsr,
)
from pyhyve.vmm.registers import GENERAL, Reg, SegmentName, Table
from pyhyve.vmm.registers import Segment as SegmentValue
from pyhyve.vmm.soft import cpuid
from pyhyve.vmm.startup import start_at_sipi

CODE_SIZE = 96 << 20
LOW64 = 0xFFFFFFFFFFFFFFFF
_CAPABILITIES = {
    Capability.HLT_EXIT,
    Capability.PAUSE_EXIT,
    Capability.MTRAP_EXIT,
    Capability.UNRESTRICTED_GUEST,
    Capability.ENABLE_INVPCID,
}
_SEGMENTS = {SegmentName.ES: 0, SegmentName.CS: 1, SegmentName.SS: 2, SegmentName.DS: 3, SegmentName.FS: 4,
             SegmentName.GS: 5}  # fmt: skip
_GENERAL = {reg: number for number, reg in enumerate(GENERAL)}
_DEBUG = {Reg.DR0: 0, Reg.DR1: 1, Reg.DR2: 2, Reg.DR3: 3, Reg.DR6: 6, Reg.DR7: 7}
_NEEDED = {"BMI2": "bmi2", "AVX2": "avx2", "XSAVE": "xsave"}
_frequency = []


def _missing_features():
    """What the host's CPU lacks that emitted code uses."""
    leaf1 = cpuid.host_leaf(1, 0)
    leaf7 = cpuid.host_leaf(7, 0)
    have = {"XSAVE": (leaf1[2] >> 27) & 1, "AVX2": (leaf7[1] >> 5) & 1, "BMI2": (leaf7[1] >> 8) & 1}
    return [name for name in have if not have[name]]


class SoftHypervisor(Hypervisor):
    """The CPU engine. Its ``probe`` asks for AVX2 and BMI2 (x86-64-v3), which emitted code uses."""

    name = "soft"

    def probe(self):
        missing = _missing_features()
        if missing:
            return Probe(False, False, "the host's CPU lacks " + ", ".join(missing) + ", which the CPU engine needs")
        return Probe(True, True, "the CPU engine runs on this host")

    def create(self, name, memory, cpus):
        if not 1 <= cpus <= MAX_CPUS:
            raise BackendError(f"{cpus} vCPUs requested but only {MAX_CPUS} available")
        return SoftMachine(name, memory, cpus)


@cython.cclass
class SoftMachine:
    """One virtual machine on the engine."""

    def __init__(self, name, memory, cpus):
        number: cython.int = 0
        if not _frequency:
            _frequency.append(cpuid.measure_tsc_hz())
        self.name = name
        self.memory = memory
        self.cpus = []
        self.cpuid_rows = None
        self.doorbells = {}
        self.code_seen = {}
        self.provides = frozenset({Chip.LAPIC})
        self.timer = None
        self.lock = threading.Lock()
        self.e = cython.cast(cython.pointer(Engine), calloc(1, cython.sizeof(Engine)))
        if self.e == cython.NULL:
            raise BackendError("no memory for the CPU engine")
        self.e.tsc_hz = _frequency[0]
        self.e.tsc_start = cpuid.host_tsc()
        self.e.wall_start = time.time_ns()
        self.e.apic_hz = 1000000000
        self.e.xsave_mask = carried
        for region in memory.regions:
            self.e.regions[number].gpa = region.gpa
            self.e.regions[number].size = region.size
            self.e.regions[number].host = memory.host_address(region.gpa)
            number += 1
        self.e.region_count = number

    def __dealloc__(self):
        i: uint32_t
        if self.e != cython.NULL:
            self._unwatch()
            code_destroy(self.e)
            for i in range(self.e.cpu_count):
                if self.e.cpus[i] != cython.NULL:
                    lapic_destroy(self.e.cpus[i])
                    stack_destroy(self.e.cpus[i])
                    free(self.e.cpus[i])
            free(self.e)

    def capability(self, cap):
        return cap in _CAPABILITIES

    def map_memory(self, gpa, size, offset, *, readonly=False):
        if gpa % 4096 or size % 4096 or offset % 4096 or size <= 0:
            raise BackendError(f"a memory mapping is made of whole pages, not {size} bytes at {gpa:#x}")
        if offset + size > self.memory.size:
            raise BackendError(f"{size} bytes at offset {offset:#x} are not inside the memory file")
        with self.lock:  # stopping the world lets go of the GIL
            self._map(gpa, size, offset, readonly)

    def _map(self, gpa, size, offset, readonly):
        number: uint32_t = self.e.region_count
        i: uint32_t
        start: uint64_t = gpa
        end: uint64_t = gpa + size
        if number == 16:
            raise BackendError("too many memory regions")
        for i in range(number):
            if start < self.e.regions[i].gpa + self.e.regions[i].size and self.e.regions[i].gpa < end:
                raise BackendError(f"memory is mapped at {gpa:#x} already")
        host = self.memory.host_base + offset
        self._stop_world()
        self.e.regions[number].gpa = gpa
        self.e.regions[number].size = size
        self.e.regions[number].host = host
        self.e.regions[number].readonly = readonly
        self.e.region_count = number + 1
        grown = self.e.code == cython.NULL or code_grow(self.e) == 0
        if not grown:
            self.e.region_count = number
        self._forget_and_go()
        if not grown:
            raise BackendError("no memory for the code of a new memory region")

    def unmap_memory(self, gpa):
        i: uint32_t
        where: uint64_t = gpa
        with self.lock:
            for i in range(self.e.region_count):
                if self.e.regions[i].gpa == where:
                    self._stop_world()
                    self.e.region_count -= 1
                    self.e.regions[i] = self.e.regions[self.e.region_count]
                    self._forget_and_go()
                    return
        raise KeyError(gpa)

    def _stop_world(self):
        e: cython.pointer(Engine) = self.e
        with cython.nogil:
            world_stop(e, cython.NULL)

    def _forget_and_go(self):
        """The memory map has changed: nothing that was found out under the old one holds."""
        i: uint32_t
        for i in range(self.e.cpu_count):
            tlb_flush(self.e.cpus[i], False)
        if self.e.code != cython.NULL:
            lock_code(self.e, cython.NULL)
            code_flush(self.e)
            unlock_code(self.e)
        world_go(self.e)

    def memory_written(self, gpa, length):
        e: cython.pointer(Engine) = self.e
        start: uint64_t = gpa
        size: uint64_t = length
        with cython.nogil:
            code_changed(e, start, size)

    def code_pages(self):
        """The addresses of the pages that have translated code, or soon will."""
        e: cython.pointer(Engine) = self.e
        c: cython.pointer(CodeCache)
        numbers: cython.pointer(uint64_t) = cython.NULL
        number: uint64_t
        count: uint64_t = 0
        with cython.nogil:
            lock_code(e, cython.NULL)  # the table may be replaced by a larger one
            c = cython.cast(cython.pointer(CodeCache), e.code)
            if c != cython.NULL:
                for number in range(c.page_count):
                    count += c.pages[number] != cython.NULL and c.pages[number].claimed != 0
                numbers = cython.cast(cython.pointer(uint64_t), malloc(8 * count + 8))
                count = 0
                for number in range(c.page_count if numbers != cython.NULL else 0):
                    if c.pages[number] != cython.NULL and c.pages[number].claimed:
                        numbers[count] = number
                        count += 1
            unlock_code(e)
        if c != cython.NULL and numbers == cython.NULL:
            raise MemoryError
        found = [numbers[number] << 12 for number in range(count)]
        free(numbers)
        return found

    def device_wrote(self):
        """Drop the code of every page that is not what it was at the last call: DMA passes by all that watches writes.

        A page that had no code then counts as changed. What cannot be seen is a page that was changed, translated and
        changed back between two calls.
        """
        before, self.code_seen = self.code_seen, {}
        for gpa in self.code_pages():
            if self.memory.contains(gpa, 4096):  # no ROM: devices do not reach it
                data = self.memory.read(gpa, 4096)
                self.code_seen[gpa] = data
                if before.get(gpa) != data:
                    self.memory_written(gpa, 4096)

    def map_host(self, gpa, size, address):
        return False

    def unmap_host(self, gpa):
        raise BackendError(f"no mapping starts at {gpa:#x}")

    def bind_msi(self, fd, address, data):
        return False

    def unbind_msi(self, fd):
        raise BackendError("no message is bound")

    def watch_eoi(self, gsi, fd):
        raise BackendError("the CPU engine has no I/O APIC of its own")

    def create_vcpu(self, index):
        cpu = SoftCpu(self, index)
        self.cpus.append(cpu)
        if self.cpuid_rows is not None:
            self.set_cpuid(self.cpuid_rows)
        return cpu

    def set_cpuid(self, entries):
        number: uint32_t = 0
        i: uint32_t
        shown: uint64_t = 0
        self.cpuid_rows = list(entries)
        for entry in self.cpuid_rows:
            if number == 128:
                raise BackendError("too many CPUID leaves")
            self.e.cpuid[number].leaf = entry.leaf
            self.e.cpuid[number].any_subleaf = entry.subleaf is None
            self.e.cpuid[number].subleaf = entry.subleaf or 0
            self.e.cpuid[number].eax = entry.eax
            self.e.cpuid[number].ebx = entry.ebx
            self.e.cpuid[number].ecx = entry.ecx
            self.e.cpuid[number].edx = entry.edx
            number += 1
            if entry.leaf == 0xD and not entry.subleaf:
                # What the guest cannot use need not be saved.
                shown = entry.eax
        self.e.cpuid_count = number
        self.e.xsave_mask = carried if shown & AVX512_STATE else carried & AVX_STATE

    def supported_cpuid(self):
        return [CpuidEntry(*row) for row in cpuid.supported_cpuid(_frequency[0])]

    def set_irq(self, gsi, level):
        raise BackendError("the CPU engine has no I/O APIC of its own")

    def set_extint(self, level):
        if self.e.cpu_count:
            self.e.cpus[0].intr_line = 1 if level else 0
            if level:
                wake(self.e.cpus[0], PENDING_EXTINT)

    def send_msi(self, address, data):
        lapic_deliver_msi(self.e, address, data)

    def clock_port(self, port, clock):
        e: cython.pointer(Engine) = self.e
        i: cython.int
        place: cython.int = -1
        reads = 0
        for i in range(4):
            if e.clock_ports[i].port == port:
                reads = e.clock_ports[i].reads
                e.clock_ports[i].port = 0
                place = i
                break
            if e.clock_ports[i].port == 0 and place < 0:
                place = i
        if clock is not None and place >= 0:
            tsc_hz = int(e.tsc_hz)
            elapsed = time.monotonic_ns() - clock.start_ns
            e.clock_ports[place].start = (cpuid.host_tsc() - elapsed * tsc_hz // 1000000000) & 0xFFFFFFFFFFFFFFFF
            e.clock_ports[place].size = 1 if clock.halves else clock.bits // 8
            e.clock_ports[place].hz = clock.hz
            e.clock_ports[place].base = clock.base
            e.clock_ports[place].mask = (1 << clock.bits) - 1
            e.clock_ports[place].down = clock.step < 0
            e.clock_ports[place].halves = clock.halves
            e.clock_ports[place].high_next = clock.high_next
            e.clock_ports[place].reads = 0
            e.clock_ports[place].port = port
        return reads

    def add_doorbell(self, address, size, fd, *, pio=False, match=None):
        self.doorbells.setdefault((pio, address, size), []).append((match, fd))

    def remove_doorbell(self, address, size, fd, *, pio=False, match=None):
        bells = self.doorbells[(pio, address, size)]
        bells.remove((match, fd))
        if not bells:
            del self.doorbells[(pio, address, size)]

    def ring(self, pio, address, size, value):
        """Signal the doorbells that a write of ``value`` rings. False if there is none."""
        rung = False
        for match, fd in self.doorbells.get((pio, address, size), ()):
            if match is None or match == value:
                os.eventfd_write(fd, 1)
                rung = True
        return rung

    def start_timer(self):
        if self.timer is None:
            with self.lock:
                if self.timer is None:
                    self.timer = threading.Thread(target=self._run_timer, name="timer", daemon=True)
                    self.timer.start()

    def _run_timer(self):
        e: cython.pointer(Engine) = self.e
        with cython.nogil:
            timer_loop(e)

    def close(self):
        if self.closed:
            return
        self.closed = True
        if self.timer is not None:
            self.e.timer_stop = 1
            timer_poke(self.e)
            self.timer.join()
        self._unwatch()

    def _unwatch(self):
        c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), self.e.code)
        if c != cython.NULL:
            unwatch_region(c.rx + c.start)

    def blocks(self):
        """Every translated block that is still valid, oldest first, while no vCPU runs: for dumps and profilers.

        A tuple each: guest-physical address, mode bits, guest bytes, host address, host code, and the pairs (offset
        in the host code, page offset of the guest instruction), hot parts first.
        """
        c: cython.pointer(CodeCache)
        b: cython.pointer(Block)
        found = []
        i: uint32_t
        k: uint32_t
        first: uint32_t
        host: uint64_t
        if self.e.code == cython.NULL:
            return found
        c = cython.cast(cython.pointer(CodeCache), self.e.code)
        for i in range(c.index_count):
            b = c.index[i]
            if not b.valid:
                continue
            first = 4096 - (b.gpa & 0xFFF)
            if first > b.size:
                first = b.size
            guest = b""
            host = ram_host(self.e, b.gpa, False)
            if host:
                guest = PyBytes_FromStringAndSize(cython.cast(cython.p_char, host), first)
            if b.gpa2 != NO_PAGE and ram_host(self.e, b.gpa2, False):
                host = ram_host(self.e, b.gpa2, False)
                guest += PyBytes_FromStringAndSize(cython.cast(cython.p_char, host), b.size - first)
            places = []
            for k in range(b.map_count):
                places.append((b.map[k].host, b.map[k].guest))
            code = PyBytes_FromStringAndSize(
                cython.cast(cython.p_char, c.rw + (b.code - c.rx)), b.host_end - b.code
            )
            found.append((b.gpa, b.mode, guest, b.code, code, places))
        return found

    def stats(self):
        c: cython.pointer(CodeCache)
        if self.e.code == cython.NULL:
            return {}
        c = cython.cast(cython.pointer(CodeCache), self.e.code)
        return {
            "code_bytes": c.used,
            "data_bytes": c.data_used,
            "blocks_live": c.index_count,
            "code_flushes": c.flushes,
            "invalidated": c.invalidated,
            "tlb_bytes": cython.sizeof(self.e.cpus[0].tlb) + cython.sizeof(self.e.cpus[0].stlb),
            "tsc_hz": self.e.tsc_hz,
        }


VirtualMachine.register(SoftMachine)


@cython.cclass
class SoftCpu:
    """One virtual CPU on the engine, in the reset state."""

    def __init__(self, machine: SoftMachine, index):
        where: cython.p_void = cython.NULL
        i: uint64_t
        s: cython.pointer(CpuState)
        c: cython.pointer(CodeCache)
        words: cython.pointer(uint64_t)
        if index != machine.e.cpu_count or index >= 16:
            raise BackendError(f"vCPU {index} out of order")
        if posix_memalign(cython.address(where), 4096, cython.sizeof(CpuState)):
            raise BackendError("no memory for a vCPU")
        words = cython.cast(cython.pointer(uint64_t), where)
        for i in range(cython.sizeof(CpuState) // 8):
            words[i] = 0
        s = cython.cast(cython.pointer(CpuState), where)
        self.s = s
        self.machine = machine
        self.index = index
        s.self = cython.cast(uint64_t, s)
        s.index = index
        s.engine = machine.e
        s.mask_index = (TLB_SIZE - 1) << 12
        s.mask_high = ~cython.cast(uint64_t, 0xFFF)
        s.mask_half = cython.cast(uint64_t, 1) << 63
        s.mask_jump = (JUMP_SETS - 1) << JUMP_SHIFT
        s.mask_stlb = (STLB_SIZE - 1) << 5
        s.mask_bits[0] = 7
        s.mask_bits[1] = 15
        s.mask_bits[2] = 31
        s.mask_bits[3] = 63
        s.slot_mode = NO_MODE
        s.down = index != 0
        if machine.e.code == cython.NULL:
            if code_create(machine.e, s, CODE_SIZE) < 0:
                raise BackendError("the host gives no memory for translated code")
            c = cython.cast(cython.pointer(CodeCache), machine.e.code)
            emit_stubs(c, s, cython.cast(uint64_t, cython.cast(cython.p_void, slow_access)),
                       cython.cast(uint64_t, cython.cast(cython.p_void, span_access)),
                       cython.cast(uint64_t, cython.cast(cython.p_void, slow_finish)), fsgsbase_allowed())
            if not watch_region(c.rx + c.start, c.rx + c.size, c.stubs.host_fault):
                raise BackendError("too many virtual machines on the CPU engine in one process")
        c = cython.cast(cython.pointer(CodeCache), machine.e.code)
        if stack_create(s, c.stubs.exit_lookup) < 0:
            raise BackendError("no memory for a vCPU")
        if lapic_create(s) < 0:
            raise BackendError("no memory for a local APIC")
        machine.e.cpus[index] = s
        machine.e.cpu_count += 1
        tlb_init(s)
        reset_cpu(s, False)

    def run(self):
        s: cython.pointer(CpuState) = self.s
        kind: uint32_t
        machine: SoftMachine = self.machine
        if machine.timer is None:
            machine.start_timer()
        while True:
            with cython.nogil:
                cpu_run(s)
            kind = s.exit.kind
            if kind == EXIT_IN:
                return InOut(s.exit.address, s.exit.size, True)
            if kind == EXIT_OUT:
                if machine.doorbells and machine.ring(True, s.exit.address, s.exit.size, s.exit.value):
                    continue
                return InOut(s.exit.address, s.exit.size, False, s.exit.value)
            if kind == EXIT_MMIO_READ:
                return InstEmul(s.exit.address, s.exit.size, False)
            if kind == EXIT_MMIO_WRITE:
                if machine.doorbells and machine.ring(False, s.exit.address, s.exit.size, s.exit.value):
                    continue
                return InstEmul(s.exit.address, s.exit.size, True, s.exit.value)
            if kind == EXIT_NONE:
                continue
            return self._other_exit(kind)

    def _other_exit(self, kind: uint32_t):
        s: cython.pointer(CpuState) = self.s
        if kind == EXIT_KICKED:
            return Bogus()
        if kind == EXIT_HLT:
            return Hlt()
        if kind == EXIT_PAUSE:
            return Pause()
        if kind == EXIT_RDMSR:
            return RdMsr(s.exit.address)
        if kind == EXIT_WRMSR:
            return WrMsr(s.exit.address, s.exit.value)
        if kind == EXIT_INTACK:
            return IntAck()
        if kind == EXIT_EOI:
            return IoapicEoi(s.exit.address)
        if kind == EXIT_STEP:
            return Mtrap()
        if kind == EXIT_SIPI:
            return SpinupAp(s.exit.address, s.exit.value)
        if kind == EXIT_SPINDOWN:
            return SpindownCpu()
        if kind == EXIT_HALTED:
            return Suspended(SuspendReason.HALT)
        if kind == EXIT_TRIPLE_FAULT:
            return Suspended(SuspendReason.TRIPLE_FAULT)
        if kind == EXIT_DEBUG:
            return Debug(s.rip, s.exit.address if s.exit.value else None)
        detail = f"signal {s.exit.value} (code {s.exit.size}) at {s.exit.address:#x}"
        if s.exit.size == 0:
            detail = f"no instruction can be fetched from guest-physical {s.exit.address:#x}"
        return EntryFailed(s.rip, 0, kind, s.exit.value, s.exit.address, 0, s.exit.size, detail)

    def start(self, vector):
        lapic_started(self.s)
        start_at_sipi(self, vector)

    def answer(self, value):
        self.s.answer = value & 0xFFFFFFFFFFFFFFFF
        self.s.answered = 1

    def kick(self):
        wake(self.s, PENDING_KICK)

    def inject_nmi(self):
        wake(self.s, PENDING_NMI)

    def inject_exception(self, vector, error_code=None):
        s: cython.pointer(CpuState) = self.s
        s.exc_pending = 1
        s.exc_vector = vector
        s.exc_has_error = error_code is not None
        s.exc_error = error_code or 0
        s.exc_soft = 0
        if s.exit.kind == EXIT_WRMSR:
            # WRMSR has advanced rip before it left: the fault is the instruction's, whose length is in the exit.
            s.rip -= s.exit.size
        s.answered = 0

    def set_capability(self, cap, on):
        if cap is Capability.HLT_EXIT:
            self.s.hlt_exit = on
        elif cap is Capability.PAUSE_EXIT:
            self.s.pause_exit = on
        elif cap is Capability.MTRAP_EXIT:
            self.s.step_exit = on
        elif cap not in _CAPABILITIES:
            raise BackendError(f"the CPU engine has no {cap.value}")

    def set_points(self, points):
        s: cython.pointer(CpuState) = self.s
        i: uint32_t = 0
        points = list(points)
        executes = {point.gva & LOW64 for point in points if point.kind is PointKind.EXECUTE}
        watches = [point for point in points if point.kind is not PointKind.EXECUTE]
        if len(executes) > MAX_POINTS:
            raise BackendError(f"{len(executes)} breakpoints requested but only {MAX_POINTS} available")
        if len(watches) > MAX_WATCHES:
            raise BackendError(f"{len(watches)} watchpoints requested but only {MAX_WATCHES} available")
        if any(not 0 < point.length < 1 << 32 for point in watches):
            raise BackendError("a watchpoint is at least one byte and less than 4 GiB long")
        for gva in executes:
            s.points[i] = gva
            i += 1
        s.point_count = i
        i = 0
        for point in watches:
            s.watches[i].gva = point.gva & LOW64
            s.watches[i].size = point.length
            s.watches[i].kinds = WATCH_WRITE if point.kind is PointKind.WRITE else WATCH_WRITE | WATCH_READ
            s.watches[i].hit = HIT_DEBUGGER
            i += 1
        s.watch_own = i
        points_changed(s)

    def set_apic_mode(self, mode):
        base: uint64_t = self.s.apic_base | 0x800
        lapic_set_base(self.s, base)
        if mode is ApicMode.X2APIC:
            lapic_set_base(self.s, base | 0x400)

    def get_registers(self, names):
        return {name: self._get(name) for name in names}

    def _get(self, name):
        s: cython.pointer(CpuState) = self.s
        if name in _GENERAL:
            return s.gpr[cython.cast(cython.int, _GENERAL[name])]
        if name in _DEBUG:
            return s.dr[cython.cast(cython.int, _DEBUG[name])]
        if name == Reg.RIP:
            return s.rip
        if name == Reg.RFLAGS:
            return get_rflags(s)
        if name == Reg.CR0:
            return s.cr0
        if name == Reg.CR2:
            return s.cr2
        if name == Reg.CR3:
            return s.cr3
        if name == Reg.CR4:
            return s.cr4
        if name == Reg.CR8:
            return s.cr8
        if name == Reg.XCR0:
            return s.xcr0
        if name == Reg.EFER:
            return s.efer
        raise KeyError(name)

    def set_registers(self, values):
        s: cython.pointer(CpuState) = self.s
        for name, value in values.items():
            value = int(value) & 0xFFFFFFFFFFFFFFFF
            if name in _GENERAL:
                s.gpr[cython.cast(cython.int, _GENERAL[name])] = value
            elif name in _DEBUG:
                s.dr[cython.cast(cython.int, _DEBUG[name])] = value
            elif name == Reg.RIP:
                s.rip = value
                s.passing = 1
            elif name == Reg.RFLAGS:
                set_rflags(s, value)
            elif name == Reg.CR0:
                s.cr0 = value
            elif name == Reg.CR2:
                s.cr2 = value
            elif name == Reg.CR3:
                s.cr3 = value
            elif name == Reg.CR4:
                s.cr4 = value
            elif name == Reg.CR8:
                lapic_set_tpr(s, value)
            elif name == Reg.XCR0:
                s.xcr0 = value & s.engine.xsave_mask
            elif name == Reg.EFER:
                s.efer = value
            else:
                raise KeyError(name)
        if s.cr0 >> 31 and s.efer & 0x100 and s.cr4 & 0x20:
            s.efer |= 0x400
        elif not s.cr0 >> 31:
            s.efer &= ~cython.cast(uint64_t, 0x400)
        tlb_flush(s, False)
        update_mode(s)
        debug_update(s)

    def _segment(self, name):
        if name == SegmentName.LDTR:
            return cython.address(self.s.ldtr)
        if name == SegmentName.TR:
            return cython.address(self.s.tr)
        return cython.address(self.s.segments[cython.cast(cython.int, _SEGMENTS[name])])

    def get_segment(self, name):
        g: cython.pointer(Segment) = self._segment(name)
        return SegmentValue(g.selector, g.base, g.limit, g.access)

    def set_segment(self, name, value):
        g: cython.pointer(Segment) = self._segment(name)
        g.selector = value.selector
        g.base = value.base
        g.limit = value.limit
        g.access = value.access
        if name == SegmentName.SS:
            self.s.cpl = (value.access >> 5) & 3
        elif name == SegmentName.CS and not self.s.cr0 & 1:
            self.s.cpl = 0
        update_mode(self.s)

    def get_table(self, name):
        if name == "gdtr":
            return Table(self.s.gdt_base, self.s.gdt_limit)
        if name == "idtr":
            return Table(self.s.idt_base, self.s.idt_limit)
        raise KeyError(name)

    def set_table(self, name, value):
        if name == "gdtr":
            self.s.gdt_base = value.base
            self.s.gdt_limit = value.limit
        elif name == "idtr":
            self.s.idt_base = value.base
            self.s.idt_limit = value.limit
        else:
            raise KeyError(name)

    def get_msr(self, index):
        value: uint64_t = 0
        if msr_read(self.s, index, cython.address(value)) != DONE:
            self._forget_failure()
            raise KeyError(index)
        return value

    def set_msr(self, index, value):
        if msr_write(self.s, index, value) != DONE:
            self._forget_failure()
            raise KeyError(index)
        update_mode(self.s)

    def _forget_failure(self):
        self.s.exc_pending = 0
        self.s.exit.kind = EXIT_NONE

    def get_xsave(self):
        i: cython.int
        for i in range(8, 24):  # the last x87 instruction and operand pointers are the host's
            self.s.xsave[i] = 0
        return PyBytes_FromStringAndSize(
            cython.cast(cython.p_char, self.s.xsave), xsave_size(self.s.engine.xsave_mask, False)
        )

    def set_xsave(self, data):
        i: cython.int
        size: cython.int = xsave_size(self.s.engine.xsave_mask, False)
        raw: bytes = bytes(data)[:size]
        n: cython.int = len(raw)
        if n < 576:
            raise ValueError("an XSAVE image has at least 576 bytes")
        for i in range(size):
            self.s.xsave[i] = raw[i] if i < n else 0
        self.s.xsave[512] &= cython.cast(uint8_t, self.s.engine.xsave_mask)
        for i in range(513, 576):
            self.s.xsave[i] = 0
        # Reserved bits of MXCSR would make XRSTOR fault.
        self.s.xsave[26] = 0
        self.s.xsave[27] = 0

    def get_lapic(self):
        page: uint32_t[256]
        lapic_get_page(self.s, page)
        return PyBytes_FromStringAndSize(cython.cast(cython.p_char, cython.cast(cython.p_void, page)), 1024)

    def set_lapic(self, data):
        page: uint32_t[256]
        raw: bytes = bytes(data)
        i: cython.int
        if len(raw) != 1024:
            raise ValueError("a local APIC image has 1024 bytes")
        for i in range(256):
            page[i] = int.from_bytes(raw[4 * i : 4 * i + 4], "little")
        lapic_set_page(self.s, page)

    def translate(self, gva):
        gpa: uint64_t = 0
        flags: uint32_t = 0
        if walk(self.s, gva, ACCESS_READ, MMU_KERNEL, True, cython.address(gpa), cython.address(flags)) != DONE:
            return None
        return gpa

    def stats(self):
        s: cython.pointer(CpuState) = self.s
        return {
            "enters": s.count_enter,
            "lookups": s.count_lookup,
            "chained": s.count_chain,
            "helpers": s.count_helper,
            "slow_accesses": s.count_tlb_miss,
            "tlb_flushes": s.count_tlb_flush,
            "blocks": s.count_blocks,
            "block_bytes": s.count_block_bytes,
            "instructions_translated": s.count_insns,
            "exits": s.count_exits,
            "exceptions": s.count_exceptions,
            "interrupts": s.count_interrupts,
            "code_flushes": s.count_code_flush,
            "translate_tsc": s.tsc_translate,
            "run_tsc": s.tsc_run,
        }


VirtualCpu.register(SoftCpu)
