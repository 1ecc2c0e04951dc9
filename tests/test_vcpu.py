"""The vCPU loop: what each exit leads to, and how the threads of a machine live and end."""

import threading
import time

import pytest

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.msr import MsrBus
from pyhyve.bus.pio import PioBus
from pyhyve.errors import BackendError
from pyhyve.vcpu import Platform, Vcpu, VcpuSet, Verdict
from pyhyve.vmm import exits
from pyhyve.vmm.api import Capability
from pyhyve.vmm.exits import Suspended, SuspendReason
from pyhyve.vmm.registers import Reg, SegmentName
from tests.fakecpu import ScriptedCpu

OFF = Suspended(SuspendReason.POWER_OFF)


class Latch:
    """A port or memory device that remembers its last write and gives it back."""

    def __init__(self, value=0):
        self.value = value
        self.writes = []

    def read(self, offset, size):
        return self.value & ((1 << 8 * size) - 1)

    def write(self, offset, size, value):
        self.writes.append((offset, size, value))


class Broken(Latch):
    def read(self, offset, size):
        raise ZeroDivisionError("a bug")


class Machine:
    """A set of scripted vCPUs around empty buses."""

    def __init__(self, *scripts, **policies):
        self.pio, self.mmio, self.msr = PioBus(), MmioBus(), MsrBus()
        self.ended = threading.Event()
        self.set = VcpuSet(self.ended.set)
        self.platform = Platform(self.pio, self.mmio, self.msr, **policies)
        self.cpus = [ScriptedCpu(index, script) for index, script in enumerate(scripts)]
        self.set.vcpus = [Vcpu(cpu, self.set, self.platform) for cpu in self.cpus]

    def run(self, *indices):
        for index in indices or (0,):
            self.set.add(index)
        assert self.ended.wait(10)
        self.set.join()
        return self.set.outcome

    @property
    def counters(self):
        return self.set.vcpus[0].counters.named()


def run_script(*script, prepare=None, **policies):
    machine = Machine([*script, OFF], **policies)
    if prepare:
        prepare(machine)
    machine.run()
    return machine


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (SuspendReason.RESET, 0),
        (SuspendReason.POWER_OFF, 1),
        (SuspendReason.HALT, 2),
        (SuspendReason.TRIPLE_FAULT, 3),
    ],
)
def test_the_guests_end_is_the_status(reason, status):
    assert Machine([Suspended(reason)]).run() == status


def test_out_reaches_the_device_and_in_is_answered():
    latch = Latch(0xA5)
    machine = run_script(
        exits.InOut(0x80, 1, False, 0x42),
        exits.InOut(0x80, 1, True),
        prepare=lambda m: m.pio.register(0x80, 1, latch, "latch"),
    )
    assert latch.writes == [(0, 1, 0x42)]
    assert machine.cpus[0].answers == [0xA5]
    assert machine.counters["inout"] == 2


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_a_port_without_a_device_reads_all_ones_and_swallows_writes(size, ones):
    machine = run_script(exits.InOut(0x1234, size, True), exits.InOut(0x1234, size, False, 1))
    assert machine.cpus[0].answers == [ones]
    assert machine.set.outcome == 1


@pytest.mark.parametrize(
    ("access", "line"),
    [
        (exits.InOut(0x70, 1, True), "Unhandled inb 0x0070"),
        (exits.InOut(0x1234, 2, True), "Unhandled inw 0x1234"),
        (exits.InOut(0x1234, 4, False, 7), "Unhandled outl 0x1234"),
    ],
)
def test_strict_io_ends_the_machine_at_such_a_port(access, line, capfd):
    assert run_script(access, strict_io=True).set.outcome == 4
    assert line in capfd.readouterr().err


def test_memory_mapped_io_reaches_the_device():
    latch = Latch(0x1122334455667788)
    machine = run_script(
        exits.InstEmul(0xFED00000, 8, False),
        exits.InstEmul(0xFED00004, 4, True, 9),
        prepare=lambda m: m.mmio.register(0xFED00000, 0x400, latch, "latch"),
    )
    assert machine.cpus[0].answers == [0x1122334455667788]
    assert latch.writes == [(4, 4, 9)]
    assert machine.counters["inst-emul"] == 2


