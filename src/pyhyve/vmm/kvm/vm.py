"""One virtual machine on KVM: memory slots, interrupt entry, doorbells, CPUID.

Source: the kernel's KVM API documentation. KVM brings the local APICs, the I/O APIC, both PICs and the PIT (with
port 0x61). Guest memory is the machine's memfd as mapped in this process, given to KVM in slots. Legacy lines go in
by KVM_IRQ_LINE, message-signalled interrupts by KVM_SIGNAL_MSI, and neither passes through a vCPU thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pyhyve.errors import BackendError
from pyhyve.vmm.api import Capability, Chip, CpuidEntry, VirtualMachine
from pyhyve.vmm.kvm import ioctls, structs
from pyhyve.vmm.kvm.counters import Counters
from pyhyve.vmm.kvm.ioctls import Cap, IoEventFlag, IrqChip
from pyhyve.vmm.kvm.irqfd import IrqFds
from pyhyve.vmm.kvm.vcpu import KvmCpu

if TYPE_CHECKING:
    from pyhyve.memory import GuestMemory

# Three pages of TSS and one of identity map, which KVM needs on CPUs that cannot run real mode (4.36, 4.46). They lie
# between the local APIC at 0xFEE00000 and the largest ROM, which ends at 4 GiB.
IDENTITY_MAP = 0xFEFFC000
TSS = IDENTITY_MAP + 0x1000

IOAPIC_PINS = 24
_PAGE_MASK = 0xFFF
_CPUID_MOST = 1024
_LEAF1_TSC_DEADLINE = 1 << 24  # CPUID.1:ECX
_INVPCID = 1 << 10  # CPUID.7.0:EBX


class KvmMachine(VirtualMachine):
    """A KVM virtual machine; owns the descriptors ``system`` (/dev/kvm) and ``fd`` (the VM)."""

    provides = frozenset({Chip.LAPIC, Chip.IOAPIC, Chip.PIC, Chip.PIT})

    def __init__(self, name: str, system: int, fd: int, memory: GuestMemory, cpus: int) -> None:
        self.name = name
        self.fd = fd
        self._system = system
        self._memory = memory
        self._cpus = cpus
        self._lock = threading.Lock()
        self._slots: dict[int, int] = {}
        self._vcpus: dict[int, KvmCpu] = {}
        self._cpuid: list[CpuidEntry] | None = None
        self._lost_msis = 0
        # Where KVM can, a single step takes no interrupt: it would end in a handler instead of at the next instruction.
        self.step_flags = ioctls.extension(system, Cap.SET_GUEST_DEBUG2) & ioctls.GUESTDBG_BLOCKIRQ
        self._counters: Counters | None = None
        try:
            self._set_up_chips()
            self._set_up_msr_exits()
            for region in memory.regions:
                self.map_memory(region.gpa, region.size, region.offset)
            self._supported = self._read_supported_cpuid()
            self._capabilities = self._find_capabilities()
        except BaseException:
            os.close(fd)
            raise

    # Start-up.

    def _set_up_chips(self) -> None:
        identity = bytearray(IDENTITY_MAP.to_bytes(8, "little"))
        ioctls.call(self.fd, ioctls.SET_IDENTITY_MAP_ADDR, identity, doing="place its identity map")
        ioctls.call(self.fd, ioctls.SET_TSS_ADDR, TSS, doing="place its task-state segment")
        ioctls.call(self.fd, ioctls.CREATE_IRQCHIP, doing="create its interrupt controllers")
        pit = structs.PitConfig(flags=ioctls.PIT_SPEAKER_DUMMY)
        ioctls.call(self.fd, ioctls.CREATE_PIT2, pit, doing="create its interval timer")
        self._route_interrupts()

    def _route_interrupts(self) -> None:
        """Line 0 (the PIT) reaches I/O APIC pin 2, as PC boards wire it and ACPI tables tell; the rest is one to one.

        Line 2, the PIC's cascade, also reaches pin 2 for a timer that asks for it. It comes first because KVM
        reports the end of an interrupt to the last line named for a pin, and the PIT waits for that report.
        """
        wires: list[tuple[int, IrqChip, int]] = [(2, IrqChip.IOAPIC, 2), (0, IrqChip.IOAPIC, 2)]
        wires += [(line, IrqChip.IOAPIC, line) for line in range(IOAPIC_PINS) if line not in (0, 2)]
        wires += [(line, IrqChip.PIC_MASTER, line) for line in range(8) if line != 2]
        wires += [(line, IrqChip.PIC_SLAVE, line - 8) for line in range(8, 16)]
        kind = ioctls.IRQ_ROUTING_IRQCHIP
        entries = (structs.IrqRoutingEntry(gsi=gsi, type=kind, irqchip=chip, pin=pin) for gsi, chip, pin in wires)
        self._irqfds = IrqFds(self._system, self.fd, b"".join(bytes(entry) for entry in entries), IOAPIC_PINS)
        self._irqfds.route()

    def _set_up_msr_exits(self) -> None:
        """Ask for exits on MSRs that KVM does not know. A KVM without that raises #GP in the guest by itself."""
        self.exits_on_unknown_msrs = bool(ioctls.extension(self._system, Cap.X86_USER_SPACE_MSR))
        if self.exits_on_unknown_msrs:
            request = structs.EnableCap(cap=Cap.X86_USER_SPACE_MSR)
            request.args[0] = ioctls.MSR_EXIT_REASON_UNKNOWN
            ioctls.call(self.fd, ioctls.ENABLE_CAP, request, doing="report accesses to unknown MSRs")

    def _find_capabilities(self) -> frozenset[Capability]:
        # HLT and PAUSE never leave KVM when the local APIC is in the kernel: a halted vCPU already sleeps there.
        found = {Capability.UNRESTRICTED_GUEST}
        if ioctls.extension(self._system, Cap.SET_GUEST_DEBUG):
            found.add(Capability.MTRAP_EXIT)
        if any(entry.leaf == 7 and not entry.subleaf and entry.ebx & _INVPCID for entry in self._supported):
            found.add(Capability.ENABLE_INVPCID)
        return frozenset(found)

    def capability(self, cap: Capability) -> bool:
        return cap in self._capabilities

    # Memory.

    def map_memory(self, gpa: int, size: int, offset: int, *, readonly: bool = False) -> None:
        if (gpa | size | offset) & _PAGE_MASK or size <= 0 or gpa < 0:
            raise BackendError(f"a mapping must be whole pages: address {gpa:#x}, size {size:#x}, offset {offset:#x}")
        if offset < 0 or offset + size > self._memory.size:
            raise BackendError(f"guest memory has no {size:#x} bytes at offset {offset:#x}")
        if readonly and not ioctls.extension(self._system, Cap.READONLY_MEM):
            raise BackendError("this KVM cannot map read-only memory")
        self._map(gpa, size, self._memory.host_base + offset, readonly=readonly)

    def map_host(self, gpa: int, size: int, address: int) -> bool:
        try:
            self._map(gpa, size, address)
        except BackendError:
            return False
        return True

    def unmap_host(self, gpa: int) -> None:
        self.unmap_memory(gpa)

    def _map(self, gpa: int, size: int, address: int, *, readonly: bool = False) -> None:
        with self._lock:
            taken = set(self._slots.values())
            slot = next(number for number in range(len(taken) + 1) if number not in taken)
            region = structs.MemoryRegion(
                slot=slot,
                flags=ioctls.MEM_READONLY if readonly else 0,
                guest_phys_addr=gpa,
                memory_size=size,
                userspace_addr=address,
            )
            doing = f"map {size:#x} bytes of memory at {gpa:#x}"
            ioctls.call(self.fd, ioctls.SET_USER_MEMORY_REGION, region, doing=doing)
            self._slots[gpa] = slot

    def unmap_memory(self, gpa: int) -> None:
        with self._lock:
            if gpa not in self._slots:
                raise BackendError(f"no mapping starts at {gpa:#x}")
            region = structs.MemoryRegion(slot=self._slots[gpa], guest_phys_addr=gpa)
            ioctls.call(self.fd, ioctls.SET_USER_MEMORY_REGION, region, doing=f"unmap memory at {gpa:#x}")
            del self._slots[gpa]

    def memory_written(self, gpa: int, length: int) -> None:
        """Nothing to do: the CPU sees the same pages, and its instruction caches are coherent with them."""

    def device_wrote(self) -> None:
        """Nothing to do here either."""

    # vCPUs and their CPUID.

    def create_vcpu(self, index: int) -> KvmCpu:
        if not 0 <= index < self._cpus:
            raise BackendError(f"no vCPU {index} in a machine of {self._cpus}")
        if index in self._vcpus:
            raise BackendError(f"vCPU {index} exists already")
        vcpu = KvmCpu(self, self._system, index)
        if self._cpuid is not None:
            vcpu.set_cpuid(self._cpuid)
        self._vcpus[index] = vcpu
        return vcpu

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        self._cpuid = list(entries)
        for vcpu in self._vcpus.values():
            vcpu.set_cpuid(self._cpuid)

    def supported_cpuid(self) -> list[CpuidEntry]:
        return list(self._supported)

    def _read_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID (4.12), without KVM's own paravirtual leaves (0x40000000 and up)."""
        count = 128
        while True:
            table = bytearray(structs.CpuidHeader(nent=count)) + bytearray(ctypes.sizeof(structs.CpuidEntry2) * count)
            try:
                ioctls.call(self._system, ioctls.GET_SUPPORTED_CPUID, table)
                break
            except OSError as error:
                count *= 2
                if count > _CPUID_MOST:
                    raise BackendError(f"KVM cannot tell its CPUID: {os.strerror(error.errno or 0)}") from None
        header = structs.CpuidHeader.from_buffer(table)
        rows = (structs.CpuidEntry2 * header.nent).from_buffer(table, ctypes.sizeof(header))
        deadline = bool(ioctls.extension(self._system, Cap.TSC_DEADLINE_TIMER))
        entries: list[CpuidEntry] = []
        for row in rows:
            if 0x40000000 <= row.function < 0x80000000:
                continue
            # KVM announces its deadline timer by an extension, because it needs the in-kernel local APIC.
            ecx = row.ecx | _LEAF1_TSC_DEADLINE if row.function == 1 and deadline else row.ecx
            subleaf = row.index if row.flags & structs.CPUID_SIGNIFICANT_INDEX else None
            entries.append(CpuidEntry(row.function, subleaf, row.eax, row.ebx, ecx, row.edx))
        return entries

    # Interrupts.

    def set_irq(self, gsi: int, level: bool) -> None:
        if not 0 <= gsi < IOAPIC_PINS:
            raise BackendError(f"no interrupt line {gsi}")
        ioctls.call(self.fd, ioctls.IRQ_LINE, structs.IrqLevel(irq=gsi, level=level), doing=f"drive line {gsi}")

    def watch_eoi(self, gsi: int, fd: int) -> None:
        self._irqfds.watch(gsi, fd)

    def bind_msi(self, fd: int, address: int, data: int) -> bool:
        return self._irqfds.bind(fd, address, data)

    def unbind_msi(self, fd: int) -> None:
        self._irqfds.unbind(fd)

    def make_level(self, irq: int) -> None:
        chip = IrqChip.PIC_SLAVE if irq & 8 else IrqChip.PIC_MASTER
        state = bytearray(structs.IRQCHIP_SIZE)
        state[0] = chip
        ioctls.call(self.fd, ioctls.GET_IRQCHIP, state, doing="read its PIC")
        state[structs.IRQCHIP_PIC_ELCR] |= 1 << (irq & 7)
        ioctls.call(self.fd, ioctls.SET_IRQCHIP, state, doing=f"make interrupt {irq} level triggered")

    def set_extint(self, level: bool) -> None:
        raise BackendError("KVM brings its own PIC: nothing else can drive LINT0")

    def send_msi(self, address: int, data: int) -> None:
        msi = structs.Msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data & 0xFFFFFFFF)
        try:
            taken = ioctls.call(self.fd, ioctls.SIGNAL_MSI, msi)
        except OSError:
            taken = 0
        if not taken:
            # The guest programmed an address where no local APIC listens; on a board the message is lost too.
            self._lost_msis += 1

    # Doorbells.

    def add_doorbell(self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None) -> None:
        self._doorbell(address, size, fd, pio, match, IoEventFlag(0), "add")

    def remove_doorbell(self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None) -> None:
        self._doorbell(address, size, fd, pio, match, IoEventFlag.DEASSIGN, "remove")

    def _doorbell(
        self, address: int, size: int, fd: int, pio: bool, match: int | None, flags: IoEventFlag, verb: str
    ) -> None:
        if size not in (1, 2, 4, 8):
            raise BackendError(f"a doorbell is 1, 2, 4 or 8 bytes wide, not {size}")
        if pio:
            flags |= IoEventFlag.PIO
        if match is not None:
            flags |= IoEventFlag.DATAMATCH
        request = structs.IoEventFd(datamatch=match or 0, addr=address, len=size, fd=fd, flags=int(flags))
        ioctls.call(self.fd, ioctls.IOEVENTFD, request, doing=f"{verb} a doorbell at {address:#x}")

    # The end, and the counters.

    def close(self) -> None:
        if self.fd < 0:
            return
        for vcpu in self._vcpus.values():
            vcpu.close()
        if self._counters:
            self._counters.close()
        self._irqfds.close()
        for fd in (self.fd, self._system):
            os.close(fd)
        self.fd = self._system = -1

    def stats(self) -> Mapping[str, float]:
        """KVM's counters of this machine (4.131 KVM_GET_STATS_FD), and the messages that nobody took."""
        if self._counters is None:
            self._counters = Counters(self.fd)
        return {**self._counters.read(), "msi_lost": self._lost_msis}
