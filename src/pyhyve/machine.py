"""One virtual machine: assembled from a configuration tree, started, and run to its end.

The order of assembly is that of bhyve's start-up. Whatever fails on the way gives back what was taken before it. The
machine ends with one status (``errors.Status``), whoever brings the end about: the guest by a port, a vCPU's exit, an
error, or the user; ``VcpuSet.end`` is the one door for it.

``Machine`` is for programs; the commands call ``runner.run_machine``, which adds signals and messages.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pyhyve import firmware
from pyhyve.backends.char import CharBackend, open_char
from pyhyve.bootrom import BootRom
from pyhyve.bus.irq import IrqRouter, MsiPort
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.msr import MsrBus
from pyhyve.bus.pio import PioBus
from pyhyve.config import Config, check_vm_name
from pyhyve.errors import BackendError, ConfigError, Status
from pyhyve.firmware.platform import PciInterrupt, PciRoot, root_windows
from pyhyve.hw import xmsr
from pyhyve.hw.chipset.elcr import Elcr
from pyhyve.hw.chipset.hpet import Hpet
from pyhyve.hw.chipset.i8042 import I8042
from pyhyve.hw.chipset.ioapic import Ioapic
from pyhyve.hw.chipset.irqchip import wire
from pyhyve.hw.chipset.legacy_irq import LegacyIrqs
from pyhyve.hw.chipset.pic import Pic
from pyhyve.hw.chipset.pit import Pit
from pyhyve.hw.chipset.pm import Pm
from pyhyve.hw.chipset.pmtmr import PmTimer
from pyhyve.hw.chipset.post import Post
from pyhyve.hw.chipset.reset import Reset
from pyhyve.hw.chipset.rtc import Rtc
from pyhyve.hw.chipset.uart16550 import COM_PORTS, Uart16550
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.bus import WINDOWS, PciBus, memory_64_window
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.hw.pci.lpc import LPC_BRIDGES
from pyhyve.isa import IsaDevices, taken
from pyhyve.lifecycle import Stateful
from pyhyve.loader import LoadedGuest, load
from pyhyve.loop import EventLoop, Timer
from pyhyve.memory import HIGH_BASE, GuestMemory
from pyhyve.settings import (
    read_domains,
    read_memory_size,
    read_pci_registers,
    read_pinning,
    read_slots,
    read_smbios,
    read_topology,
    read_uuid,
)
from pyhyve.vcpu import STATUS_OF, VERDICT_OF, Platform, Vcpu
from pyhyve.vcpu_set import VcpuSet
from pyhyve.vmm.api import ApicMode, Capability, Chip, CpuidEntry, VirtualMachine
from pyhyve.vmm.cpuid import Topology, physical_bits, shape, vendor
from pyhyve.vmm.exits import SuspendReason
from pyhyve.vmm.select import choose

if TYPE_CHECKING:
    from pyhyve.backends.vfio.container import Container
    from pyhyve.debug.gdb.server import GdbServer

TIMER_IRQ, KEYBOARD_IRQ, RTC_IRQ, SCI_IRQ, MOUSE_IRQ = 0, 1, 8, 9, 12
NOTIFY_PORT = 0x488
"""Where a guest tells its host something, in bhyve; nobody listens by default."""

NOT_YET = {
    "restore": "resuming from a snapshot (-r)",
    "tpm.type": "a TPM (-l tpm)",
}
"""What bhyve's command line can ask for and this version has no device for."""


class HostNotification:
    """The host-notification hook: an OUT to port 0x488 calls ``on_notify(size, value)``."""

    def __init__(self) -> None:
        self.on_notify: Callable[[int, int], None] | None = None

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x488."""
        pio.register(NOTIFY_PORT, 1, self, "host notification", whole=True)

    def read(self, offset: int, size: int) -> int:
        """Nothing is there to read."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Pass the value on."""
        if self.on_notify is not None:
            self.on_notify(size, value)