def test_memory_nobody_answers_at_ends_the_machine(capfd):
    assert run_script(exits.InstEmul(0x500000000, 4, False)).set.outcome == 4
    assert "Unhandled memory access to 0x500000000" in capfd.readouterr().err


def test_an_empty_place_on_the_pci_bus_floats():
    hole = ((0xC0000000, 0x100000000),)
    machine = run_script(exits.InstEmul(0xD0000000, 4, False), exits.InstEmul(0xD0000000, 4, True, 1), open_bus=hole)
    assert machine.cpus[0].answers == [0xFFFFFFFF]
    assert machine.set.outcome == 1


def test_an_instruction_that_cannot_be_decoded_ends_the_machine(capfd):
    assert run_script(exits.InstEmulFailed(0xFFFFFFFF81000000)).set.outcome == 4
    assert "Failed to emulate instruction at 0xffffffff81000000" in capfd.readouterr().err


def test_a_known_msr_is_read_and_written():
    written = []
    machine = run_script(
        exits.RdMsr(0x8B),
        exits.WrMsr(0x8B, 5),
        prepare=lambda m: m.msr.register(0x8B, lambda: 0x1_0000_0000, written.append, "microcode"),
    )
    assert machine.cpus[0].answers == [0x1_0000_0000]
    assert written == [5]
    assert machine.cpus[0].exceptions == []


def test_an_unknown_msr_raises_general_protection_and_is_told_once(capfd):
    machine = run_script(exits.RdMsr(0x123), exits.RdMsr(0x123), exits.WrMsr(0x123, 0xAB))
    assert machine.cpus[0].exceptions == [(13, 0)] * 3
    assert machine.cpus[0].answers == []
    assert capfd.readouterr().err.splitlines() == [
        "rdmsr to register 0x123 on vcpu 0",
        "wrmsr to register 0x123(0xab) on vcpu 0",
    ]


def test_without_strict_msr_an_unknown_one_reads_zero():
    machine = run_script(exits.RdMsr(0x123), exits.WrMsr(0x123, 0xAB), strict_msr=False)
    assert machine.cpus[0].answers == [0]
    assert machine.cpus[0].exceptions == []


def test_exits_are_counted_under_bhyves_names():
    machine = run_script(exits.Hlt(), exits.Pause(), exits.Pause(), exits.Mtrap(), exits.Bogus())
    counters = machine.counters
    assert (counters["hlt"], counters["pause"], counters["mtrap"], counters["bogus"]) == (1, 2, 1, 1)
    assert {"bogus-switch", "cpu-switch-rotate", "cpu-switch-direct", "io-reset"} <= set(counters)


def test_an_interrupt_acknowledge_is_answered_by_the_pic():
    machine = run_script(exits.IntAck(), acknowledge=lambda: 0x30)
    assert machine.cpus[0].answers == [0x30]


def test_the_end_of_a_level_interrupt_reaches_the_io_apic():
    seen = []
    run_script(exits.IoapicEoi(0x41), eoi=seen.append)
    assert seen == [0x41]


def test_an_entry_failure_prints_its_fields_and_ends_with_4(capfd):
    failure = exits.EntryFailed(0xFFF0, 2, 7, 33, 0x10, 3, 4, "detail text")
    assert run_script(failure).set.outcome == 4
    err = capfd.readouterr().err
    for word in ("vm exit[0]", "0x000000000000fff0", "length\t2", "status\t\t7", "reason\t0x21", "detail text"):
        assert word in err


def test_an_exit_without_a_handler_ends_with_status_1(capfd):
    machine = Machine([exits.Mtrap()])
    del machine.set.vcpus[0].handlers[exits.Mtrap]
    assert machine.run() == 1
    assert "vm_loop: unexpected exitcode 0x6" in capfd.readouterr().err


def test_a_device_that_fails_ends_the_machine_with_one_line():
    machine = Machine([exits.InOut(0x80, 1, True)])
    machine.pio.register(0x80, 1, Broken(), "broken")
    assert machine.run() == 4
    assert "ZeroDivisionError: a bug" in machine.set.message
    assert "test_vcpu.py" in machine.set.message
    assert "\n" not in machine.set.message


