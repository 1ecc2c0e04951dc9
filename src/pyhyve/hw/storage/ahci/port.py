"""A port: its registers, the command list that it works off, and the frames that it puts in memory.

Document: AHCI 1.3, §3.3 (registers), §5.3 (what the controller does with a port), §6 (errors), §10.1 to §10.4 (use).

A driver writes bits to PxCI, which mark slots; ``process`` reads each one's header, command table and region
descriptors, and has the drive begin the command. The data moves between the backend and guest memory in the backend's
threads, or at once if it is little and the host has it in its cache. At the end the task file, a frame in memory and an
interrupt tell the driver. Queued (NCQ) commands run side by side, any other one alone.

``process`` runs in the vCPU's own thread, in the write to PxCI: to wake up another thread takes longer than to begin a
command, and the guest waits for this write anyway.

A command that fails stops the list until the driver has cleared PxCMD.ST; so does an address outside memory. Requests
that are on their way when a driver stops the port or resets it are waited for, not reported: PxCMD.CR stays set, or
the link down, until the last of them has left guest memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

from pyhyve.hw.storage.ahci import fis
from pyhyve.hw.storage.ahci.drive import Drive, Step
from pyhyve.hw.storage.ahci.fis import FisType
from pyhyve.hw.storage.ahci.registers import (
    CMD_FIXED,
    CMD_WRITABLE,
    CURRENT_SLOT_SHIFT,
    DET_MASK,
    DET_OFFLINE,
    DET_RESET,
    FASTEST,
    IRQ_FROM_SERR,
    IRQ_MASK,
    NO_DEVICE_TFD,
    OK,
    SIGNATURE_NONE,
    SLOTS,
    SPEED_SHIFT,
    SSTS_OFFLINE,
    SSTS_PRESENT,
    Ata,
    Cmd,
    Irq,
    Px,
    Serr,
)
from pyhyve.hw.storage.ahci.request import BadAddress, BadFis, Request, TableTooShort
from pyhyve.lifecycle import State, restore_fields, save_fields, saved_dict
from pyhyve.memory import GuestMemory, OutsideMemory

_ALL = 0xFFFFFFFF
# plain numbers where every command passes: operations on flags take several times as long
_FROM_SERR, _CONNECT, _EXCHANGED = int(IRQ_FROM_SERR), int(Irq.CONNECT), int(Serr.EXCHANGED)
_D2H, _PIO, _DEVICE_BITS, _DESCRIPTOR = int(Irq.D2H), int(Irq.PIO_SETUP), int(Irq.DEVICE_BITS), int(Irq.DESCRIPTOR)
_START, _FIS_ENABLE, _CURRENT_SLOT = int(Cmd.START), int(Cmd.FIS_ENABLE), int(Cmd.CURRENT_SLOT)
_BUSY, _ERROR = int(Ata.BUSY), int(Ata.ERROR)
_AFTER_RESET = 0x0100
"""The error register after a reset: diagnostics passed."""


class Controller(Protocol):
    """What a port needs of its controller."""

    memory: GuestMemory

    @property
    def enabled(self) -> bool:
        """Whether it may reach memory."""

    def locked(self, function: Callable[[], None]) -> None:
        """Call ``function`` with the function's lock held."""

    def schedule(self, port: Port) -> None:
        """Have ``port.process`` called soon, elsewhere."""

    def update(self) -> None:
        """A port's interrupt bits have changed."""

    def settled(self) -> None:
        """A port that had to wait for its requests has no more of them."""