class _MachineLoop(EventLoop):
    """An event loop that tells ``on_error`` of a callback that fails, instead of printing a traceback and going on."""

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        super().__init__()
        self._on_error = on_error

    def timer(self, callback: Callable[[], None]) -> Timer:
        return super().timer(self._guard(callback))

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        super().add_reader(fd, self._guard(callback))

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        super().add_writer(fd, self._guard(callback))

    def _guard(self, callback: Callable[[], object]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                callback()
            except Exception as error:
                self._on_error(error)

        return guarded


class Machine:
    """A machine built from ``config``, which is frozen from then on.

    ``loop`` is the event loop to use; without one the machine makes its own and ``wait`` runs it. ``on_quit`` is called
    when the user types the escape key and ``q`` on the console; by default that ends the machine as a power-off does.
    ``loaded`` is a guest that is in memory already; without it the machine loads ``boot.kernel``.
    Raises a ``PyhyveError`` if the machine cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        loop: EventLoop | None = None,
        on_quit: Callable[[], None] | None = None,
        loaded: LoadedGuest | None = None,
    ) -> None:
        config.freeze()
        self.config = config
        self.name = check_vm_name(config.require("name"))
        self.parts: dict[str, Stateful] = {}
        """Every chip and bus with state, by name."""
        self.vm: VirtualMachine
        self.memory: GuestMemory
        self.cpuid: list[CpuidEntry]
        """What the guest's CPUID says, but for what differs between vCPUs."""
        self.gdb: GdbServer
        """Where ``gdb.port`` asks for it."""
        self._ended = threading.Event()
        self._runs_loop = False
        self._on_quit = on_quit or self.power_off
        self._loaded = loaded
        self._uarts: list[Uart16550] = []
        self._chars: dict[str, CharBackend] = {}
        self._container: Container | None = None
        self._started_ns = self._ended_ns = 0
        self.vcpus = VcpuSet(self._end)
        self.vcpus.traceback = config.get_bool("debug.traceback", False)
        self._closing = ExitStack()
        try:
            if loop is None:
                loop = _MachineLoop(lambda error: self.vcpus.fail(error, "event loop"))
                self._closing.callback(loop.close)
            self.loop = loop
            self._assemble()
        except BaseException:
            self._closing.close()
            raise

    # -- assembly, in bhyve's order --

    def _assemble(self) -> None:
        self._refuse_what_is_missing()
        topology = read_topology(self.config)
        hypervisor, self.backend_reason = choose(self.config.require("vmm.backend"))
        self.backend = hypervisor.name
        available = hypervisor.probe().max_cpus
        if topology.cpus > available:
            raise BackendError(f"{topology.cpus} vCPUs requested but only {available} available")
        bootrom = BootRom(self.config, self._closing)
        self.memory = (
            self._loaded.memory if self._loaded else GuestMemory(read_memory_size(self.config), rom=bootrom.size)
        )
        self._closing.callback(self.memory.close)
        self.memory.show_in_core_dumps(self.config.get_bool("memory.guest_in_core"))
        if self.config.get_bool("memory.wired", False):
            wire_memory(self.memory)
        self.vm = hypervisor.create(self.name, self.memory, topology.cpus)
        self._closing.callback(self.vm.close)
        bootrom.map(self.vm, self.memory)
        if topology.cpus > 1 and not self.vm.capability(Capability.UNRESTRICTED_GUEST):
            raise BackendError(f"{topology.cpus} vCPUs requested but only 1 available")
        self.memory.on_write.append(self.vm.memory_written)
        self._make_buses()
        self._make_vcpus(topology)
        self._make_chipset()
        self._make_isa_devices(topology)
        self._make_boot_variables(bootrom)
        self._make_pci()
        self._make_serial_ports()
        rsdp = self._write_tables(topology)
        if bootrom:  # where a vCPU starts after reset
            bootrom.shadow(self.memory)
        else:
            self._load(rsdp)
        self._inspect_at_end()
        self._start_trace()
        self._listen_for_a_debugger()

    def _refuse_what_is_missing(self) -> None:
        for name, what in NOT_YET.items():
            if name in self.config:
                raise ConfigError(f"{what} is not available in this version")

    def _make_buses(self) -> None:
        self.pio, self.mmio, self.msr = PioBus(), MmioBus(), MsrBus()
        self.msi = MsiPort(self.vm.send_msi)
        self.pic: Pic | None = None
        self.ioapic: Ioapic | None = None
        if Chip.PIC in self.vm.provides:
            self.irq = IrqRouter(self.vm.set_irq, self._watch_eoi)
        else:
            self.pic, self.ioapic = Pic(self.vm.set_extint), Ioapic(self.vm.send_msi)
            self.pic.attach(self.pio)
            self.ioapic.attach(self.mmio)
            self.parts.update(pic=self.pic, ioapic=self.ioapic)
            self.irq = IrqRouter(wire(self.pic, self.ioapic))
            self.ioapic.on_end = self.irq.ended
            self.pic.on_end = self._isa_ended

    def _watch_eoi(self, gsi: int) -> None:
        """A device wants to hear of the ends of a line's interrupts, and the backend has the interrupt controllers."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing.callback(os.close, fd)
        self.vm.watch_eoi(gsi, fd)

        def signalled() -> None:
            os.eventfd_read(fd)
            self.irq.ended(gsi)

        self.loop.add_reader(fd, signalled)
        self._closing.callback(self.loop.remove_reader, fd)

    def _isa_ended(self, irq: int) -> None:
        """The PIC's lock is held here: whoever waits for the end hears of it in the loop's thread."""
        if self.irq.awaits_end(irq):
            self.loop.call_soon_threadsafe(self.irq.ended, irq)

    def _make_vcpus(self, topology: Topology) -> None:
        config, vm = self.config, self.vm
        pause_exit = config.get_bool("x86.vmexit_on_pause")
        if pause_exit and not vm.capability(Capability.PAUSE_EXIT):
            raise ConfigError(f"VM exit on PAUSE (-P) is not supported by the {self.backend} backend")
        # A halted vCPU sleeps in ``run`` in any case: where HLT cannot exit, an idle guest still costs nothing.
        hlt_exit = config.get_bool("x86.vmexit_on_hlt") and vm.capability(Capability.HLT_EXIT)
        mode = ApicMode.X2APIC if config.get_bool("x86.x2apic") else ApicMode.XAPIC
        self.cpuid = table = shape(vm.supported_cpuid(), topology)
        self._memory_64 = memory_64_window(self.memory.regions[-1].end, physical_bits(table))
        around = Platform(
            pio=self.pio,
            mmio=self.mmio,
            msr=self.msr,
            acknowledge=self.pic.acknowledge if self.pic is not None else None,
            eoi=self.ioapic.eoi if self.ioapic is not None else None,
            open_bus=((WINDOWS[BarKind.MEMORY_32][0], HIGH_BASE), self._memory_64),
            strict_io=config.get_bool("x86.strictio"),
            strict_msr=config.get_bool("x86.strictmsr"),
        )
        for index in range(topology.cpus):
            cpu = vm.create_vcpu(index)
            cpu.set_capability(Capability.HLT_EXIT, hlt_exit)
            cpu.set_capability(Capability.PAUSE_EXIT, pause_exit)
            if vm.capability(Capability.ENABLE_INVPCID):
                cpu.set_capability(Capability.ENABLE_INVPCID, True)
            cpu.set_apic_mode(mode)
            self.vcpus.vcpus.append(Vcpu(cpu, self.vcpus, around))
            host_cpus = read_pinning(config, index)
            if host_cpus is not None:
                self.vcpus.pin(index, host_cpus)
        vm.set_cpuid(table)
        xmsr.attach(self.msr, vendor(table))

    def _make_chipset(self) -> None:
        irq, memory, config = self.irq, self.memory, self.config
        rtc = Rtc(
            self.loop,
            irq.line(RTC_IRQ, "rtc"),
            memory.low_size,
            memory.high_size,
            use_localtime=config.get_bool("rtc.use_localtime", True),
        )
        rtc.attach(self.pio)
        replaced = [rtc.set_legacy_replacement]
        if Chip.PIT not in self.vm.provides:
            pit = Pit(self.loop, irq.line(TIMER_IRQ, "pit"), self.vm.clock_port)
            pit.attach(self.pio)
            replaced.append(pit.set_legacy_replacement)
            self.parts["pit"] = pit

        def on_legacy(active: bool) -> None:
            for replace in replaced:
                replace(active)

        hpet = Hpet(self.loop, irq, on_legacy)
        hpet.attach(self.mmio)
        self.pm = Pm(self.power, irq.line(SCI_IRQ, "sci"))
        keyboard = I8042(self.power, irq.line(KEYBOARD_IRQ, "i8042"), irq.line(MOUSE_IRQ, "i8042 mouse"))
        timer, reset, post = PmTimer(self.loop, self.vm.clock_port), Reset(self.power), Post()
        for chip in (self.pm, keyboard, timer, reset, post):
            chip.attach(self.pio)
        self.parts.update(rtc=rtc, hpet=hpet, pm=self.pm, i8042=keyboard, pmtmr=timer, reset=reset, post=post)
        if self.pic is None:
            self._make_level = self.vm.make_level
        else:
            elcr = Elcr(self.pic.set_elcr)
            elcr.attach(self.pio)
            self._make_level = elcr.set_level
            self.parts["elcr"] = elcr
        self._make_level(SCI_IRQ)
        self.notification = HostNotification()
        self.notification.attach(self.pio)

    def _make_isa_devices(self, topology: Topology) -> None:
        isa = self._isa = IsaDevices(self.config, self.pio, self.mmio, self._closing)
        isa.make_test_devices(self.irq, self.vcpus.end)
        isa.make_firmware_interface(self.memory, topology.cpus)
        isa.make_character_ports(self.loop, self._on_quit)
        self.parts.update(isa.parts)

    def _make_boot_variables(self, bootrom: BootRom) -> None:
        with taken("the variables of the boot ROM"):
            flash = bootrom.make_flash(self.vm, self.memory, self.mmio)
        if flash is not None:
            self.parts["bootvars"] = flash

    def _make_pci(self) -> None:
        environment = Environment(
            loop=self.loop,
            memory=self.memory,
            pio=self.pio,
            mmio=self.mmio,
            router=self.irq,
            send_msi=self.msi.send,
            doorbells=self.vm,
            power=self.power,
            virtio_msix=self.config.get_bool("virtio_msix"),
            name=self.name,
            direct=self.vm,
            vfio=self._vfio,
            device_wrote=self.vm.device_wrote,
        )
        taken = {KEYBOARD_IRQ, MOUSE_IRQ, *(irq for _, irq in COM_PORTS.values())}
        irqs = LegacyIrqs(reserved=taken, shared=(SCI_IRQ,))
        self.pci = PciBus(environment, IntxRouting(self.irq, self._make_level, irqs), self._memory_64)
        self._closing.callback(self._close_vfio)
        self._closing.callback(self.pci.close)
        self.pci.attach()
        for address in read_slots(self.config):
            node = f"pci.{address.bus}.{address.device}.{address.function}"
            options = self.config.below(node)
            name = options.pop("device", None)
            if name is None:
                raise ConfigError(f"{node} has no device: set {node}.device")
            function = self.pci.create(address, name, options)
            for register in read_pci_registers(self.config, f"{'lpc' if name in LPC_BRIDGES else node}.pcireg"):
                function.override(*register)
        self.pci.finish()
        self.parts["pci"] = self.pci

    def _vfio(self) -> Container:
        """The container of the devices that the host gives, made for the first one."""
        if self._container is None:
            from pyhyve.backends.vfio.container import Container

            self._container = Container(self.memory)
        return self._container

    def _close_vfio(self) -> None:
        if self._container is not None:
            self._container.close()

    def _make_serial_ports(self) -> None:
        for name, (port, irq) in COM_PORTS.items():
            spec = self.config.get(f"lpc.{name}.path")
            if spec is None:
                continue
            backend = open_char(spec, self.loop, on_quit=self._on_quit)
            self._closing.callback(backend.close)
            self._chars[name] = backend
            uart = Uart16550(self.irq.line(irq, name), backend, name)
            uart.attach(self.pio, port)
            self._uarts.append(uart)
            self.parts[name] = uart

    def _write_tables(self, topology: Topology) -> int:
        """The firmware's tables; returns where ACPI's root pointer lies, 0 without ACPI."""
        roots = self.pci.buses()
        lasts = [*(bus - 1 for bus in roots[1:]), 255]
        names = {a: self.config.get(f"pci.{a.bus}.{a.device}.{a.function}.device") for a in self.pci.functions}
        lpc = [a for a, name in names.items() if name in LPC_BRIDGES]
        interrupts = {
            PciInterrupt(r.address.bus, r.address.device, r.pin, r.pirq, r.gsi, r.irq) for r in self.pci.routes()
        }
        described = firmware.Platform(
            name=self.name,
            cpus=topology.cpus,
            sockets=topology.sockets,
            threads_per_core=topology.threads,
            uuid=read_uuid(self.config),
            strings=read_smbios(self.config),
            domains=read_domains(self.config, topology.cpus, self.memory.regions),
            fwcfg_ports=self._isa.fwcfg_ports,
            pci_roots=tuple(
                PciRoot(bus, last, root_windows(*(self.pci.windows_of(bus)[kind] for kind in BarKind), board=bus == 0))
                for bus, last in zip(roots, lasts, strict=True)
            ),
            pci_interrupts=tuple(sorted(interrupts)),
            lpc=(lpc[0].device, lpc[0].function) if lpc else None,
            com=tuple(int(name.removeprefix("com")) for name in COM_PORTS if name in self.parts),
        )
        acpi, mptable = self.config.get_bool("acpi_tables"), self.config.get_bool("x86.mptable")
        if self._isa.fwcfg is not None and "lpc.bootrom" in self.config:
            self._isa.fwcfg.add_files(firmware.files(self.memory, described, acpi=acpi))
        return firmware.build(self.memory, described, acpi=acpi, mptable=mptable).rsdp

    def _load(self, rsdp: int) -> None:
        """Put the guest into memory and its start into the boot vCPU's registers."""
        if self._loaded is not None:
            entry = self._loaded.entry
            if entry.rsdp_pointer:
                self.memory.write_uint(entry.rsdp_pointer, rsdp, 8)
            entry.apply(self.vcpus.vcpus[0].cpu)
            return
        kernel = self.config.get("boot.kernel")
        if not kernel:
            raise ConfigError("there is nothing to boot: name a kernel with -o boot.kernel=FILE")
        entry = load(
            self.memory,
            kernel,
            self.config.get("boot.initrd") or None,
            self.config.get("boot.cmdline", "") or "",
            acpi_rsdp=rsdp,
        )
        entry.apply(self.vcpus.vcpus[0].cpu)

    def _inspect_at_end(self) -> None:
        """What the engine translated is written before the backend closes, if the configuration asks for it."""
        if "soft" in self.config:
            from pyhyve.debug.blocks import at_end

            write = at_end(self.config, self.vm)
            if write is not None:
                self._closing.callback(write)

    def _start_trace(self) -> None:
        """Exits and accesses are recorded, if the configuration asks for it; else nothing is in their way."""
        if "trace" in self.config or "trace_filter" in self.config:
            from pyhyve.debug.trace import open_trace

            trace = open_trace(self.config, self.loop)
            self._closing.callback(trace.close)
            trace.begin(self.name, self.backend, len(self.vcpus.vcpus))
            trace.attach(self.vcpus.vcpus, self.pio, self.mmio, self.irq, self.msi)

    def _listen_for_a_debugger(self) -> None:
        if "gdb.port" in self.config:
            from pyhyve.debug.gdb.server import serve

            self.gdb = serve(self, self.config)
            self._closing.callback(self.gdb.close)

    # -- running --

    def start(self) -> None:
        """Take input, start the vCPUs. The guest runs from here on; ``wait`` serves its devices."""
        self._started_ns = time.monotonic_ns()
        for uart in self._uarts:
            uart.start()
        self._isa.start()
        # With an interrupt controller of its own the backend starts the others on the guest's INIT-SIPI: their threads
        # wait inside ``run``. Otherwise the guest's request comes as an exit, and a thread is started then.
        waiting = range(1, len(self.vcpus.vcpus)) if Chip.IOAPIC in self.vm.provides else range(0)
        for index in (*waiting, 0):
            self.vcpus.add(index)

    def wait(self) -> int:
        """Run the event loop, or wait if another thread runs it, until the machine ends. Returns its status."""
        if self.loop.running:
            self._ended.wait()
        else:
            self._runs_loop = True
            try:
                while not self._ended.is_set():
                    self.loop.run()
            finally:
                self._runs_loop = False
        self.vcpus.join()
        status = self.vcpus.outcome
        assert status is not None
        return status

    @property
    def status(self) -> int | None:
        """How the machine ended, None while it has not."""
        return self.vcpus.outcome

    @property
    def message(self) -> str:
        """The line that says why it ended, where that was an error."""
        return self.vcpus.message

    def pause(self) -> None:
        """Hold every vCPU outside the guest. Not from a device."""
        self.vcpus.pause()

    def resume(self) -> None:
        """Let the guest run on."""
        self.vcpus.resume()

    def power(self, reason: SuspendReason) -> None:
        """A device resets the machine or powers it off. From any thread."""
        self.vcpus.end(STATUS_OF[VERDICT_OF[reason]])

    def power_off(self) -> None:
        """End the machine as if the guest had powered off. From any thread."""
        self.power(SuspendReason.POWER_OFF)

    def power_button(self) -> bool:
        """Press the ACPI power button. False if the guest does not listen to it."""
        return self.pm.power_button()

    def stats(self) -> dict[str, float]:
        """All counters, by the names that ``debug.stats`` describes. From any thread."""
        from pyhyve.debug.collect import collect

        uptime = (self._ended_ns or time.monotonic_ns()) - self._started_ns if self._started_ns else 0
        traffic = self.pio.traffic, self.mmio.traffic
        chars = {**self._chars, **self._isa.chars}
        return collect(self.vm, self.vcpus.vcpus, traffic, chars, self.irq, self.msi, uptime)

    def close(self) -> None:
        """End the machine if it still runs and give everything back, the terminal too. Idempotent."""
        self.vcpus.end(Status.ERROR)
        try:
            self.vcpus.join()
        finally:
            self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        self._ended_ns = time.monotonic_ns()
        self._ended.set()
        if self._runs_loop or not self.loop.running:
            self.loop.stop()


def wire_memory(memory: GuestMemory) -> None:
    """Keep guest memory in RAM (mlock(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(memory.host_base), ctypes.c_size_t(memory.size)):
        reason = os.strerror(ctypes.get_errno())
        raise ConfigError(f"cannot wire {memory.size >> 20} MB of guest memory: {reason} (see ulimit -l)")