def test_a_device_that_fails_lets_go_of_its_lock():
    machine = Machine([exits.InOut(0x80, 1, True)])
    broken = Broken()
    broken.lock = threading.RLock()
    machine.pio.register(0x80, 1, broken, "broken")
    machine.run()
    assert broken.lock.acquire(timeout=1)


def test_a_reset_through_a_port_is_counted():
    machine = Machine([exits.InOut(0x64, 1, False, 0xFE)])

    class Keyboard(Latch):
        def write(self, offset, size, value):
            machine.set.end(0)

    machine.pio.register(0x64, 1, Keyboard(), "i8042")
    assert machine.run() == 0
    assert machine.counters["io-reset"] == 1


def test_one_vcpu_that_ends_brings_the_others_out():
    machine = Machine([OFF], [], [])
    assert machine.run(1, 2, 0) == 1


def test_the_first_outcome_wins():
    machine = Machine([])
    machine.set.add(0)
    machine.set.end(0, "first")
    machine.set.end(4, "second")
    machine.set.join()
    assert (machine.set.outcome, machine.set.message) == (0, "first")


def test_a_pause_holds_every_vcpu_until_resume():
    machine = Machine([], [])
    machine.set.add(0)
    machine.set.add(1)
    for cpu in machine.cpus:
        assert cpu.asleep.wait(10)
    machine.set.pause()
    for cpu in machine.cpus:
        cpu.script = [exits.InOut(0x80, 1, True)]
        cpu.kick()
    assert all(cpu.answers == [] for cpu in machine.cpus)
    machine.set.resume()
    machine.cpus[0].script.append(OFF)
    machine.cpus[1].kick()
    machine.cpus[0].kick()
    assert machine.ended.wait(10)
    machine.set.join()


def resting(machine):
    """Wait until every vCPU that was added rests."""
    rest = threading.Event()
    machine.set.on_rest = rest.set
    machine.set.break_in()
    assert rest.wait(10)
    assert machine.set.at_rest()


def test_a_vcpu_rests_behind_the_instruction_that_left():
    machine = Machine([exits.InOut(0x80, 1, True)])

    class Holding(Latch):
        def read(self, offset, size):
            machine.set.break_in()
            return self.value

    machine.pio.register(0x80, 1, Holding(0x55), "latch")
    rest = threading.Event()
    machine.set.on_rest = rest.set
    machine.set.add(0)
    assert rest.wait(10)
    assert machine.cpus[0].answers == [0x55]
    assert machine.counters["bogus"] == 1, "it ran once more, by a kick, so that the backend took the answer"
    machine.set.end(1)
    machine.set.join()


def test_a_break_and_a_pause_are_independent():
    machine = Machine([], [])
    machine.set.add(0)
    machine.set.add(1)
    resting(machine)
    machine.set.pause()
    machine.set.release()
    assert machine.set.at_rest(), "it is suspended still"
    machine.set.break_in()
    machine.set.resume()
    assert machine.set.at_rest(), "the debugger holds it still"
    for cpu in machine.cpus:
        cpu.asleep.clear()
    machine.set.release([1])
    assert machine.cpus[1].asleep.wait(10)
    assert not machine.cpus[0].asleep.is_set()
    resting(machine)
    machine.set.release()
    assert not machine.set.attention
    machine.set.end(1)
    machine.set.join()


def test_a_stopped_machine_can_end():
    machine = Machine([], [])
    machine.set.break_in()
    machine.set.add(0)
    machine.set.add(1)
    machine.set.end(3)
    machine.set.join()
    assert machine.set.outcome == 3
    assert not machine.cpus[0].asleep.is_set()


def test_a_step_is_told_when_it_is_done():
    told = []
    machine = Machine([exits.Bogus(), exits.Mtrap()])
    vcpu = machine.set.vcpus[0]
    vcpu.on_debug = lambda _vcpu, exit_: (told.append(exit_), machine.set.break_in())
    machine.set.break_in()
    machine.set.add(0)
    vcpu.step(True)
    assert machine.cpus[0].capabilities == {Capability.MTRAP_EXIT: True}
    rest = threading.Event()
    machine.set.on_rest = lambda: told and rest.set()
    machine.set.release()
    assert rest.wait(10)
    vcpu.step(False)
    assert told == [exits.Mtrap()]
    assert machine.cpus[0].capabilities == {Capability.MTRAP_EXIT: False}
    machine.set.end(1)
    machine.set.join()