class Port:
    """One port; ``drive`` is None where nothing hangs on it."""

    _FIELDS = (
        "clb",
        "fb",
        "irq",
        "enable",
        "cmd",
        "tfd",
        "sig",
        "ssts",
        "sctl",
        "serr",
        "sact",
        "ci",
        "_halted",
        "_wants_link",
    )

    def __init__(self, controller: Controller, drive: Drive | None) -> None:
        self._controller = controller
        self.drive = drive
        self._stale = 0  # requests of before a stop or reset that the backend still works on
        self._in_flight = 0
        self._generation = 0
        self._running: dict[int, Request] = {}
        self._alone = False
        self._processing = False
        self._last_slot = SLOTS - 1
        self._soft_reset = False
        self.power_on()
        if drive is not None:
            drive.connect(self)

    def power_on(self) -> None:
        """Registers after a reset of the controller; the link comes up by itself."""
        self.clb = self.fb = 0
        self.irq = self.enable = 0
        self.cmd = int(CMD_FIXED)
        self.sctl = self.serr = self.sact = self.ci = 0
        self._halted = False
        self._wants_link = False
        self._link_up()
        self.serr = 0

    # -- registers --

    def readers(self) -> dict[int, Callable[[], int]]:
        """What reads each register, 32 bits wide, by its offset."""
        return {
            Px.CLB: lambda: self.clb & _ALL,
            Px.CLBU: lambda: self.clb >> 32,
            Px.FB: lambda: self.fb & _ALL,
            Px.FBU: lambda: self.fb >> 32,
            Px.IS: self.pending,
            Px.IE: lambda: self.enable,
            Px.CMD: lambda: self.cmd,
            Px.TFD: lambda: self.tfd,
            Px.SIG: lambda: self.sig,
            Px.SSTS: lambda: self.ssts,
            Px.SCTL: lambda: self.sctl,
            Px.SERR: lambda: self.serr,
            Px.SACT: lambda: self.sact,
            Px.CI: lambda: self.ci,
        }

    def writers(self) -> dict[int, Callable[[int], None]]:
        """What writes each register, 32 bits wide, by its offset."""
        return {
            Px.CLB: lambda value: self._set_base("clb", self.clb & ~_ALL | value & ~0x3FF),
            Px.CLBU: lambda value: self._set_base("clb", self.clb & _ALL | value << 32),
            Px.FB: lambda value: self._set_base("fb", self.fb & ~_ALL | value & ~0xFF),
            Px.FBU: lambda value: self._set_base("fb", self.fb & _ALL | value << 32),
            Px.IS: self._write_irq,
            Px.IE: self._write_enable,
            Px.CMD: self._write_cmd,
            Px.SCTL: self._write_sctl,
            Px.SERR: self._write_serr,
            Px.SACT: self._write_sact,
            Px.CI: self._write_ci,
        }

    def _set_base(self, name: str, gpa: int) -> None:
        setattr(self, name, gpa)

    def _write_irq(self, value: int) -> None:
        self.irq &= ~value
        self._controller.update()

    def _write_enable(self, value: int) -> None:
        self.enable = value & IRQ_MASK
        self._controller.update()

    def _write_serr(self, value: int) -> None:
        self.serr &= ~value
        self._controller.update()

    def _write_sact(self, value: int) -> None:
        if self.cmd & _START:
            self.sact |= value

    def _write_ci(self, value: int) -> None:
        if not self.cmd & _START:
            return
        self.ci |= value
        self.process()

    def pending(self) -> int:
        """PxIS."""
        return self.irq & ~_FROM_SERR | (_CONNECT if self.serr & _EXCHANGED else 0)

    @property
    def quiet(self) -> bool:
        """Whether no request of before a reset is on its way any more."""
        return not self._stale

    def _write_cmd(self, value: int) -> None:
        before = self.cmd
        self.cmd = int(self.cmd & ~CMD_WRITABLE | value & CMD_WRITABLE)
        if value & Cmd.LIST_OVERRIDE:
            self.tfd &= ~int(Ata.BUSY | Ata.REQUEST)
        self.cmd &= ~int(Cmd.FIS_RUNNING)
        if self.cmd & Cmd.FIS_ENABLE:
            self.cmd |= int(Cmd.FIS_RUNNING)
        if self.cmd & ~before & Cmd.START:
            self._halted = False
            self.cmd |= int(Cmd.LIST_RUNNING)
        elif before & ~self.cmd & Cmd.START:
            self.abort()
            self._stop()

    def _write_sctl(self, value: int) -> None:
        before = self.sctl & DET_MASK
        self.sctl = value & 0xFFF
        now = self.sctl & DET_MASK
        if now == DET_RESET and before != DET_RESET:
            self.abort()
            self._link_down(0)
        elif now == DET_OFFLINE:
            self.abort()
            self._link_down(SSTS_OFFLINE)
        elif now == 0 and before in (DET_RESET, DET_OFFLINE):
            self._wants_link = True
            self._settle()

    # -- the link --

    def _link_down(self, ssts: int) -> None:
        self.ssts = ssts
        self.tfd = NO_DEVICE_TFD
        self.sig = SIGNATURE_NONE
        self._wants_link = False

    def _link_up(self) -> None:
        """The device answers with its signature, if there is one."""
        if self.drive is None:
            self._link_down(0)
            return
        limit = self.sctl >> SPEED_SHIFT & 0xF
        self.ssts = SSTS_PRESENT | min(limit or FASTEST, FASTEST) << SPEED_SHIFT
        self.serr |= _EXCHANGED
        self._wants_link = False
        self._reset_drive()

    def _reset_drive(self) -> None:
        assert self.drive is not None
        self.drive.reset()
        self.sig = self.drive.signature
        self.tfd = _AFTER_RESET | self.drive.ready_status

    def abort(self) -> None:
        """Forget every command. What the backend works on goes on unheard."""
        self._generation += 1
        self._stale += self._in_flight
        self._in_flight = 0
        self._running.clear()
        self._alone = False
        self._halted = False
        self.ci = self.sact = 0
        self._last_slot = SLOTS - 1

    def _stop(self) -> None:
        if not self.cmd & Cmd.START and self.quiet:
            self.cmd &= ~int(Cmd.LIST_RUNNING | Cmd.CURRENT_SLOT)

    def _settle(self) -> None:
        if not self.quiet:
            return
        self._stop()
        if self._wants_link:
            self._link_up()
            self._controller.update()
        self._controller.settled()

    # -- commands --

    def process(self) -> None:
        """Begin every command that can be begun. With the lock held."""
        if self._processing:
            return  # a command has ended at once: those behind it come next below
        self._processing = going = True
        while going and (slot := self._next_slot()) is not None:
            going = self._guard(partial(self._issue, slot))
        self._processing = False
        self._controller.update()

    def _guard(self, function: Callable[[], bool]) -> bool:
        """What ``function`` returns; False if the driver's memory is not as it has to be."""
        try:
            return function()
        except BadAddress:
            self._fatal(Irq.HOST_BUS_FATAL)
        except TableTooShort:
            self._fatal(Irq.OVERFLOW)
        except BadFis:
            self._fatal(Irq.INTERFACE_FATAL)
        return False

    def _next_slot(self) -> int | None:
        waiting = self.ci
        if not waiting or self._alone or self._halted or self._stale or self.drive is None:
            return None
        if not self.cmd & _START or self.ssts & DET_MASK != SSTS_PRESENT & DET_MASK or not self._controller.enabled:
            return None
        for slot in self._running:
            waiting &= ~(1 << slot)
        later = waiting >> self._last_slot + 1 << self._last_slot + 1
        first = later or waiting
        return (first & -first).bit_length() - 1 if first else None

    def _issue(self, slot: int) -> bool:
        """Begin a command; False if it has to wait for those that run."""
        drive = self.drive
        assert drive is not None
        request = Request(self._controller.memory, self.clb, slot)
        if not request.tf.is_command:
            self._last_slot = slot
            self._control(request)
            return True
        request.queued = drive.is_queued(request)
        if self._running and not request.queued:
            return False
        self._last_slot = slot
        self.cmd = self.cmd & ~_CURRENT_SLOT | slot << CURRENT_SLOT_SHIFT
        self._running[slot] = request
        if request.queued:
            self.ci &= ~(1 << slot)
            self.sact |= 1 << slot
        else:
            self._alone = True
            self.tfd |= _BUSY
        drive.execute(request)
        return True

    def _control(self, request: Request) -> None:
        """A frame with the device control register: a soft reset is its bit set, then cleared."""
        asked = bool(request.tf.control & fis.SOFT_RESET)
        if self._soft_reset and not asked:
            self._reset_drive()
            assert self.drive is not None
            error, lba, count = 1, self.drive.signature >> 8, self.drive.signature & 0xFF
            self._receive(FisType.D2H, fis.device_to_host(self.tfd & 0xFF, error, lba, 0, count, interrupt=False))
        self._soft_reset = asked
        self.ci &= ~(1 << request.slot)

    def _fatal(self, cause: Irq) -> None:
        """Nothing goes on until the driver has stopped the port."""
        self._halted = True
        self.serr |= int(Serr.INTERNAL if cause & Irq.HOST_BUS_FATAL else Serr.PROTOCOL)
        self.irq |= int(cause)

    def _receive(self, kind: FisType, frame: bytes) -> None:
        """Put a frame into the area for received ones; like a ring it is no code, so nobody is told of the change."""
        if self.cmd & _FIS_ENABLE:
            try:
                self._controller.memory.view(self.fb + fis.RECEIVED_AT[kind], len(frame))[:] = frame
            except OutsideMemory:
                self._fatal(Irq.HOST_BUS_FATAL)

    # -- for the drive --

    def finish(
        self,
        request: Request,
        status: int,
        error: int = 0,
        *,
        lba: int | None = None,
        count: int | None = None,
        device: int | None = None,
    ) -> None:
        """The command has ended."""
        slot = request.slot
        if self._running.get(slot) is not request or self._halted:
            return
        tf = request.tf
        failed = status & _ERROR
        self.tfd = error << 8 | status
        if request.notify:
            self.irq |= _DESCRIPTOR
        if request.queued:
            self._receive(FisType.DEVICE_BITS, fis.set_device_bits(status, error, 0 if failed else 1 << slot))
            self.irq |= _DEVICE_BITS
            if not failed:
                self.sact &= ~(1 << slot)
        else:
            lba = tf.lba if lba is None else lba
            count = tf.count if count is None else count
            device = tf.device if device is None else device
            frame = fis.device_to_host(status, error, lba, device, count, interrupt=True)
            self._receive(FisType.D2H, frame)
            self.irq |= _D2H
            self._end_alone(request, failed=bool(failed))
        if failed:
            self.irq |= int(Irq.TASK_FILE)
            self._halted = True
            if request.queued and self.drive is not None:
                self.drive.queue_failed(request, status, error)
        else:
            del self._running[slot]
            self._alone = False
        self._next()

    def send_pio(self, request: Request, data: bytes) -> None:
        """The command ends well with data, by a PIO transfer."""
        if self._running.get(request.slot) is not request or self._halted:
            return
        request.put(data)
        self.pio_setup(request, len(data), to_host=True, end_status=OK)
        self.tfd = OK
        if request.notify:
            self.irq |= _DESCRIPTOR
        self._end_alone(request, failed=False)
        del self._running[request.slot]
        self._alone = False
        self._next()

    def pio_setup(self, request: Request, length: int, *, to_host: bool, end_status: int) -> None:
        """A PIO transfer takes place."""
        tf = request.tf
        status = OK | Ata.REQUEST
        frame = fis.pio_setup(status, tf.lba, tf.device, tf.count, end_status, length, to_host=to_host)
        self._receive(FisType.PIO_SETUP, frame)
        self.irq |= _PIO

    def run(self, request: Request, steps: Iterator[Step], then: Callable[[int], None]) -> None:
        """Do the steps in the backend's threads, then ``then(errno)``."""
        generation = self._generation
        self._in_flight += 1

        def advance(error: int) -> None:
            if not error and generation == self._generation:
                step = next(steps, None)
                if step is not None:
                    step(advance)
                    return
            self._controller.locked(lambda: leave(error))

        def leave(error: int) -> None:
            if generation != self._generation:
                self._stale -= 1
                self._settle()
                self._controller.schedule(self)
                return
            self._in_flight -= 1
            self._guard(partial(_call, then, error))
            self._controller.update()

        first = next(steps, None)
        if first is None:
            leave(0)
        else:
            first(advance)

    def _end_alone(self, request: Request, *, failed: bool) -> None:
        request.write_count()
        if not failed:
            self.ci &= ~(1 << request.slot)

    def _next(self) -> None:
        if self.ci and not self._halted:
            self.process()

    # -- lifecycle --

    def save(self) -> State:
        """Registers, and the drive's state. Commands that are running will be issued again."""
        state = save_fields(self, self._FIELDS)
        state["ci"] = self.ci | sum(1 << slot for slot in self._running)
        state["drive"] = None if self.drive is None else self.drive.save()
        return state

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over registers and the drive's state, and go on."""
        self.abort()
        restore_fields(self, self._FIELDS, state)
        if self.drive is not None:
            self.drive.restore(saved_dict(state.get("drive"), "drive"))
        self._controller.schedule(self)


def _call(then: Callable[[int], None], error: int) -> bool:
    then(error)
    return True