def test_a_hold_keeps_every_vcpu_out_of_the_guest_and_lets_it_go():
    machine = Machine([])
    machine.set.add(0)
    with machine.set.held(), machine.set.held():
        machine.cpus[0].script = [exits.InOut(0x80, 1, True), OFF]
        machine.cpus[0].kick()
        assert machine.set.attention
    assert machine.ended.wait(10)
    machine.set.join()
    assert len(machine.cpus[0].answers) == 1


def test_a_hold_leaves_a_pause_as_it_was():
    machine = Machine([])
    machine.set.add(0)
    machine.set.pause()
    with machine.set.held():
        machine.set.resume()
        machine.set.pause()
    machine.cpus[0].script = [OFF]
    machine.cpus[0].kick()
    assert machine.set.paused
    assert machine.set.attention
    assert machine.set.outcome is None
    machine.set.resume()
    assert machine.ended.wait(10)
    machine.set.join()


def test_a_machine_that_has_ended_cannot_be_held():
    machine = Machine([OFF])
    machine.run()
    with pytest.raises(BackendError, match="has ended"), machine.set.held():
        pass


def test_a_paused_machine_can_end():
    machine = Machine([])
    machine.set.add(0)
    machine.set.pause()
    machine.set.end(1)
    machine.set.join()
    assert machine.set.outcome == 1


def test_a_vcpu_thread_carries_its_name():
    names = []
    machine = Machine([exits.InOut(0x80, 1, True), OFF])

    class Spy(Latch):
        def read(self, offset, size):
            with open("/proc/thread-self/comm") as file:
                names.extend((threading.current_thread().name, file.read().strip()))
            return 0

    machine.pio.register(0x80, 1, Spy(), "spy")
    machine.run()
    assert names == ["vcpu 0", "vcpu 0"]


def test_a_sipi_starts_another_vcpu_in_real_mode_at_the_vector():
    machine = Machine([exits.SpinupAp(1, 0x9A)], [OFF])
    assert machine.run() == 1
    ap = machine.cpus[1]
    assert ap.registers[Reg.RIP] == 0
    assert ap.segments[SegmentName.CS].base == 0x9A000
    assert ap.segments[SegmentName.CS].selector == 0x9A00
    assert machine.set.active == {0, 1}


def test_two_vcpus_that_restart_each_other_do_not_wait_for_one_another():
    first = [exits.SpinupAp(2, 0x20), exits.SpindownCpu(), OFF]
    machine = Machine([], first, [exits.SpinupAp(1, 0x10), exits.SpindownCpu()])
    with machine.set._changed:
        machine.set.add(1)
        machine.set.add(2)
    assert machine.ended.wait(4)
    machine.set.join()
    assert machine.set.outcome == 1
    assert machine.cpus[1].segments[SegmentName.CS].base == 0x10000
    assert machine.set.message == ""


def test_a_vcpu_that_is_paused_on_its_way_out_starts_when_the_machine_goes_on():
    machine = Machine([], [])
    for index in (0, 1):
        machine.set.add(index)
        assert machine.cpus[index].asleep.wait(10)
    machine.set.pause()
    machine.set.spin_up(1, 0x9A)  # does not wait for it
    machine.cpus[1].script = [exits.SpindownCpu(), OFF]
    machine.set.resume()
    machine.cpus[1].kick()
    assert machine.ended.wait(10)
    machine.set.join()
    assert machine.cpus[1].segments[SegmentName.CS].base == 0x9A000


def test_the_time_of_a_thread_that_leaves_is_not_taken_for_that_of_the_next():
    machine = Machine([], [exits.SpindownCpu()])
    leaving, started = threading.Event(), threading.Event()
    loop = machine.set.vcpus[1].loop

    def slow_loop():
        status = loop()
        if not leaving.is_set():
            leaving.set()
            assert started.wait(10)
        return status

    machine.set.vcpus[1].loop = slow_loop
    machine.set.add(0)
    with machine.set._changed:  # it cannot leave before
        machine.set.add(1)
        first = machine.set._active[1].thread
    assert leaving.wait(10)
    machine.set.spin_up(1, 2)
    assert machine.cpus[1].asleep.wait(10)
    started.set()
    first.join(10)
    assert machine.set.vcpus[1].host.thread == machine.set._active[1].thread.native_id
    machine.set.end(1)
    machine.set.join()


def test_a_start_up_ipi_starts_a_vcpu_once():
    machine = Machine([], [exits.SpindownCpu(), exits.SpindownCpu()])
    machine.set.add(0)
    with machine.set._changed:  # the vCPU cannot leave before
        machine.set.add(1)
        machine.set.spin_up(1, 2)
        assert machine.set._changed.wait_for(lambda: machine.set.active == {0}, 10)
    machine.set.end(1)
    machine.set.join()


def test_starting_a_vcpu_that_does_not_exist_is_an_error_that_ends_the_machine():
    machine = Machine([exits.SpinupAp(5, 1)])
    assert machine.run() == 4
    assert machine.set.message == "vcpu 5 does not exist"


def test_adding_an_active_vcpu_is_an_error():
    machine = Machine([exits.SpindownCpu()], [])
    machine.set.add(1)
    with pytest.raises(BackendError, match="vcpu 1 is already active") as caught:
        machine.set.add(1)
    assert caught.value.status == 4
    machine.set.remove(1)
    assert machine.run(0) == 0
    machine.cpus[1].kick()


def test_deleting_a_vcpu_twice_is_an_error_that_ends_the_machine():
    machine = Machine([exits.SpindownCpu()], [])
    machine.set.add(1)
    machine.set.remove(1)
    with pytest.raises(BackendError, match="vcpu 1 is not active"):
        machine.set.remove(1)
    assert machine.run(0) == 0
    machine.cpus[1].kick()


def test_a_switch_lets_others_run_and_is_counted():
    machine = Machine([exits.Mtrap(), OFF])
    machine.set.vcpus[0].handlers[exits.Mtrap] = lambda exit_: Verdict.SWITCH
    assert machine.run() == 1
    assert machine.counters["cpu-switch-rotate"] == 1


@pytest.mark.parametrize("verdict", [Verdict.CONTINUE, Verdict.RESTART])
def test_continue_and_restart_run_on(verdict):
    machine = Machine([exits.Mtrap(), exits.Mtrap(), OFF])
    machine.set.vcpus[0].handlers[exits.Mtrap] = lambda exit_: verdict
    assert machine.run() == 1
    assert machine.cpus[0].script == []


@pytest.mark.parametrize(
    ("verdict", "status"), [(Verdict.RESET, 0), (Verdict.POWER_OFF, 1), (Verdict.HALT, 2), (Verdict.ABORT, 4)]
)
def test_the_verdicts_that_end_have_their_status(verdict, status):
    machine = Machine([exits.Mtrap()])
    machine.set.vcpus[0].handlers[exits.Mtrap] = lambda exit_: verdict
    assert machine.run() == status


def test_removing_an_inactive_vcpu_is_an_error():
    with pytest.raises(BackendError, match="vcpu 0 is not active"):
        Machine([]).set.remove(0)


def test_a_vcpu_that_spins_down_leaves_the_others_running():
    machine = Machine([], [exits.SpindownCpu()])
    machine.set.add(0)
    assert machine.cpus[0].asleep.wait(10)
    machine.set.add(1)
    machine.set.vcpus[1]  # its thread ends by itself
    machine.cpus[0].script = [OFF]
    machine.cpus[0].kick()
    assert machine.ended.wait(10)
    machine.set.join()
    assert machine.set.outcome == 1


def test_the_last_vcpu_to_spin_down_is_a_reset():
    assert Machine([exits.SpindownCpu()]).run() == 0


def test_a_vcpu_pinned_to_a_cpu_that_is_not_there_ends_with_one_line():
    machine = Machine([OFF])
    machine.set.pin(0, frozenset({4095}))
    assert machine.run() == 4
    assert "cannot pin vcpu 0 to host CPU 4095" in machine.set.message


def test_a_port_access_takes_a_few_microseconds():
    count = 20_000
    machine = Machine([exits.InOut(0x80, 1, True)] * count + [OFF])
    machine.cpus[0].script.reverse()
    machine.cpus[0].run = machine.cpus[0].script.pop
    machine.pio.register(0x80, 1, Latch(), "latch")
    start = time.process_time()
    machine.run()
    assert (time.process_time() - start) / count < 10e-6
